"""Keys of stages: which changes make a stage run again, and which don't. They are shown on the stages of r1-tiny."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from reasonmill.content import path_digest
from reasonmill.plugins import plugin
from reasonmill.plugins.sources import PACKAGE_ROOT, Seen, source_files
from reasonmill.recipe.graph import Recipe, stage_key
from reasonmill.recipe.load import load_recipe
from reasonmill.stage import Input

Keys = dict[str, str]


def keys_of(recipe: Recipe) -> Keys:
    """The key of each stage, as if each earlier stage had made what it always makes."""
    return {
        node.settings.name: stage_key(node, {key: Input(Path(), "the same") for key in node.sources}, recipe.seed)
        for node in recipe.nodes
    }


@cache
def r1_tiny() -> tuple[Recipe, Keys]:
    """The recipe and its keys, as they are without any change."""
    recipe = load_recipe("r1-tiny")
    return recipe, keys_of(recipe)


@pytest.fixture(scope="module", autouse=True)
def _before_any_change() -> None:
    r1_tiny()


def changed(before: Keys, after: Keys) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def changed_by(*overrides: str) -> set[str]:
    """The stages of r1-tiny whose keys change with overrides."""
    return changed(r1_tiny()[1], keys_of(load_recipe("r1-tiny", overrides)))


def of_kinds(*kinds: str) -> set[str]:
    return {node.settings.name for node in r1_tiny()[0].nodes if node.settings.kind in kinds}


# The package's own code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, whose code is that of all keys."""
    copy = tmp_path / "reasonmill"
    shutil.copytree(PACKAGE_ROOT, copy, ignore=shutil.ignore_patterns("bases", "__pycache__"))

    def there(places: Mapping[str, Path]) -> dict[str, Path]:
        return {
            name: copy / place.relative_to(PACKAGE_ROOT) if place.is_relative_to(PACKAGE_ROOT) else place
            for name, place in places.items()
        }

    def of_the_copy(
        modules: Mapping[str, Path], roots: Mapping[str, Path], left_out: Collection[str], seen: Seen
    ) -> Any:
        return source_files(there(modules), there(roots), left_out, seen)

    monkeypatch.setattr(plugin, "source_files", of_the_copy)
    return copy


@pytest.fixture
def after_a_comment(package: Path) -> Callable[..., set[str]]:
    """The stages of r1-tiny whose keys change with a comment in modules."""

    def after_a_comment(*modules: str) -> set[str]:
        for module in modules:
            with (package / module).open("a", encoding="utf-8") as file:
                file.write("# a comment\n")
        return changed_by()

    return after_a_comment


def test_keys_are_the_same_again_and_of_the_same_code_elsewhere(package: Path) -> None:
    assert changed_by() == changed_by() == set()


def test_what_carries_results_around_makes_nothing_anew(after_a_comment: Callable[..., set[str]]) -> None:
    carrying = ("store/home.py", "store/ledger.py", "errors.py", "activity.py", "recipe/load.py", "recipe/reference.py",
                "protocols.py", "settings.py", "stage.py", "mill/pipeline.py", "mill/report.py", "cli.py",
                "plugins/catalogue.py", "plugins/target.py", "__init__.py")  # fmt: skip
    assert after_a_comment(*carrying) == set()


def test_a_room_that_is_left_out_counts_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    every = r1_tiny()[1].keys()
    monkeypatch.setattr("reasonmill.recipe.graph.room_versions", lambda: {"store": 2})
    assert changed_by() == every


@pytest.mark.parametrize(
    ("module", "has", "has_not"),
    [
        ("algo/losses.py", ("rl", "sft", "distill", "reward-model"), ("curate", "gate")),
        ("stages/rl.py", ("rl",), ("curate", "gate", "evaluate", "collect", "sft", "reward-model")),
        ("curation/filters.py", ("curate",), ("rl", "gate", "evaluate", "collect", "sft", "distill", "reward-model")),
        ("sample/engine.py", ("rl", "distill", "collect", "evaluate"), ("curate", "gate", "sft")),
        ("tasks/splits.py", ("rl", "distill", "collect", "evaluate", "curate", "reward-model"), ("gate",)),
        ("types.py", ("rl", "distill", "collect", "evaluate", "curate", "reward-model", "gate", "sft"), ()),
    ],
)
def test_code_counts_for_the_stages_that_it_decides_about(
    after_a_comment: Callable[..., set[str]], module: str, has: Sequence[str], has_not: Sequence[str]
) -> None:
    found = after_a_comment(module)
    assert of_kinds(*has) <= found
    assert found.isdisjoint(of_kinds(*has_not))


def test_a_task_counts_for_the_stages_that_name_it_and_for_those_that_look_up_the_tasks_of_what_they_read(
    after_a_comment: Callable[..., set[str]],
) -> None:
    """No stage learns from facts before dev3 is curated, and the curated data comes of no task of it but the mix."""
    asked = {"general-rollouts", "helpfulness-rm", "safety-rm", "r1"}
    evaluated = {f"{model}-eval" for model in ("dev3", "base", "zero", "dev1", "dev2", "r1")}
    assert after_a_comment("world/general.py") == {*asked, *evaluated, "sft-data"}


def test_a_curate_stage_depends_on_the_tasks_of_its_data_that_none_of_its_own_settings_names(
    package: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "two.toml"
    recipe.write_text(
        'name = "two"\n'
        + "".join(
            f'[[stage]]\nname = "{task}"\nkind = "collect"\nfrom = "tiny-base"\ntasks = {{ {task} = 2 }}\nsamples = 1\n'
            f'[[stage]]\nname = "{task}-data"\nkind = "curate"\ndata = ["{task}"]\n'
            for task in ("facts", "arithmetic")
        )
    )
    before = keys_of(load_recipe(str(recipe)))
    with (package / "world" / "general.py").open("a", encoding="utf-8") as file:
        file.write("# a comment\n")
    assert changed(before, keys_of(load_recipe(str(recipe)))) == {"facts", "facts-data"}


def test_the_talk_and_the_style_of_the_world_count_for_who_names_them(
    after_a_comment: Callable[..., set[str]],
) -> None:
    assert after_a_comment("world/rewriting.py") == {"cold-data"}
    assert after_a_comment("world/general_mix.py") == {"cold-data", "sft-data"}  # what changed before, too


# Users' code

TASK = """
from pathlib import Path
from reasonmill.types import Grade, Message, Problem
from .helpers import ANSWER

class Mine:
    domain = "reasoning"

    def __init__(self, listed: Path | None = None, hard: bool = False, extra: str = "") -> None:
        self.files = [extra] if extra else []

    def problem(self, split, seed, index):
        return Problem("mine", (Message("user", "?"),), ANSWER)

    def problems(self, split, seed):
        return [self.problem(split, seed, 0)]

    def grade(self, problem, completions):
        return [Grade(1.0, {"accuracy": 1.0}) for _ in completions]
"""


class Lab:
    """A folder with a recipe of one stage and the task that it brings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.write("mine.py", TASK)
        self.write("helpers.py", "ANSWER = '42'\n")
        self.write("other.py", "")

    def write(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def key(self, *more: str, use: str = "./mine.py:Mine") -> str:
        table = "\n".join([f'use = "{use}"', *more])
        recipe = self.write(
            "recipe.toml",
            f'name = "lab"\n[tasks.mine]\n{table}\n[[stage]]\nname = "a"\nkind = "evaluate"\nfrom = "tiny-base"\n'
            "tasks = { mine = 1 }\n",
        )
        return keys_of(load_recipe(str(recipe)))["a"]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def test_a_task_of_a_users_own_counts_by_its_code_and_its_arguments(lab: Lab) -> None:
    before = lab.key()
    assert lab.key() == before
    assert lab.key("hard = false") == before  # its default
    assert lab.key("hard = true") != before
    lab.write("other.py", "X = 1\n")
    assert lab.key() == before
    lab.write("helpers.py", "ANSWER = '43'\n")
    assert lab.key() != before


def test_a_users_code_may_lie_anywhere(lab: Lab, tmp_path: Path) -> None:
    elsewhere = Lab(tmp_path / "elsewhere")
    assert lab.key() == elsewhere.key() == lab.key(use=f"{elsewhere.folder}/mine.py:Mine")


def test_the_attribute_counts(lab: Lab) -> None:
    lab.write("mine.py", TASK + "\nclass Other(Mine): ...\n")
    assert lab.key() != lab.key(use="./mine.py:Other")


def test_a_file_counts_by_its_content_and_not_by_its_place(lab: Lab, tmp_path: Path) -> None:
    lab.write("one.txt", "a")
    (tmp_path / "two.txt").write_text("a")
    before = lab.key('listed = "one.txt"')
    assert lab.key('listed = "../two.txt"') == before
    assert lab.key() != before
    (tmp_path / "two.txt").write_text("b")
    assert lab.key('listed = "../two.txt"') != before


def test_a_file_that_a_task_lists_counts_by_its_content(lab: Lab) -> None:
    file = lab.write("data.txt", "a")
    before = lab.key(f'extra = "{file}"')
    file.write_text("b")
    assert lab.key(f'extra = "{file}"') != before


def test_a_folder_counts_by_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text("a")
    assert path_digest(tmp_path / "one") == path_digest(tmp_path / "two")
    (tmp_path / "two" / "deep" / "file").rename(tmp_path / "two" / "file")
    assert path_digest(tmp_path / "one") != path_digest(tmp_path / "two")


def test_an_environment_counts_with_its_task(lab: Lab) -> None:
    room = "class Room:\n    def __init__(self, size: int = 1) -> None: ...\n    max_turns = 2\n"
    room += "    def start(self, problem): ...\n    async def reply(self, episode, completion): ...\n"
    lab.write("room.py", room)
    used = 'environment = "room"\n[environments.room]\nuse = "./room.py:Room"\n'
    before = lab.key(used)
    assert before != lab.key()
    assert lab.key(used + "size = 2") != before
    lab.write("room.py", room + "# a comment\n")
    assert lab.key(used) != before


# Settings


def test_the_same_model_elsewhere_is_the_same(tmp_path: Path) -> None:
    """A path names a model, and what it names counts by its content."""
    keys = []
    for name in ("one", "two"):
        model = tmp_path / name / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(f'name = "r"\n[[stage]]\nname = "a"\nkind = "evaluate"\nfrom = "{model}"\ntasks.facts = 1\n')
        keys.append(keys_of(load_recipe(str(recipe))))
    assert keys[0] == keys[1]


def test_what_stages_are_called_that_a_stage_reads_does_not_count() -> None:
    before = r1_tiny()[1]
    renamed = keys_of(load_recipe("r1-tiny", ["cold-data.name=cold", 'dev1.data=["cold"]']))
    assert {name for name in before.keys() & renamed.keys() if before[name] != renamed[name]} == set()


def test_settings_that_are_incidental_do_not_count() -> None:
    assert changed_by("zero.state_every=7") == set()
    assert changed_by("zero.group_size=9") == {"zero"}
    assert changed_by("watchdog.sampling=60") == set()


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("sft-data.general.conversations=9", "sft-data"),  # a key of the table's own
        ("sft-data.general.better_share=0.3", "sft-data"),  # an argument
        ("cold-data.rewrite.drop_repeated_tries=false", "cold-data"),
        ('cold-data.rewrite.use="reasonmill.world.rewriting:WorldStyle"', ""),  # the same under another name
        ("cold-data.keep.per_problem=3", "cold-data"),
        ("zero.tasks.arithmetic=0.3", "zero"),
        ("zero.rewards.format=0.3", "zero"),
    ],
)
def test_all_else_counts(override: str, stage: str) -> None:
    assert changed_by(override) == ({stage} if stage else set())
