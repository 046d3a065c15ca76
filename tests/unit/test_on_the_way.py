"""What a stage makes on its way: a held-out curve, an early end, and models that can be named."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from contexts import BACKEND, a_context
from kept_progress import KeptProgress, Killed
from reasonmill.algo.early_end import has_stalled
from reasonmill.content import directory_digest
from reasonmill.errors import RecipeError
from reasonmill.mill.artifacts import find_model
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.mill.workload import LIKELY, Upstream, workload
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.reference import StageSource, model_directory
from reasonmill.stage import Input, Outcome
from reasonmill.stages.curve import CurveSettings
from reasonmill.stages.rl import Settings, run
from reasonmill.store.garbage import collect_garbage
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home

GIVEN: dict[str, Any] = {
    "name": "zero",
    "kind": "rl",
    "from": "tiny-base-weak",
    "steps": 4,
    "problems_per_step": 2,
    "group_size": 4,
    "state_every": 3,
    "rewards": {"random": 1.0},
    "tasks": {"countdown-3": 1.0},
    "schedule": {"peak": 1e-3},
    "sampling": {"max_tokens": 8},
}
CURVE = {"every": 2, "tasks": {"countdown-3": 3, "arithmetic": 2}, "samples": 2}
WATCHED: dict[str, Any] = {"curve": CURVE, "models_every": 2, "alarm": {"verifier": "accuracy"}}


def settings(**changes: Any) -> Settings:
    return Settings.model_validate({**GIVEN, **changes})


def train(home: Home, key: str, progress: KeptProgress | None = None, **changes: Any) -> Outcome:
    inputs = {"from": Input(model_directory("tiny-base-weak"), "digest")}
    return run(settings(**changes), inputs, a_context(home, progress, key=key))


def rows_of(home: Home, key: str) -> list[dict[str, Any]]:
    """The metrics of all steps, without times."""
    return [
        {name: value for name, value in row.items() if not name.startswith("speed/")}
        for row in home.ledger.metrics(key)
    ]


def weights_of(outcome: Outcome, target: Path) -> str:
    target.mkdir()
    outcome.write(target)
    return directory_digest(target)


def model_at(home: Home, key: str, step: int) -> str:
    return home.ledger.intermediates(key)[step].digest


# The loop


@pytest.mark.parametrize(
    ("points", "patience", "stalled"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6, 0.4], 1, True),
        ([0.5, 0.6, 0.4], 2, False),
        ([0.5, 0.6, 0.4, 0.6], 2, True),
        ([0.5, 0.6, 0.4, 0.7], 2, False),
    ],
)
def test_a_curve_has_stalled_without_a_new_best(points: list[float], patience: int, stalled: bool) -> None:
    assert has_stalled(points, patience) == stalled


def test_what_is_watched_moves_no_bit_and_is_restored_after_a_kill(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        plain = train(home, "plain")
        whole = train(home, "whole", **WATCHED)
        with pytest.raises(Killed):
            train(home, "cut", KeptProgress(kill_at=4), **WATCHED)
        cut = train(home, "cut", **WATCHED)
        assert weights_of(plain, tmp_path / "a") == weights_of(whole, tmp_path / "b") == weights_of(cut, tmp_path / "c")
        assert home.ledger.steps("plain") == home.ledger.steps("whole") == home.ledger.steps("cut")
        assert rows_of(home, "whole") == rows_of(home, "cut")
        for alone, watched in zip(rows_of(home, "plain"), rows_of(home, "whole"), strict=True):
            assert {name: watched[name] for name in alone} == alone
        kept = {str(n): model_at(home, "whole", n) for n in (2, 4)}
        assert whole.metrics["kept_models"] == cut.metrics["kept_models"] == kept
        points = [("held_out_start/accuracy" in row, "held_out/accuracy" in row) for row in rows_of(home, "whole")]
        assert points == [(True, False), (False, True), (False, False), (False, True)]
        row = rows_of(home, "whole")[1]
        assert row["held_out/low"] <= row["held_out/accuracy"] <= row["held_out/high"]
        assert row["held_out/accuracy"] == pytest.approx(
            0.6 * row["held_out/countdown-3"] + 0.4 * row["held_out/arithmetic"]
        )
        assert 10 <= row["held_out/tokens"] <= 80
        asked = sum(
            row[f"held_out{which}/tokens"]
            for row in rows_of(home, "whole")
            for which in ("", "_start")
            if f"held_out{which}/tokens" in row
        )
        assert whole.tokens - asked == plain.tokens


def test_a_stage_ends_early_where_its_curve_has_stalled_also_when_it_resumes(tmp_path: Path) -> None:
    """One token is no right answer, so that no point is better than the first."""
    changes: dict[str, Any] = {
        "sampling": {"max_tokens": 1},
        "curve": {"every": 1, "tasks": {"arithmetic": 1}, "patience": 2},
    }
    with Home.open(tmp_path / "home") as home:
        whole, notes = train(home, "whole", progress := KeptProgress(), **changes), progress.notes
        assert "zero ends early, after 2 of 4 steps" in notes
        assert [step for step, _ in home.ledger.steps("whole")] == [0, 1]
        with pytest.raises(Killed):
            train(home, "cut", KeptProgress(kill_at=2), state_every=1, **changes)
        cut = train(home, "cut", state_every=1, **changes)
        assert rows_of(home, "cut") == rows_of(home, "whole")
        assert weights_of(cut, tmp_path / "a") == weights_of(whole, tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"models_every": 5}, "no model would be kept"),
        ({"curve": {**CURVE, "every": 5}}, "no point but the first"),
        ({"curve": {**CURVE, "split": "train"}}, "dev"),
        ({"curve": {**CURVE, "tasks": {"nothing": 1}}}, "unknown task"),
    ],
)
def test_what_would_have_no_effect_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        settings(**changes)


def test_estimates_count_what_the_curve_asks() -> None:
    plain, watched = (workload(settings(**changes), Upstream(LIKELY)) for changes in ({}, {"curve": CURVE}))
    assert plain is not None
    assert watched is not None
    # Three points of five problems with two answers, each a quarter of 8 tokens long.
    assert watched.sampled - plain.sampled == 3 * 5 * 2 * 2
    assert CurveSettings.model_validate(CURVE).num_points(5) == 3


# Recipes

RECIPE = """
name = "way"

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base-weak"
steps = 4
problems_per_step = 2
group_size = 4
state_every = 3
models_every = 2
rewards = { random = 1.0 }
tasks = { countdown-3 = 1.0 }
schedule = { peak = 1e-3 }
sampling = { max_tokens = 8 }

[[stage]]
name = "middle"
kind = "evaluate"
from = "zero@2"
tasks = { arithmetic = 2 }
samples = 1
sampling = { max_tokens = 4 }
"""

Run = Callable[..., RunResult]


def run_in(
    home: Path,
    recipe: Path,
    *overrides: str,
    until: str | None = None,
    repair: bool = False,
    progress: KeptProgress | None = None,
) -> RunResult:
    with Home.open(home) as opened:
        return run_recipe(
            load_recipe(str(recipe), overrides),
            opened,
            progress or KeptProgress(),
            until=until,
            backend=BACKEND,
            stop_requested=lambda: False,
            repair=repair,
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("way")
    (folder / "way.toml").write_text(RECIPE)
    run_in(folder / "home", folder / "way.toml")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


pytestmark = pytest.mark.usefixtures("without_charts")


def models_of(folder: Path) -> Mapping[str, str]:
    with Home.open(folder / "home", write=False) as home:
        (found,) = [stage.artifact.metrics["kept_models"] for stage in home.ledger.stages() if stage.name == "zero"]
    models: Mapping[str, str] = found
    return models


def test_a_model_on_the_way_is_read_by_later_stages_and_by_name(folder: Path) -> None:
    models, home_path = models_of(folder), folder / "home"
    recipe = load_recipe(str(folder / "way.toml"))
    assert recipe.nodes[1].sources["from"] == StageSource("zero", 2)
    find = partial(find_model, home_path=home_path, note=print)
    assert find("way/zero@2").name == models["2"]
    assert find("way/zero@4") == find("way/zero")
    assert find("way/zero@2") != find("way/zero")
    with pytest.raises(RecipeError, match="no model 'way/zero@3'") as raised:
        find("way/zero@3")
    assert "2, 4" in raised.value.fix
    with Home.open(home_path, write=False) as home:
        (middle,) = [stage.artifact for stage in home.ledger.stages() if stage.name == "middle"]
        assert middle.parents == (models["2"],)
        (parent,) = home.ledger.parents(middle)
        assert parent.stage == "zero@2"
        assert [ancestor.stage for ancestor in home.ledger.parents(parent)] == ["tiny-base-weak"]
    assert len(collect_garbage(home_path, last_states=True).states) == 1
    assert find("way/zero@2").is_dir()
    assert verify_home(home_path).problems == ()


def test_a_damaged_model_on_the_way_is_rebuilt_when_it_is_used(folder: Path) -> None:
    models, home = models_of(folder), folder / "home"
    (home / "objects" / models["2"] / "model.safetensors").write_bytes(b"rot")
    assert all(stage.cached for stage in run_in(home, folder / "way.toml").stages)  # nothing needs it
    assert [s.cached for s in run_in(home, folder / "way.toml", "middle.samples=2").stages] == [False, False]
    assert models_of(folder) == models
    shutil.rmtree(home / "objects" / models["2"])
    assert [s.cached for s in run_in(home, folder / "way.toml", "middle.samples=2", repair=True).stages] == [
        False,
        True,
    ]
    assert (home / "objects" / models["2"]).is_dir()
    assert models_of(folder) == models


def test_more_steps_keep_the_models_of_the_shorter_stage(folder: Path) -> None:
    shorter, progress = models_of(folder), KeptProgress()
    run_in(folder / "home", folder / "way.toml", "zero.steps=6", until="zero", progress=progress)
    assert any("resumes after step 4" in note for note in progress.notes)
    with Home.open(folder / "home", write=False) as home:
        longer = max((s.artifact.metrics["kept_models"] for s in home.ledger.stages() if s.name == "zero"), key=len)
    assert [*longer] == ["2", "4", "6"]
    assert shorter == {step: longer[step] for step in ("2", "4")}


def test_a_model_of_a_stage_that_goes_on_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "way.toml").write_text(RECIPE)
    with pytest.raises(Killed):
        run_in(tmp_path / "home", tmp_path / "way.toml", progress=KeptProgress(kill_at=3))
    assert find_model("way/zero@2", tmp_path / "home", print).is_dir()
    with pytest.raises(RecipeError, match="not finished"):
        find_model("way/zero", tmp_path / "home", print)


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ('middle.from="zero@3"', "keeps no model after 3 steps", "after 2, 4 steps"),
        ('middle.from="zero@x"', "names no step", "zero@120"),
        ('middle.from="zer@2"', "missing model", "did you mean 'zero'"),
        ('zero.from="zero@2"', "has not run at this point", "move"),
    ],
)
def test_a_model_that_is_never_kept_is_refused(folder: Path, override: str, what: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=what) as raised:
        load_recipe(str(folder / "way.toml"), [override])
    assert fix in raised.value.fix


def test_a_stage_that_ended_before_its_model_was_due_says_so(tmp_path: Path) -> None:
    (tmp_path / "way.toml").write_text(RECIPE)
    early = "zero.curve={every=1, tasks={arithmetic=1}, patience=1}"
    with pytest.raises(RecipeError, match="ended before it had taken 4 steps") as raised:
        run_in(tmp_path / "home", tmp_path / "way.toml", early, "zero.sampling.max_tokens=1", 'middle.from="zero@4"')
    assert "none" in raised.value.fix
