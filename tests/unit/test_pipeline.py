"""The pipeline: what runs and what is taken from the ledger, and what a run leaves behind."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import reasonmill.mill.showcase
import reasonmill.mill.space
from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.content import directory_digest
from reasonmill.errors import Interrupted, OutOfSpace, RecipeError, StoreError
from reasonmill.mill.artifacts import find_artifact, find_model
from reasonmill.mill.inputs import model_path
from reasonmill.mill.machine import machine_class
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.mill.planning import plan
from reasonmill.mill.report import write_report
from reasonmill.mill.summary import read_summary
from reasonmill.mill.thinking import split_thinking
from reasonmill.recipe.load import load_recipe
from reasonmill.store import disk
from reasonmill.store.disk import Operation
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import read_seal
from small_runs import run_once, stop_after

Run = Callable[..., RunResult]


@pytest.fixture
def run(recipe_file: Path, home_path: Path) -> Run:
    """Runs the small recipe with overrides, each time in a newly opened home."""
    return partial(run_once, recipe_file, home_path)


def cached(result: RunResult) -> list[bool]:
    return [stage.cached for stage in result.stages]


def times(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_a_run_makes_all_stages_and_its_directory(run: Run, stages: Any, home_path: Path) -> None:
    result = run()
    assert stages.calls == ["first", "second", "check"]
    assert cached(result) == [False, False, False]
    assert result.directory == home_path / "runs" / "small"
    model = result.directory / "model"
    assert {path.name: path.read_text() for path in model.iterdir()} == {"config.json": "{}", "weights.txt": "baseaaab"}
    summary = json.loads((result.directory / "summary.json").read_text())
    assert (summary["name"], summary["seed"]) == ("small", 0)
    assert [stage["name"] for stage in summary["stages"]] == ["first", "second", "check"]
    assert [stage["tokens"] for stage in summary["stages"]] == [30, 10, 0]
    assert summary["stages"][2]["metrics"] == {"length": len("baseaaab")}
    assert summary["model"] == summary["stages"][1]["digest"]
    assert {"reasonmill", "torch", "transformers", "threads", "machine"} <= summary.keys()
    assert [stage["machines"] for stage in summary["stages"]] == [[machine_class("cpu")]] * 3
    assert all(stage["repeatable"] for stage in summary["stages"])
    assert json.loads((result.directory / "recipe.json").read_text())["stage"][0]["text"] == "a"
    assert "<html" in (result.directory / "report.html").read_text()


def test_the_second_run_is_all_cache_hits_and_rewrites_nothing(run: Run, stages: Any) -> None:
    first = run()
    before = times(first.directory)
    assert stages.calls == ["first", "second", "check"]
    second = run()
    assert stages.calls == []
    assert cached(second) == [True, True, True]
    assert [stage.artifact for stage in second.stages] == [stage.artifact for stage in first.stages]
    assert [stage.seconds for stage in second.stages] == [stage.seconds for stage in first.stages]
    assert times(first.directory) == before


def test_a_changed_setting_reruns_its_stage_and_those_after_it(run: Run, stages: Any) -> None:
    run()
    assert stages.calls
    result = run("second.text=c")
    assert stages.calls == ["second", "check"]
    assert cached(result) == [True, False, False]
    assert (result.directory / "model" / "weights.txt").read_text() == "baseaaac"
    assert cached(run()) == [True, True, True]  # what was made before is still known
    assert (result.directory / "model" / "weights.txt").read_text() == "baseaaab"
    run("seed=1")
    assert stages.calls == ["first", "second", "check"]


def test_a_stage_whose_input_did_not_change_is_not_run_again(run: Run, stages: Any) -> None:
    run()
    assert stages.calls
    # Another way to the same weights: three times "a" or once "aaa".
    result = run("first.text=aaa", "first.steps=1")
    assert stages.calls == ["first"]
    assert cached(result) == [False, True, True]


def test_a_changed_base_reruns_everything(run: Run, stages: Any, base: Path) -> None:
    run()
    assert stages.calls
    (base / "weights.txt").write_text("esab")
    assert cached(run()) == [False, False, False]


def test_a_deleted_object_is_made_again(run: Run, stages: Any, home_path: Path) -> None:
    digest = run().stages[0].artifact.digest
    assert stages.calls
    shutil.rmtree(home_path / "objects" / digest)
    result = run()
    assert stages.calls == ["first"]
    assert cached(result) == [False, True, True]
    assert result.stages[0].artifact.digest == digest


def test_a_deleted_view_is_made_again_from_the_store(run: Run, stages: Any) -> None:
    directory = run().directory
    assert stages.calls
    shutil.rmtree(directory)
    run()
    assert stages.calls == []
    assert {path.name for path in directory.iterdir()} == {"model", "recipe.json", "summary.json", "report.html"}
    shutil.rmtree(directory / "model")
    run()
    assert (directory / "model" / "weights.txt").read_text() == "baseaaab"


def test_until_stops_after_a_stage(run: Run, stages: Any) -> None:
    result = run(until="first")
    assert stages.calls == ["first"]
    assert (result.directory / "model" / "weights.txt").read_text() == "baseaaa"
    with pytest.raises(RecipeError):
        run(until="frist")


def test_an_interrupted_stage_goes_on_at_its_last_state(run: Run, stages: Any, home_path: Path) -> None:
    # Looks: before "first", at its steps 0 and 1, and at step 2, where it stops.
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(3))
    assert stages.steps == ["first 0", "first 1"]
    result = run()
    assert stages.steps == ["first 2", "second 0"]
    assert (result.directory / "model" / "weights.txt").read_text() == "baseaaab"
    with Home.open(home_path) as home:
        assert all(home.ledger.states(stage.key) == [] for stage in result.stages)
        # The models and the evaluation; the states of the finished stages are gone.
        assert set(home.objects.digests()) == {stage.artifact.digest for stage in result.stages}


def test_a_state_that_two_stages_share_outlives_the_one_that_is_finished(run: Run, stages: Any) -> None:
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(3))
    # Another stage by its name, and so by its key, that goes through the same states to the same model.
    run("first.name=twin", "second.from=twin")
    assert stages.steps == ["first 0", "first 1", "twin 0", "twin 1", "twin 2", "second 0"]
    run()
    assert stages.steps == ["first 2"]  # what comes of this model is there, whichever stage made it


def test_a_model_directory_that_a_gate_left_in_place_is_found(recipe_file: Path, base: Path, home_path: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    with Home.open(home_path) as home:
        assert model_path(home, directory_digest(base), recipe) == base
        with pytest.raises(StoreError, match="the home has no object"):
            model_path(home, "0" * 64, recipe)


def test_a_run_that_was_stopped_between_stages_has_what_it_has(run: Run, stages: Any, home_path: Path) -> None:
    # Looks: before "first", at its three steps, and before "second".
    with pytest.raises(Interrupted, match="before stage 'second'"):
        run(stop_requested=stop_after(4))
    directory = home_path / "runs" / "small"
    assert (directory / "model" / "weights.txt").read_text() == "baseaaa"
    summary = read_summary(directory)
    assert summary is not None
    assert [stage["name"] for stage in summary["stages"]] == ["first"]
    assert (directory / "report.html").exists()


def test_a_second_ctrl_c_writes_nothing_more(run: Run, home_path: Path) -> None:
    run(until="first")
    before = (backups_of(home_path), times(home_path / "runs"))

    def raise_it() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop_requested=raise_it)
    seal = read_seal(home_path)
    assert seal is not None
    assert seal.ledger is None
    assert (backups_of(home_path), times(home_path / "runs")) == before
    assert cached(run()) == [True, False, False]


def backups_of(home_path: Path) -> list[str]:
    return sorted(path.name for path in (home_path / "backups").iterdir())


def test_the_ledger_knows_runs_and_parents(run: Run, home_path: Path) -> None:
    result = run()
    first, second, check = (stage.artifact for stage in result.stages)
    with Home.open(home_path, write=False) as home:
        (record,) = home.ledger.runs()
        assert [stage.name for stage in record.stages] == ["first", "second", "check"]
        assert check.parents == (second.digest,)
        assert second.parents == (first.digest,)
        base = home.ledger.artifact(first.parents[0])
        assert (base.kind, base.stage, base.parents) == ("base", "base", ())


def test_a_full_disk_stops_the_run_before_the_stage(run: Run, stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Home, "free_bytes", lambda home: 199_999_999)
    with pytest.raises(OutOfSpace, match="only 200 MB"):
        run()
    assert stages.calls == []


def full_disk(calls: int) -> Callable[..., None]:
    """What writes the report on a disk that is full so many times."""
    left = iter(range(calls))

    def write(*args: Any) -> None:
        if next(left, None) is not None:
            raise OutOfSpace("no space is left on the disk")
        write_report(*args)

    return write


def test_a_run_whose_views_do_not_fit_waits_for_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasonmill.mill.space, "RETRY_S", 0.0)
    monkeypatch.setattr(reasonmill.mill.showcase, "write_report", full_disk(2))
    assert (run().directory / "report.html").is_file()


def test_a_full_disk_does_not_hide_why_a_run_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reasonmill.mill.showcase, "write_report", full_disk(99))
        # Looks: before "first", at its three steps, and before "second".
        with pytest.raises(Interrupted, match="before stage 'second'"):
            run(stop_requested=stop_after(4))
    assert (run().directory / "report.html").is_file()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
def test_neither_a_full_nor_a_failing_disk_hides_that_a_stage_lacked_room(
    run: Run, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run(until="first").directory)

    def fail(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.name == "commit views":
            error = sqlite3.OperationalError("no views today")
            error.sqlite_errorcode = code
            raise error
        perform()

    with monkeypatch.context() as patch:
        patch.setattr(disk, "around", fail)
        patch.setattr(Home, "free_bytes", lambda home: 199_999_999)
        # Looks: before "second". A run that waited for room would be stopped at the next.
        with pytest.raises(OutOfSpace, match="only 200 MB"):
            run(stop_requested=stop_after(1))
    assert (run().directory / "report.html").is_file()


def test_deadlines_are_no_part_of_a_key(run: Run, stages: Any) -> None:
    run()
    assert stages.calls
    assert cached(run("watchdog.sampling=5")) == [True, True, True]


def test_the_plan_tells_what_is_known(recipe_file: Path, run: Run, home_path: Path, stages: Any) -> None:
    recipe = load_recipe(str(recipe_file))
    fresh = plan(recipe, None, None)
    assert [stage.status for stage in fresh] == ["to run", "unknown", "unknown"]
    assert [stage.waits_for for stage in fresh] == [(), ("first",), ("second",)]
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(3))
    with Home.open(home_path, write=False) as home:
        assert plan(recipe, home, None)[0].resumes_at == 2
    result = run(until="first")
    with Home.open(home_path, write=False) as home:
        planned = plan(recipe, home, None)
        assert [stage.status for stage in planned] == ["cached", "to run", "unknown"]
        assert planned[0].key == result.stages[0].key
    assert run().stages[1].key == planned[1].key


def test_artifacts_and_models_are_found(run: Run, home_path: Path, base: Path) -> None:
    first, _, check = (stage.artifact for stage in run().stages)
    with Home.open(home_path, write=False) as home:
        assert find_artifact(home, "small/first", print) == first
        assert find_artifact(home, first.digest[:10], print) == first
        with pytest.raises(RecipeError) as caught:
            find_artifact(home, "small/frist", print)
        assert caught.value.fix == "did you mean 'small/first'?"
    assert find_model(str(base), home_path, print) == base
    assert (find_model("small/second", home_path, print) / "weights.txt").read_text() == "baseaaab"
    assert (find_model(first.digest[:10], home_path, print) / "weights.txt").read_text() == "baseaaa"
    with pytest.raises(RecipeError, match="of kind 'evaluation'"):
        find_model(check.digest[:10], home_path, print)
    with pytest.raises(RecipeError, match="missing model"):
        find_model("small/second", home_path / "nowhere", print)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_thinking_is_told_apart_however_the_text_is_cut(size: int) -> None:
    text = "a <b <think>3 < 8</thi </think> so <answer>8</answer> <thin"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    parts = list(split_thinking(pieces))
    assert "".join(part for part, _ in parts) == text
    assert "".join(part for part, inside in parts if inside) == "<think>3 < 8</thi </think>"


def test_text_that_can_be_no_tag_is_not_held_back() -> None:
    pieces = iter(["one ", "two <", "x"])
    parts = split_thinking(pieces)
    assert next(parts) == ("one ", False)
    assert next(parts) == ("two ", False)
    assert next(parts) == ("<x", False)


# The machine


@pytest.fixture
def other_threads() -> Iterator[int]:
    """One thread more for the length of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield before + 1
    torch.set_num_threads(before)


def test_a_stage_that_goes_on_with_other_threads_says_so_and_keeps_both(
    run: Run, stages: Any, home_path: Path, recipe_file: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(2))
    before = machine_class("cpu")
    threads = request.getfixturevalue("other_threads")
    recorder = KeptProgress()
    with Home.open(home_path) as home:
        recipe = load_recipe(str(recipe_file), [])
        result = run_recipe(recipe, home, recorder, until=None, backend=BACKEND, stop_requested=lambda: False)
    now = machine_class("cpu")
    assert f"{threads} threads" in now
    assert [stage.machines for stage in result.stages] == [(before, now), (now,), (now,)]
    said = [note for note in recorder.notes if "cached" not in note]
    assert len(said) == 2
    assert said[0] == f"first  began on: {before}"
    assert now in said[1]


def test_a_stage_of_which_nothing_was_kept_has_one_machine_only(
    run: Run, home_path: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(Interrupted):
        run(stop_requested=stop_after(1))  # within the first stage, before its first step
    request.getfixturevalue("other_threads")
    assert [stage.machines for stage in run().stages] == [(machine_class("cpu"),)] * 3
