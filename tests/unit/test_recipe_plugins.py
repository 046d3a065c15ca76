"""Recipes that bring code of their own: what they can name, and mistakes with their places."""

from pathlib import Path
from typing import Any

import pytest

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.errors import RecipeError
from reasonmill.mill.pipeline import run_recipe
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home

CODE = """
from pathlib import Path
from typing import Literal
from reasonmill.types import Grade, Message, Problem
from reasonmill.stage import StageSettings, Outcome
from reasonmill.recipe.reference import ModelRef

class Sums:
    domain = "reasoning"

    def __init__(self, size: int, languages: list[str] = ["en"], file: Path | None = None) -> None:
        self.size = size

    def problem(self, split, seed, index):
        return Problem("?", (Message("user", f"{split} {seed} {index}"),), "1", {"language": "en"})

    def problems(self, split, seed):
        return (self.problem(split, seed, index) for index in range(9))

    def grade(self, problem, completions):
        return [Grade(1.0, {"accuracy": 1.0}) for _ in completions]

class OnlySafety:
    domains = frozenset({"safety"})
    def measure(self, attempt): return 1.0

class Anywhere:
    def measure(self, attempt): return 1.0

class Room:
    max_turns = 3
    def start(self, problem): ...
    async def reply(self, episode, completion): ...

class Grader:
    def grade(self, problem, completions): ...

def failing() -> Sums:
    raise OSError("no disk")
"""
STAGE = """
from typing import Literal
from pydantic import Field
from reasonmill.recipe.reference import FileRef, ModelRef
from reasonmill.stage import Outcome, StageSettings

MAKES = "model"

class Settings(StageSettings):
    from_: ModelRef = Field(alias="from")
    notes: FileRef | None = None
    strength: int = 1

def run(settings, inputs, context):
    text = inputs["notes"].path.read_text()
    return Outcome(lambda directory: (directory / "config.json").write_text(text), {"strength": settings.strength})
"""
RECIPE = """name = "own"

[tasks.sums]
use = "./code.py:Sums"
size = 3
environment = "room"

[rewards.always]
use = "./code.py:Anywhere"

[environments.room]
use = "./code.py:Room"

[stages.shrink]
use = "./lab/shrink.py"

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base"
steps = 1
tasks = { sums = 0.5, arithmetic = 0.5 }
rewards = { accuracy = 1.0, always = 0.5 }
schedule = { peak = 1e-4 }

[[stage]]
name = "small"
kind = "shrink"
from = "zero"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "shrink.py").write_text(STAGE)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def edited(path: Path, old: str, new: str) -> int:
    """Writes something else into the recipe; returns the number of its last line."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return f"{text[: text.index(old)]}{new}".count("\n") + 1


def refused(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    return caught.value


def plugins_of(recipe: Recipe, stage: str) -> dict[str, str]:
    (node,) = (node for node in recipe.nodes if node.settings.name == stage)
    return {key: f"{plugin.group} {plugin.name}" for key, plugin in node.plugins.items()}


def test_stages_name_what_the_recipe_brings_and_what_is_offered(file: Path) -> None:
    recipe = load_recipe(str(file))
    assert plugins_of(recipe, "zero") == {
        "tasks.sums": "tasks sums",
        "tasks.arithmetic": "tasks arithmetic",
        "rewards.always": "rewards always",
    }
    task = recipe.catalogue.task("sums")
    assert task.problem("train", 0, 0).task == "sums"
    assert task.environment is recipe.catalogue.plugin("environments", "room").made
    assert [node.module.MAKES for node in recipe.nodes] == ["model", "model"]
    told = recipe.resolved()["tasks"]["sums"]
    assert (told["use"], told["environment"], told["size"]) == ("./code.py:Sums", "room", 3)
    assert (told["isolation"], told["limits"]) == (None, None)
    assert "rewritings" not in recipe.resolved()


def test_two_recipes_in_two_folders_have_each_their_own_code(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "code.py").write_text(CODE.replace('"1", {"language"', '"2", {"language"'))
    (other / "lab").mkdir()
    (other / "lab" / "shrink.py").write_text(STAGE)
    (other / "recipe.toml").write_text(RECIPE)
    tasks = [load_recipe(str(path)).catalogue.task("sums") for path in (file, other / "recipe.toml")]
    assert [task.problem("train", 0, 0).answer for task in tasks] == ["1", "2"]


def test_arguments_can_be_overridden(file: Path) -> None:
    recipe = load_recipe(str(file), ["tasks.sums.size=7"])
    assert recipe.catalogue.task("sums").task.size == 7  # type: ignore[attr-defined]
    error = refused(file, "tasks.sums.siez=7")
    assert (error.what, error.where) == ("unknown key 'siez'", "--set tasks.sums.siez=7")
    assert error.fix == "did you mean 'size'?"


@pytest.mark.parametrize(
    ("old", "new", "what", "fix"),
    [
        ("size = 3", 'size = "3"', 'size: Input should be a valid integer, got "3"', ""),
        ("size = 3", "size = true", "size: Input should be a valid integer, got true", ""),
        ("size = 3", "size = 3\nsiez = 3", "unknown key 'siez'", "did you mean 'size'?"),
        ("size = 3", 'size = 3\nlanguages = "en"', 'languages: Input should be a valid array, got "en"', ""),
        ("code.py:Sums", "code.py:Summs", "tasks.sums: module 'code' has no 'Summs'", "it has "),
        ("code.py:Sums", "cod.py:Sums", "tasks.sums: missing module: there is no file './cod.py'", "it is looked"),
        ("./code.py:Sums", "no_lab:Sums", "tasks.sums: missing module: 'no_lab' can't be imported", "install the pack"),
        ("./code.py:Sums", "summs", "tasks.sums: unknown task 'summs'", "did you mean 'sums'?"),
        ("code.py:Anywhere", "code.py:Room", "rewards.always: 'Room' is no reward: it has no measure", "docs/"),
        ("code.py:Room", "code.py:Anywhere", "environments.room: 'Anywhere' is no environment", "docs/"),
        ("./lab/shrink.py", "./code.py", "stages.shrink: 'code' is no kind of stage: it has no MAKES", "docs/"),
        ('"./lab/shrink.py"', '"./lab/shrink.py"\nsize = 3', "a kind of stage takes no size", "under [[stage]]"),
        ('"room"', '"rom"', "tasks.sums: unknown environment 'rom'", "did you mean 'room'?"),
        ("sums = 0.5", "summs = 0.5", "tasks.summs: unknown task 'summs'; did you mean 'sums'?", ""),
        ("always = 0.5", "alwasy = 0.5", "rewards.alwasy: unknown reward 'alwasy'; did you mean 'always'?", ""),
        ('kind = "shrink"', 'kind = "shrnk"', "unknown kind of stage 'shrnk'", "did you mean 'shrink'?"),
        ('from = "zero"', 'from = "zero"\nstrenght = 2', "unknown key 'strenght'", "did you mean 'strength'?"),
        ('from = "zero"', 'from = "zero"\nnotes = "no.txt"', "notes: missing file: 'no.txt'", "it is looked for at "),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_with_its_line(file: Path, old: str, new: str, what: str, fix: str) -> None:
    line = edited(file, old, new)
    error = refused(file)
    assert error.what.startswith(what)
    assert fix in error.fix
    assert error.where.split(",")[0] == f"{file}:{line}"


def test_a_missing_argument_is_shown_at_its_table(file: Path) -> None:
    edited(file, "size = 3\n", "")
    error = refused(file)
    assert (error.what, error.where, error.fix) == ("the key 'size' is missing", f"{file}:3", "add size = ...")


def test_a_class_that_is_no_task_is_told_all_that_it_lacks(file: Path) -> None:
    edited(file, 'code.py:Sums"\nsize = 3', 'code.py:Grader"')
    assert refused(file).what == "tasks.sums: 'Grader' is no task: it has no domain and no problem and no problems"


def test_a_class_that_fails_is_told(file: Path) -> None:
    edited(file, 'code.py:Sums"\nsize = 3', 'code.py:failing"')
    error = refused(file)
    assert error.what == "tasks.sums: task 'sums' can't be made: OSError: no disk"
    assert error.where.startswith(f"{file}:4")


def test_a_mistake_in_the_code_is_shown_with_both_lines(file: Path, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("x = 1\ndef f(:\n")
    error = refused(file)
    assert "3 mistakes" in error.what
    assert f"{file}:4, {tmp_path}/code.py:2: tasks.sums: module 'code' is not valid Python" in error.what
    (tmp_path / "code.py").write_text("import nowhere_lab\n")
    assert f"{file}:4, {tmp_path}/code.py:1: tasks.sums: module 'code' imports 'nowhere_lab'" in refused(file).what


def test_all_mistakes_of_the_tables_are_told_at_once(file: Path) -> None:
    edited(file, "size = 3", "size = 3.5")
    edited(file, "code.py:Room", "code.py:Rom")
    what = refused(file).what
    assert "size: Input should be a valid integer" in what
    assert "environments.room: module 'code' has no 'Rom'" in what


def test_a_reward_that_counts_on_no_task_is_refused(file: Path) -> None:
    edited(file, "code.py:Anywhere", "code.py:OnlySafety")
    edited(file, "accuracy = 1.0, always = 0.5", "always = 0.5")
    error = refused(file)
    assert "task 'sums' has no reward: none of always with a weight counts on reasoning tasks" in error.what


def test_a_kind_of_stage_may_be_named_by_its_module(file: Path) -> None:
    edited(file, 'kind = "shrink"', 'kind = "reasonmill.stages.gate"')
    error = refused(file)  # it is found, and wants other settings
    assert "the key 'candidate' is missing" in error.what
    edited(file, 'kind = "reasonmill.stages.gate"', 'kind = "./lab/shrink.py"')
    assert load_recipe(str(file)).nodes[1].settings.kind == "./lab/shrink.py"


def test_a_recipe_s_own_stage_runs_and_counts_by_the_content_of_its_files(file: Path, tmp_path: Path) -> None:
    file.write_text(
        'name = "own"\n[stages.shrink]\nuse = "./lab/shrink.py"\n'
        '[[stage]]\nname = "small"\nkind = "shrink"\nfrom = "tiny-base-weak"\nnotes = "notes.txt"\n'
    )
    (tmp_path / "notes.txt").write_text("{}")

    def ran(*overrides: str) -> Any:
        with Home.open(tmp_path / "home") as home:
            recipe = load_recipe(str(file), overrides)
            (made,) = run_recipe(
                recipe, home, KeptProgress(), until=None, backend=BACKEND, stop_requested=lambda: False
            ).stages
        return made

    first = ran()
    assert (first.cached, first.artifact.metrics) == (False, {"strength": 1})
    assert ran().cached
    (tmp_path / "notes.txt").rename(tmp_path / "moved.txt")
    assert ran('small.notes="moved.txt"').cached
    (tmp_path / "moved.txt").write_text('{"a": 1}')
    assert not ran('small.notes="moved.txt"').cached
    assert not ran('small.notes="moved.txt"', "small.strength=2").cached


# Reward functions


def test_a_reward_function_has_a_weight_like_any_other(file: Path) -> None:
    edited(
        file,
        "[rewards.always]\nuse = ",
        '[rewards.theirs]\nuse = "./their.py:score"\nscale = 2.0\n\n[rewards.always]\nuse = ',
    )
    edited(file, "always = 0.5", "always = 0.5, theirs = 0.5")
    (file.parent / "their.py").write_text("def score(completions, answer, scale=1.0):\n    return [scale]\n")
    recipe = load_recipe(str(file))
    plugin = recipe.nodes[0].plugins["rewards.theirs"]
    assert plugin.identity["arguments"]["scale"] == 2.0
    before = plugin.identity
    (file.parent / "their.py").write_text("def score(completions, answer, scale=1.0):\n    return [-scale]\n")
    assert load_recipe(str(file)).nodes[0].plugins["rewards.theirs"].identity != before


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("def score(completions, tests): ...", "", "score takes 'tests', and nothing fills that for task 'sums'"),
        ("def score(completions, answer): ...", "scale = 2.0", "unknown key 'scale'"),
        ("def score(completions, scale: float): ...", 'scale = "much"', "scale: Input should be a valid number"),
        ("def score(prompt, respnse): ...", "", "score takes prompt, respnse, none of which is what the model wrote"),
    ],
)
def test_a_reward_function_that_can_not_be_filled_is_refused_by_name(
    file: Path, source: str, settings: str, said: str
) -> None:
    edited(
        file,
        "[rewards.always]\nuse = ",
        f'[rewards.theirs]\nuse = "./their.py:score"\n{settings}\n\n[rewards.always]\nuse = ',
    )
    edited(file, "always = 0.5", "always = 0.5, theirs = 0.5")
    (file.parent / "their.py").write_text(f"{source}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    assert said in str(caught.value)
