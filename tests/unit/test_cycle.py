"""Generations: which stages are repeated under which names, what their references become, and who teaches whom."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.errors import RecipeError
from reasonmill.mill.artifacts import find_model
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.reference import DirectorySource, StageSource
from reasonmill.store.home import Home

# "gate" promotes the longer text; like the real one it compares evaluations only.
GATE = """
from typing import Literal

from reasonmill.recipe.reference import EvaluationRef, ModelRef
from reasonmill.stage import ArtifactKind, Outcome, StageSettings

MAKES: ArtifactKind = "verdict"


class Settings(StageSettings):
    kind: Literal["gate"]
    candidate: ModelRef
    candidate_eval: EvaluationRef
    parent: ModelRef
    parent_eval: EvaluationRef


def run(settings, inputs, context):
    lengths = {role: int((inputs[f"{role}_eval"].path / "length").read_text()) for role in ("candidate", "parent")}
    promoted = lengths["candidate"] > lengths["parent"]
    model = inputs["candidate" if promoted else "parent"].digest
    content = f"{settings.name} {lengths}"
    return Outcome(
        lambda directory: (directory / "verdict").write_text(content), {"promoted": promoted, "model": model}
    )
"""


@pytest.fixture
def cycle_file(tmp_path: Path, stages: Any, base: Path) -> Path:
    """base -> zero, whose data makes draft and then final; `side` has nothing to do with it."""
    stages.offer("gate", GATE)
    path = tmp_path / "cycle.toml"
    path.write_text(f"""name = "cycle"
result = "gate"

[cycle]
generations = 3
teacher = "zero"
gate = "gate"

[[stage]]
name = "side"
kind = "train"
from = "{base}"

[[stage]]
name = "zero"
kind = "train"
from = "{base}"
text = "z"

[[stage]]
name = "zero-eval"
kind = "measure"
from = "zero"

[[stage]]
name = "draft"
kind = "train"
from = "{base}"
teacher = "zero"
text = "d"

[[stage]]
name = "final"
kind = "train"
from = "draft"
text = "f"

[[stage]]
name = "final-eval"
kind = "measure"
from = "final"

[[stage]]
name = "gate"
kind = "gate"
candidate = "final"
candidate_eval = "final-eval"
parent = "zero"
parent_eval = "zero-eval"
""")
    return path


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def refused(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    return caught.value


def line_of(path: Path, text: str) -> str:
    return f"{path}:{path.read_text().splitlines().index(text) + 1}"


def names(recipe: Recipe) -> list[str]:
    return [node.settings.name for node in recipe.nodes]


def reads(recipe: Recipe, stage: str) -> dict[str, str | None]:
    """The stages that a stage reads by key; None for a directory."""
    (node,) = (node for node in recipe.nodes if node.settings.name == stage)
    return {key: source.stage if isinstance(source, StageSource) else None for key, source in node.sources.items()}


FIRST = ["side", "zero", "zero-eval", "draft", "final", "final-eval", "gate"]
REPEATED = ["zero-eval", "draft", "final", "final-eval", "gate"]


def test_what_depends_on_the_teacher_is_repeated(cycle_file: Path) -> None:
    recipe = load_recipe(str(cycle_file))
    assert names(recipe) == [*FIRST, *(f"{name}-g{generation}" for generation in (2, 3) for name in REPEATED)]


def test_the_gate_before_takes_the_place_of_the_teacher(cycle_file: Path) -> None:
    recipe = load_recipe(str(cycle_file))
    assert reads(recipe, "draft") == {"from": None, "teacher": "zero"}
    assert reads(recipe, "draft-g2") == {"from": None, "teacher": "gate"}
    assert reads(recipe, "draft-g3") == {"from": None, "teacher": "gate-g2"}
    assert reads(recipe, "final-g3") == {"from": "draft-g3"}
    assert reads(recipe, "zero-eval-g3") == {"from": "gate-g2"}
    assert reads(recipe, "gate-g3") == {
        "candidate": "final-g3",
        "candidate_eval": "final-eval-g3",
        "parent": "gate-g2",
        "parent_eval": "zero-eval-g3",
    }


def test_the_result_is_that_of_the_last_generation(cycle_file: Path) -> None:
    assert load_recipe(str(cycle_file)).result == "gate-g3"
    assert load_recipe(str(cycle_file), ["result=side"]).result == "side"


def test_one_generation_is_the_recipe_without_a_cycle(cycle_file: Path) -> None:
    one = load_recipe(str(cycle_file), ["cycle.generations=1"])
    edited(cycle_file, '[cycle]\ngenerations = 3\nteacher = "zero"\ngate = "gate"\n', "")
    plain = load_recipe(str(cycle_file))
    assert one.resolved() == plain.resolved()
    assert [node.sources for node in one.nodes] == [node.sources for node in plain.nodes]
    assert names(one) == FIRST


def test_the_first_parent_may_be_older_than_the_teacher(cycle_file: Path, base: Path) -> None:
    edited(cycle_file, 'parent = "zero"\nparent_eval = "zero-eval"', f'parent = "{base}"\nparent_eval = "base-eval"')
    edited(
        cycle_file,
        '[[stage]]\nname = "side"',
        f'[[stage]]\nname = "base-eval"\nkind = "measure"\nfrom = "{base}"\n\n[[stage]]\nname = "side"',
    )
    recipe = load_recipe(str(cycle_file))
    assert reads(recipe, "base-eval-g2") == {"from": "gate"}
    assert reads(recipe, "gate-g2")["parent"] == "gate"
    assert reads(recipe, "gate-g2")["parent_eval"] == "base-eval-g2"
    # Other stages that begin with the base go on doing so.
    (draft,) = (node for node in recipe.nodes if node.settings.name == "draft-g2")
    assert draft.sources["from"] == DirectorySource(base)


def test_an_override_of_a_written_stage_counts_in_all_generations(cycle_file: Path) -> None:
    recipe = load_recipe(str(cycle_file), ["final-g2.text=second", "final.text=all", "final-g2.steps=4"])
    texts = {node.settings.name: dict(node.settings) for node in recipe.nodes}
    assert [texts[name]["text"] for name in ("final", "final-g2", "final-g3")] == ["all", "second", "all"]
    assert [texts[name]["steps"] for name in ("final", "final-g2", "final-g3")] == [1, 4, 1]


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ("final-g2.stepz=4", "unknown key 'stepz'", "did you mean 'steps'?"),
        ("final-g4.steps=4", "the recipe has no stage 'final-g4'", "did you mean 'final-g3'?"),
        ("side-g2.steps=4", "the recipe has no stage 'side-g2'", "did you mean 'side'?"),
        ("cycle.generations=0", "cycle.generations: Input should be greater than or equal to 1, got 0", ""),
        ("cycle.gates=gate", "unknown key 'cycle.gates'", "did you mean 'gate'?"),
    ],
)
def test_a_wrong_override_is_named(cycle_file: Path, override: str, what: str, fix: str) -> None:
    error = refused(cycle_file, override)
    assert (error.what, error.where, error.fix) == (what, f"--set {override}", fix)


def test_a_cycle_needs_its_teacher(recipe_file: Path) -> None:
    error = refused(recipe_file, "cycle.generations=2")
    assert "'cycle.teacher' is missing" in error.what


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('teacher = "zero"', 'teacher = "zeros"', "cycle.teacher: the recipe has no stage 'zeros'"),
        ('gate = "gate"', 'gate = "gates"', "cycle.gate: the recipe has no stage 'gates'"),
        ('gate = "gate"', 'gate = "final"', "cycle.gate: stage 'final' is of kind 'train', which promotes nothing"),
        ('teacher = "zero"', 'teacher = "side"', "cycle.teacher: the gate 'gate' does not depend on 'side'"),
        ('teacher = "zero"', 'teacher = "gate"', "cycle.teacher: the gate 'gate' does not depend on 'gate'"),
    ],
)
def test_a_cycle_that_can_not_be_is_shown_with_its_line(cycle_file: Path, old: str, new: str, what: str) -> None:
    edited(cycle_file, old, new)
    error = refused(cycle_file)
    assert error.what.startswith(what)
    assert error.where == line_of(cycle_file, new)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('parent = "zero"', 'parent = "draft"', "the gate's parent 'draft' is made within a generation"),
        ('parent = "zero"', 'parent = "side"', "'zero-eval', the gate's parent_eval, does not refer to its parent"),
    ],
)  # fmt: skip
def test_the_parent_is_what_a_generation_begins_with(cycle_file: Path, old: str, new: str, what: str) -> None:
    edited(cycle_file, old, new)
    error = refused(cycle_file)
    assert what in error.what
    assert error.where == line_of(cycle_file, 'gate = "gate"')


def test_a_mistake_in_a_repeated_stage_is_shown_where_it_was_written(cycle_file: Path, base: Path) -> None:
    with cycle_file.open("a") as file:
        file.write(f'\n[[stage]]\nname = "final-g2"\nkind = "train"\nfrom = "{base}"\n')
    error = refused(cycle_file)
    assert error.what == "two stages are named 'final-g2'"
    assert error.where == line_of(cycle_file, 'name = "final"')


# Runs


@pytest.fixture
def run(cycle_file: Path, tmp_path: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        with Home.open(tmp_path / "home") as home:
            recipe = load_recipe(str(cycle_file), overrides)
            return run_recipe(recipe, home, KeptProgress(), until=None, backend=BACKEND, stop_requested=lambda: False)

    return run


def test_a_verdict_stands_for_the_model_that_it_promoted(run: Callable[..., RunResult], tmp_path: Path) -> None:
    made = artifacts(run())
    assert (
        find_model("cycle/gate", tmp_path / "home", print).name == made["gate"].metrics["model"] == made["final"].digest
    )


def test_a_model_that_a_gate_left_outside_of_the_home_has_to_be_named(
    cycle_file: Path, base: Path, tmp_path: Path
) -> None:
    text = cycle_file.read_text()
    cycle_file.write_text('name = "plain"\n' + text[text.index("[[stage]]") :])
    overrides = [f'gate.parent="{base}"', "gate.parent_eval=final-eval", "gate.candidate_eval=zero-eval"]
    with Home.open(tmp_path / "home") as home:
        recipe = load_recipe(str(cycle_file), overrides)
        run_recipe(recipe, home, KeptProgress(), until=None, backend=BACKEND, stop_requested=lambda: False)
    with pytest.raises(RecipeError, match="not in this home: 'base'"):
        find_model("plain/gate", tmp_path / "home", print)


def artifacts(result: RunResult) -> dict[str, Any]:
    return {stage.name: stage.artifact for stage in result.stages}


def verdicts(result: RunResult) -> list[bool]:
    return [stage.artifact.metrics["promoted"] for stage in result.stages if stage.kind == "gate"]


def test_a_promoted_generation_teaches_the_next(run: Callable[..., RunResult]) -> None:
    result = run("final-g2.text=ff", "cycle.generations=2")
    made = artifacts(result)
    assert verdicts(result) == [True, True]
    assert made["draft"].parents[-1] == made["zero"].digest
    assert made["final"].digest in made["draft-g2"].parents
    assert result.summary["model"] == made["final-g2"].digest
    assert (result.directory / "model" / "weights.txt").read_text() == "basedff"


def test_a_refused_generation_leaves_the_last_promoted_model(run: Callable[..., RunResult]) -> None:
    # The second is as long as the first, which is not longer.
    result = run("final-g3.text=fff")
    made = artifacts(result)
    assert verdicts(result) == [True, False, True]
    assert made["final"].digest in made["draft-g3"].parents
    assert made["zero-eval-g3"].metrics == made["final-eval"].metrics
    result = run("final.text=''", "cycle.generations=2")
    made = artifacts(result)
    assert verdicts(result) == [False, False]
    assert made["zero"].digest in made["draft-g2"].parents
    assert result.summary["model"] == made["zero"].digest


def test_a_generation_more_runs_only_what_is_new(run: Callable[..., RunResult], stages: Any) -> None:
    run("cycle.generations=2")
    assert stages.calls
    run("cycle.generations=3", "final-g3.text=fff")
    assert stages.calls == ["zero-eval-g3", "draft-g3", "final-g3", "final-eval-g3"]
