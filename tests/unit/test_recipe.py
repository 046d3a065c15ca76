"""Recipes: what is read, what is refused and where the message says it is, and what keys depend on."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from reasonmill.content import directory_digest
from reasonmill.errors import RecipeError
from reasonmill.recipe.graph import stage_key
from reasonmill.recipe.load import load_recipe, shipped_recipes
from reasonmill.recipe.origin import Origins
from reasonmill.recipe.reference import (
    DatasetRef,
    DirectorySource,
    ModelRef,
    Reference,
    RewardModelRef,
    StageSource,
    find_source,
    references,
    shipped_bases,
)
from reasonmill.settings import Mark
from reasonmill.stage import Input


def refused(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    return caught.value


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def line_of(path: Path, text: str) -> str:
    """The place of a line as messages give it."""
    return f"{path}:{path.read_text().splitlines().index(text) + 1}"


def test_a_recipe_is_read_with_its_defaults(recipe_file: Path, base: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert (recipe.name, recipe.seed) == ("small", 0)
    assert [node.settings.name for node in recipe.nodes] == ["first", "second", "check"]
    first, second, _ = recipe.nodes
    assert dict(first.settings)["tasks"] == {"countdown": 0.5}
    assert dict(second.settings)["steps"] == 1
    assert first.sources == {"from": DirectorySource(base)}
    assert second.sources == {"from": StageSource("first")}
    assert recipe.resolved()["stage"][1]["from"] == "first"


def test_optional_references_count_only_when_they_are_set(recipe_file: Path, base: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["second.teacher=first"])
    texts = [{mention.key: mention.value for mention in references(node.settings)} for node in recipe.nodes]
    assert texts[:2] == [{"from": str(base)}, {"from": "first", "teacher": "first"}]


def test_references_stand_in_lists_and_tables_too() -> None:
    class Settings(BaseModel):
        data: list[DatasetRef]
        judges: dict[str, RewardModelRef] = {}
        teacher: ModelRef | None = None

    settings = Settings(data=["one", "two"], judges={"safety": "three"})
    found = {mention.key: (mention.value, mention.mark.kinds) for mention in references(settings)}
    assert found == {
        "data[0]": ("one", ("dataset",)),
        "data[1]": ("two", ("dataset",)),
        "judges.safety": ("three", ("reward-model",)),
    }


def test_data_comes_from_stages_only(base: Path) -> None:
    mention = Mark("data[0]", str(base), Reference(("dataset",)))
    with pytest.raises(RecipeError, match="is no earlier stage"):
        find_source(mention, earlier={"first": "dataset"}, later=[])
    first = dataclasses.replace(mention, value="first")
    assert find_source(first, {"first": "dataset"}, []) == StageSource("first")


def test_only_what_makes_a_model_is_offered_as_one(recipe_file: Path) -> None:
    last = '\n[[stage]]\nname = "last"\nkind = "train"\nfrom = "{}"\n'
    end = '\n[[stage]]\nname = "end"\nkind = "measure"\nfrom = "last"\n'
    written = recipe_file.read_text()
    for reference in ("chack", "end"):
        recipe_file.write_text(written + last.format(reference) + end)
        fix = refused(recipe_file).fix
        offered = fix.rpartition(": ")[2].split(", ")
        assert offered == ["first", "second", *shipped_bases()]
        assert "did you mean 'check'" not in fix


@pytest.mark.parametrize(
    ("old", "new", "what", "fix"),
    [
        ("steps = 3", "stepz = 3", "unknown key 'stepz'", "did you mean 'steps'?"),
        ("steps = 3", 'steps = "3"', "steps: Input should be a valid integer, got \"3\"", ""),
        ("steps = 3", "steps = true", "steps: Input should be a valid integer, got true", ""),
        ("steps = 3", "from_ = 3", "unknown key 'from_'", "did you mean 'from'?"),
        ("countdown = 0.5", 'countdown = "much"', "tasks.countdown: Input should be a valid number, got \"much\"", ""),
        ("steps = 3", "loss = { clop = 0.1 }", "unknown key 'loss.clop'", "did you mean 'clip'?"),
        ("steps = 3", "loss.clop = 0.1", "unknown key 'loss.clop'", "did you mean 'clip'?"),
        ("steps = 3", 'loss.form = "K2"', "loss.form: Input should be 'k1' or 'k2', got \"K2\"", "did you mean 'k2'?"),
        ('kind = "measure"', 'kind = "mesure"', "unknown kind of stage 'mesure'", "did you mean 'measure'?"),
        ('name = "small"', 'name = "Very small"', "name: String should match pattern", ""),
        ('name = "small"', 'name = "small"\nsede = 1', "unknown key 'sede'", "did you mean 'seed'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_with_its_line_and_a_suggestion(
    recipe_file: Path, old: str, new: str, what: str, fix: str
) -> None:
    edited(recipe_file, old, new)
    error = refused(recipe_file)
    assert error.where == line_of(recipe_file, new.splitlines()[-1])
    assert error.what.startswith(what)
    assert error.fix == fix


def test_a_stage_that_makes_something_else_is_refused(recipe_file: Path) -> None:
    with recipe_file.open("a") as file:
        file.write('\n[[stage]]\nname = "last"\nkind = "train"\nfrom = "check"\nteacher = "second"\n')
    error = refused(recipe_file)
    assert error.what == "from: stage 'check' makes no model but an artifact of kind 'evaluation'"
    assert error.where == line_of(recipe_file, 'from = "check"')
    assert error.fix == "refer to a stage above it that makes a model or verdict: first, second"


def test_a_reference_to_a_stage_of_unknown_kind_is_no_second_mistake(recipe_file: Path) -> None:
    edited(recipe_file, 'kind = "train"', 'kind = "trian"')
    assert refused(recipe_file).what == "unknown kind of stage 'trian'"


def test_a_combination_that_can_not_work_is_shown_at_its_stage(recipe_file: Path) -> None:
    error = refused(recipe_file, "second.teacher=first", "second.steps=101")
    assert error.what == "a teacher has no patience for more than 100 steps"
    assert error.where == f"{recipe_file}:14"


def test_two_stages_can_not_share_a_name(recipe_file: Path) -> None:
    edited(recipe_file, 'name = "check"', 'name = "first"')
    error = refused(recipe_file)
    assert error.what == "two stages are named 'first'"
    assert error.where == f"{recipe_file}:21"


def test_a_missing_key_is_shown_at_its_stage(recipe_file: Path) -> None:
    edited(recipe_file, 'from = "second"\n', "")
    error = refused(recipe_file)
    assert error.what == "the key 'from' is missing"
    assert error.where == f"{recipe_file}:20"


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("frist", "missing model: 'frist' is no earlier stage, no shipped base and no directory"),
        ("check", "stage 'check' has not run at this point"),  # it comes later
        ("second", "stage 'second' has not run at this point"),  # itself
    ],
)
def test_references_must_lead_back(recipe_file: Path, reference: str, what: str) -> None:
    edited(recipe_file, 'from = "first"', f'from = "{reference}"')
    error = refused(recipe_file)
    assert error.what.startswith(f"from: {what}")
    assert error.where == line_of(recipe_file, f'from = "{reference}"')
    assert "first" in error.fix


def test_a_directory_without_a_model_is_refused(recipe_file: Path, base: Path) -> None:
    (base / "config.json").unlink()
    assert "holds no config.json" in refused(recipe_file).what


def test_all_mistakes_are_told_at_once(recipe_file: Path) -> None:
    edited(recipe_file, "steps = 3", "stepz = 3")
    edited(recipe_file, 'kind = "measure"', 'kind = "mesure"')
    message = str(refused(recipe_file))
    assert "2 mistakes" in message
    assert f"{recipe_file}:9: unknown key 'stepz' (did you mean 'steps'?)" in message
    assert f"{recipe_file}:22: unknown kind of stage 'mesure' (did you mean 'measure'?)" in message


def test_broken_toml_and_missing_files_are_mistakes_of_the_user(recipe_file: Path, tmp_path: Path) -> None:
    edited(recipe_file, "steps = 3", "steps = ")
    assert refused(recipe_file).where == f"{recipe_file}:9"
    assert "missing recipe" in refused(tmp_path / "nowhere.toml").what
    (tmp_path / "empty.toml").write_text("")
    assert "2 mistakes" in refused(tmp_path / "empty.toml").what  # no name and no stage
    (tmp_path / "single.toml").write_text('name = "x"\n[stage]\nname = "y"\n')
    assert refused(tmp_path / "single.toml").where == f"{tmp_path / 'single.toml'}:2"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("first.steps=7", {"steps": 7}),
        ("first.steps = 7", {"steps": 7}),
        ("first.text=word", {"text": "word"}),
        ('first.text="two words"', {"text": "two words"}),
        ("first.text='3'", {"text": "3"}),
        ("first.tasks.arithmetic-2=0.25", {"tasks": {"countdown": 0.5, "arithmetic-2": 0.25}}),
        ('first.tasks."with.dot"=1', {"tasks": {"countdown": 0.5, "with.dot": 1.0}}),
        ("first.tasks={a = 1, b = 2}", {"tasks": {"a": 1.0, "b": 2.0}}),
    ],
)
def test_overrides_are_toml_values_or_bare_words(recipe_file: Path, override: str, read: dict[str, Any]) -> None:
    settings = dict(load_recipe(str(recipe_file), [override]).nodes[0].settings)
    assert {key: settings[key] for key in read} == read


def test_later_overrides_win_and_the_seed_is_one(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["seed=3", "second.loss.clip=0.3", "second.steps=2", "second.steps=5"])
    assert recipe.seed == 3
    assert recipe.resolved()["stage"][1]["loss"]["clip"] == 0.3
    assert recipe.resolved()["stage"][1]["steps"] == 5


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ("frist.steps=7", "the recipe has no stage 'frist'", "did you mean 'first'?"),
        ("first.stepz=7", "unknown key 'stepz'", "did you mean 'steps'?"),
        ("first.loss.clop=7", "unknown key 'loss.clop'", "did you mean 'clip'?"),
        ("first.steps=many", "steps: Input should be a valid integer, got \"many\"", ""),
        ("sede=7", "unknown key 'sede'", "did you mean 'seed'?"),
        ("first.text.inner=7", "'text' is no table, so it has no key 'inner'", ""),
        ("first.steps", "the override can't be read", "write it as stage.key=value or seed=value"),
        ("first.steps=", "the override can't be read", "write it as stage.key=value or seed=value"),
        ("=7", "the override can't be read", "write it as stage.key=value or seed=value"),
        ("first.=7", "the override can't be read", "write it as stage.key=value or seed=value"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(recipe_file: Path, override: str, what: str, fix: str) -> None:
    error = refused(recipe_file, override)
    assert (error.what, error.where, error.fix) == (what, f"--set {override}", fix)


def test_a_value_of_several_words_needs_quotes(recipe_file: Path) -> None:
    assert "quote" in refused(recipe_file, "first.text=two words").fix
    assert "quote" in refused(recipe_file, "first.text=1\nsteps = 9").fix


def test_the_last_override_takes_the_blame(recipe_file: Path) -> None:
    edited(recipe_file, "countdown = 0.5", 'countdown = "much"')
    assert refused(recipe_file, 'first.tasks={countdown = "little"}').where.startswith("--set")


def test_until_names_a_stage(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert [node.settings.name for node in recipe.up_to("second")] == ["first", "second"]
    with pytest.raises(RecipeError) as caught:
        recipe.up_to("secnd")
    assert caught.value.fix == "did you mean 'second'?"


def test_places_are_found_whatever_the_toml_looks_like() -> None:
    text = (
        'text = """\nsteps = 1\n[[stage]]\n"""\n'  # lines 1 to 4: one value
        "list = [\n  1, # ]\n  2,\n]\n"  # lines 5 to 8
        "[[stage]]\n"  # 9
        '"quoted key" = 1\n'
        "[stage.tasks]\n"  # 11
        "a.b = 1\n"
        "[[stage]]\n"  # 13
        "inline = { c = 1 }\n"
        "[[stage.deep]]\n"  # 15
        "d = 1\n"
        "[[stage.deep]]\n"  # 17
        "d = 1\n"
    )
    origins = Origins(text, "f")
    assert origins.place(("text",)) == "f:1"
    assert origins.place(("list", 1)) == "f:5"
    assert origins.place(("stage", 0, "quoted key")) == "f:10"
    assert origins.place(("stage", 0, "tasks")) == "f:11"
    assert origins.place(("stage", 0, "tasks", "a", "b")) == "f:12"
    assert origins.place(("stage", 0, "unwritten")) == "f:9"
    assert origins.place(("stage", 1, "inline", "c")) == "f:14"
    assert origins.place(("stage", 1, "deep", 0, "d")) == "f:16"
    assert origins.place(("stage", 1, "deep", 1, "d")) == "f:18"
    assert origins.place(("nothing",)) == "f"


def key(path: Path, *overrides: str, seed: int = 0, base: str = "digest", stage: int = 0) -> str:
    node = load_recipe(str(path), overrides).nodes[stage]
    return stage_key(node, {"from": Input(path, base)}, seed)


def test_a_key_depends_on_settings_inputs_seed_and_code(recipe_file: Path, stages: Any) -> None:
    original = key(recipe_file)
    assert key(recipe_file) == original
    assert key(recipe_file, "first.steps=4") != original
    assert key(recipe_file, seed=1) != original
    assert key(recipe_file, base="other") != original
    source = stages.folder / "fake_train.py"
    source.write_text(source.read_text() + "# changed\n")
    assert key(recipe_file) != original


def test_a_key_depends_on_the_order_of_tasks_because_draws_do(recipe_file: Path) -> None:
    keys = {key(recipe_file, f"first.tasks={{{tasks}}}") for tasks in ("a = 1.0, b = 2.0", "b = 2.0, a = 1.0")}
    assert len(keys) == 2


def test_a_model_counts_by_its_content(base: Path) -> None:
    original = directory_digest(base)
    moved = base.rename(base.with_name("moved"))
    assert directory_digest(moved) == original
    (moved / "weights.txt").write_text("esab")
    changed = directory_digest(moved)
    assert changed != original
    (moved / "weights.txt").rename(moved / "weights.bin")
    assert directory_digest(moved) not in (original, changed)


@pytest.fixture
def rl_recipe(tmp_path: Path) -> Path:
    """A recipe of one real stage."""
    path = tmp_path / "real.toml"
    path.write_text(
        'name = "real"\n[[stage]]\nname = "first"\nkind = "rl"\nfrom = "tiny-base"\ntasks = { countdown = 1 }\n'
        "steps = 1\nschedule = { peak = 1e-3 }\n"
    )
    return path


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e308", "1e-40"])
@pytest.mark.parametrize(
    "key",
    [
        *(
            "schedule.peak",
            "schedule.final_share",
            "optimizer.epsilon",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
        ),
        *("optimizer.beta1", "sampling.temperature", "tasks.countdown", "rewards.accuracy", "max_ungraded"),
    ],
)
def test_numbers_that_can_not_be_computed_with_are_refused_where_they_are_written(
    rl_recipe: Path, key: str, number: str
) -> None:
    error = refused(rl_recipe, f"first.{key}={number}")
    assert error.where == f"--set first.{key}={number}"
    assert error.what.startswith(f"{key}: ")


@pytest.mark.parametrize("number", ["1e-30", "1e7", "-1"])
def test_a_temperature_that_logits_can_not_be_divided_by_is_refused(rl_recipe: Path, number: str) -> None:
    error = refused(rl_recipe, f"first.sampling.temperature={number}")
    assert error.where == f"--set first.sampling.temperature={number}"


def test_times_and_integers_have_bounds_too(recipe_file: Path) -> None:
    """Sockets and waits overflow beyond some thirty years, and TOML's integers have 64 bits."""
    assert "less than or equal to" in refused(recipe_file, "watchdog.sampling=1e300").what
    assert "is no integer of 64 bits" in refused(recipe_file, f"first.steps={2**63}").what
    load_recipe(str(recipe_file), [f"first.steps={2**63 - 1}"])


def test_code_of_models_is_one_setting_of_the_recipe(recipe_file: Path) -> None:
    assert not load_recipe(str(recipe_file)).trust_remote_code
    edited(recipe_file, 'name = "small"', 'name = "small"\ntrust_remote_code = true')
    trusting = load_recipe(str(recipe_file))
    assert trusting.trust_remote_code
    assert trusting.resolved()["trust_remote_code"]


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbf" + shipped_recipes()["tiny-base-weak"].read_bytes())
    marked, plain = load_recipe(str(path)), load_recipe("tiny-base-weak")
    assert [node.settings for node in marked.nodes] == [node.settings for node in plain.nodes]
