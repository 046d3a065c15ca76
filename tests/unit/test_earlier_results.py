"""What a run had finished stays to be found when it is begun with another recipe or other code, and ends early."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reasonmill.cli import main
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.mill.artifacts import find_artifact, find_model
from reasonmill.mill.pipeline import RunResult
from reasonmill.store.home import Home
from reasonmill.store.ledger_runs import RunRecord
from small_runs import run_once, stop_after

Run = Callable[..., RunResult]


@pytest.fixture
def run(recipe_file: Path, home_path: Path) -> Run:
    """Runs the small recipe with overrides, each time in a newly opened home."""
    return partial(run_once, recipe_file, home_path)


def record(home_path: Path) -> RunRecord:
    with Home.open(home_path, write=False) as home:
        (found,) = home.ledger.runs()
    return found


def names(stages: Any) -> list[str]:
    return [stage.name for stage in stages]


def shown(home_path: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The lines of `status` that are about stages, in words."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["status", "--home", str(home_path)])
    lines = capsys.readouterr().out.splitlines()
    return [line.split() for line in lines[2 : next(i for i, line in enumerate(lines) if line.startswith("disk: "))]]


def found(home_path: Path, text: str) -> tuple[str, list[str]]:
    """The digest of what `eval` and `lineage` take for this, and what they say of it."""
    notes: list[str] = []
    with Home.open(home_path, write=False) as home:
        return find_artifact(home, text, notes.append).digest, notes


def test_a_failed_rerun_leaves_finished_results_visible(
    run: Run, home_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, check = (stage.artifact.digest for stage in run().stages)
    with pytest.raises(Interrupted):
        run("second.text=c", "second.steps=3", stop_requested=stop_after(2))  # before "second", and at its step 0
    now = record(home_path)
    assert (names(now.stages), names(now.earlier)) == (["first", "second"], ["second", "check"])

    lines = shown(home_path, capsys)
    assert lines[0][:3] == ["first", "train", "finished"]
    assert first[:12] in lines[0]
    assert lines[1] == ["second", "train", "at", "step", "1", "of", "3", second[:12]]
    assert lines[2] == ["check", "measure", "open", check[:12]]

    assert found(home_path, "small/first") == (first, [])
    digest, (note,) = found(home_path, "small/second")
    assert digest == second
    assert note == (
        f"small/second is not finished with the present recipe and code: this is its earlier result, {second[:12]}"
    )
    assert found(home_path, "small/check")[0] == check
    notes: list[str] = []
    assert (find_model("small/second", home_path, notes.append) / "weights.txt").read_text() == "baseaaab"
    assert notes == [note]


def test_an_earlier_result_goes_when_the_stage_is_finished_again(run: Run, home_path: Path) -> None:
    run()
    second = run("second.text=c").stages[1].artifact.digest
    now = record(home_path)
    assert (names(now.stages), names(now.earlier)) == (["first", "second", "check"], [])
    assert found(home_path, "small/second") == (second, [])
    # The last result is the one that is kept, and not the first.
    with pytest.raises(Interrupted):
        run("second.text=d", stop_requested=stop_after(1))
    assert found(home_path, "small/second")[0] == second
    run("second.text=c")  # changed back
    assert record(home_path).earlier == ()
    assert found(home_path, "small/second") == (second, [])


def test_other_code_leaves_earlier_results_too(
    run: Run, home_path: Path, other_code: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    digests = [stage.artifact.digest for stage in run().stages]
    other_code("new")
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(2))  # before "first", and at its step 0
    now = record(home_path)
    assert (names(now.stages), names(now.earlier)) == (["first"], ["first", "second", "check"])
    assert [line[-1] for line in shown(home_path, capsys)] == [digest[:12] for digest in digests]
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(2))  # once more: nothing is lost by it
    assert record(home_path) == now
    assert [found(home_path, f"small/{name}")[0] for name in ("first", "second", "check")] == digests


def test_a_stage_that_the_recipe_has_no_more_is_shown_as_such(
    run: Run, home_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = run().stages[1].artifact.digest
    run("second.name=other", "check.from=other")
    assert shown(home_path, capsys)[-1] == ["second", "train", "no", "longer", "in", "the", "recipe", second[:12]]
    assert found(home_path, "small/second")[0] == second


def test_a_stage_that_was_never_finished_has_no_result(run: Run, home_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(2))
    with pytest.raises(RecipeError, match="'small/first' is not finished"):
        found(home_path, "small/first")


def test_what_earlier_results_were_made_with_stays_known(run: Run, home_path: Path) -> None:
    key = run().stages[1].key
    with pytest.raises(Interrupted):
        run("second.text=c", "seed=5", stop_requested=stop_after(1))
    made_with = record(home_path).made_with(key)
    assert made_with is not None
    assert (made_with.seed, made_with.settings["text"]) == (0, "b")
    assert record(home_path).made_with("unknown") is None
    assert "earlier" not in record(home_path).recipe
