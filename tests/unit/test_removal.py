"""`rm`: what goes with a run, what stays because another one refers to it, and what `status` says of both."""

import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from command_line import Call
from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk
from reasonmill.store.commit import replace_directory, replace_file
from reasonmill.store.disk import Operation
from reasonmill.store.garbage import collect_garbage
from reasonmill.store.home import Home
from reasonmill.store.ledger import ADOPTED, AT_STEP, OF_STAGE
from reasonmill.store.looking import size_below
from reasonmill.store.removal import look_for_runs, remove_runs
from reasonmill.store.usage import usage
from reasonmill.store.verification import verify_home
from reasonmill.store.views import view_digests
from reasonmill.types import Artifact
from small_homes import digest_of, put, texts
from small_runs import run_once


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Two runs, "one" and "two", which share the stage "start"; each has one more, made from it."""
    with Home.open(tmp_path / "home") as home:
        for name in ("one", "two"):
            begin(home, name, ["start", name])
            if name == "one":
                finish(home, name, "start", steps=2)
            finish(home, name, name, ("start",), steps=1)
            show(home, name)
        yield home


def begin(home: Home, run: str, stages: Sequence[str], *, recipe: Sequence[str] | None = None, seed: int = 0) -> None:
    """Begins a run of these stages, whose keys are made of their names; its recipe has them, or these."""
    settings = [{"name": name, "kind": "rl"} for name in recipe or stages]
    home.ledger.begin_run(run, {"seed": seed, "stage": settings}, [(name, "rl", f"k-{name}") for name in stages])


def finish(
    home: Home, run: str, name: str, parents: Sequence[str] = (), *, steps: int = 0, adopted: object = None
) -> None:
    """Commits a stage and the groups of its steps; its parents are the objects with these texts."""
    for step in range(steps):
        home.ledger.commit_step(f"k-{name}", step, put(home, f"groups {step} of {name}"))
    digests = tuple(digest_of(home, parent) for parent in parents)
    made = Artifact(put(home, name), "model", name, digests, "", {ADOPTED: adopted} if adopted else {})
    home.ledger.begin_stage(f"k-{name}", "a machine")
    home.ledger.commit_stage(key=f"k-{name}", run=run, name=name, kind="rl", artifact=made, seconds=1.0, tokens=1)


def outside(home: Home, text: str) -> str:
    """An object that was imported, such as a converted base."""
    digest = put(home, text)
    home.ledger.register(Artifact(digest, "base", text, (), "", {}))
    return digest


def show(home: Home, run: str) -> None:
    directory = home.run_dir(run)
    replace_directory(directory / "model", home.objects.path(digest_of(home, run)))
    replace_file(directory / "summary.json", b"{}")
    home.ledger.record_views(run, view_digests(directory))


def left(path: Path) -> set[str]:
    """The objects of a home in which nothing is wrong, nothing is garbage, and nothing is missing."""
    assert verify_home(path).problems == ()
    assert collect_garbage(path).objects == ()
    with Home.open(path, write=False) as home:
        return texts(home)


OF_START = {"start", "groups 0 of start", "groups 1 of start"}
OF_TWO = {"two", "groups 0 of two"}


def test_what_another_run_has_stays_and_all_else_goes(home: Home) -> None:
    home.ledger.commit_state("k-one", 1, put(home, "state of one"))
    home.ledger.commit_step("k-one/verdicts", 0, put(home, "verdicts on one"))
    put(home, "stray")
    home.close()
    taken = size_below(home.path / "objects") + size_below(home.path / "runs" / "one")
    planned = look_for_runs(home.path, ["one"])
    assert planned.num_bytes_garbage > len("stray")
    assert [(it.run, it.what, it.readers) for it in planned.staying] == [("one", "start", ("two",))]
    assert "state of one" in texts(home)

    assert remove_runs(home.path, ["one"]) == planned
    assert left(home.path) == OF_START | OF_TWO
    now = size_below(home.path / "objects") + size_below(home.path / "runs" / "one")
    assert taken - now == planned.num_bytes + planned.num_bytes_garbage
    assert sorted(os.listdir(home.path / "runs")) == ["two"]
    with Home.open(home.path, write=False) as again:
        assert [run.name for run in again.ledger.runs()] == ["two"]
        assert {stage.key: stage.run for stage in again.ledger.stages()} == {"k-start": "two", "k-two": "two"}
        assert again.ledger.known_keys() == ["k-start", "k-two"]
        assert again.ledger.machines("k-start") == ("a machine",)


def test_nothing_is_left_of_the_last_runs(home: Home) -> None:
    outside(home, "base of one")
    home.ledger.commit_state("k-abandoned", 1, put(home, "state of a stage that no run has"))
    home.close()
    remove_runs(home.path, ["two", "one"])
    assert left(home.path) == set()
    assert os.listdir(home.path / "runs") == []
    with Home.open(home.path) as again:
        assert (again.ledger.runs(), again.ledger.makings(), again.ledger.known_keys()) == ([], [], [])
        begin(again, "one", ["start"])
        finish(again, "one", "start")
    assert left(home.path) == {"start"}


def test_what_a_result_that_stays_was_made_from_stays(home: Home) -> None:
    finish(home, "two", "three", ("one",))
    begin(home, "two", ["start", "two", "three"])
    home.close()
    found = remove_runs(home.path, ["one"])
    assert {(it.what, it.readers) for it in found.staying} == {("start", ("two",)), ("one", ("two",))}
    assert left(home.path) == OF_START | OF_TWO | {"three", "one"}  # and not the groups of "one"
    begun = Home.open(home.path)
    begin(begun, "new", ["new"])
    begun.close()
    remove_runs(home.path, ["two"])
    assert left(home.path) == set()


def test_an_adopted_result_keeps_the_steps_it_was_made_with(home: Home) -> None:
    origin = {"key": "k-one", "run": "one"}
    kept = Artifact(put(home, "one on its way"), "model", "one@1", (), "", {OF_STAGE: "k-one", AT_STEP: 1})
    home.ledger.register(kept)
    begin(home, "two", ["start", "two", "taken"])
    finish(home, "two", "taken", ("start",), adopted=origin)
    home.close()
    (of_one,) = [it for it in remove_runs(home.path, ["one"]).staying if it.what == "one"]
    assert of_one.readers == ("two",)
    assert left(home.path) == OF_START | OF_TWO | {"taken", "one", "groups 0 of one", "one on its way"}
    with Home.open(home.path, write=False) as again:
        taken = again.ledger.stage("k-taken")
        assert taken is not None
        assert (taken.machines, len(again.ledger.steps(taken.log_key))) == (("a machine",), 1)
        assert list(again.ledger.intermediates("k-one")) == [1]


def test_earlier_results_go_with_their_run_and_stay_with_it(home: Home) -> None:
    begin(home, "one", ["start", "changed"], recipe=["start", "changed"], seed=1)  # "one" is an earlier result now
    begin(home, "two", ["start", "one"], seed=1)  # as is "two", and "one" is shared
    home.ledger.begin_run("two", {"seed": 2, "stage": []}, [("start", "rl", "k-start"), ("one", "rl", "k-other")])
    other = Artifact(put(home, "other"), "model", "one", (), "")  # in its place: it may still be adopted or come back
    home.ledger.commit_stage(key="k-other", run="two", name="one", kind="rl", artifact=other, seconds=1.0, tokens=1)
    home.close()
    remove_runs(home.path, ["one"])
    assert left(home.path) == OF_START | OF_TWO | {"one", "groups 0 of one", "other"}
    with Home.open(home.path, write=False) as again:
        (two,) = again.ledger.runs()
        assert ([stage.name for stage in two.earlier], list(two.recorded)) == (["two"], ["k-two", "k-one"])
    begun = Home.open(home.path)
    begin(begun, "new", ["new"])
    begun.close()
    remove_runs(home.path, ["two"])
    assert left(home.path) == set()


def test_a_model_that_an_unfinished_evaluation_asks_stays(home: Home) -> None:
    model = {"path": str(home.path / "objects" / digest_of(home, "one"))}
    home.ledger.begin_run("asks", {"models": {"model": model}, "stage": []}, [("eval", "evaluate", "k-eval")])
    home.close()
    assert ("one", ("asks",)) in {(it.what, it.readers) for it in remove_runs(home.path, ["one"]).staying}
    assert left(home.path) == OF_START | OF_TWO | {"one"}
    remove_runs(home.path, ["asks", "two"])
    assert left(home.path) == set()


def test_an_unfinished_run_goes_with_its_steps_and_keeps_what_it_may_read(home: Home) -> None:
    outside(home, "a base that was read")
    finish(home, "one", "last", ("a base that was read",))
    begin(home, "one", ["start", "one", "last"])
    begin(home, "begun", ["begun"])
    home.ledger.commit_step("k-begun", 0, put(home, "groups of begun"))
    home.ledger.commit_state("k-begun", 1, put(home, "state of begun"))
    # What says which file a package carries takes no room, and is needed to know a finished stage again.
    home.ledger.register(Artifact("0" * 64, "base", "a package", (), "", {"carries": "a file"}))
    home.close()
    (base,) = [it for it in remove_runs(home.path, ["one"]).staying if it.what != "start"]
    assert (base.what, base.readers) == ("what its stages were made from", ())
    assert left(home.path) == OF_START | OF_TWO | {"groups of begun", "state of begun", "a base that was read"}
    remove_runs(home.path, ["begun"])
    assert left(home.path) == OF_START | OF_TWO
    with Home.open(home.path, write=False) as again:
        assert "0" * 64 in {making.digest for making in again.ledger.makings()}


def test_what_no_run_is_recorded_with_stays_as_long_as_there_is_a_run(home: Home) -> None:
    home.ledger.commit_state("k-abandoned", 1, put(home, "state of a stage that no run has"))
    home.ledger.forget_stage("k-two")  # its artifact is of no stage then
    begin(home, "one", ["start", "one"], recipe=["start", "one"], seed=3)
    home.close()
    remove_runs(home.path, ["one"])
    assert left(home.path) == OF_START | OF_TWO | {"state of a stage that no run has"}


def test_objects_from_before_a_ledger_was_lost_stay(home: Home) -> None:
    home.close()
    with (home.path / "ledger.sqlite").open("r+b") as ledger:
        ledger.seek(80)
        ledger.write(b"x")
    with pytest.raises(StoreError, match="nothing was removed"):
        remove_runs(home.path, ["one"])
    Home.open(home.path).close()  # which puts the backup in its place
    found = remove_runs(home.path, ["one"])
    assert "one" in {it.what for it in found.staying}
    assert {"one", "groups 0 of one"} <= texts(home)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def fail(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.name == name:
            raise OSError(number, os.strerror(number), str(operation.path))
        perform()

    monkeypatch.setattr(disk, "around", fail)


def test_a_full_disk_leaves_the_run_whole_and_frees_what_needs_no_record(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts(home)
    stray = put(home, "stray")
    home.close()
    with monkeypatch.context() as patch:
        failing(patch, "commit removed runs", errno.ENOSPC)
        with pytest.raises(OutOfSpace, match="to record which runs are gone") as caught:
            remove_runs(home.path, ["one"])
    assert "elsewhere" in caught.value.fix
    assert not home.objects.exists(stray)
    assert left(home.path) == before
    with Home.open(home.path, write=False) as again:
        assert sorted(run.name for run in again.ledger.runs()) == ["one", "two"]


@pytest.mark.parametrize("name", ["rename deleted object", "rename old view directory", "unlink removed run"])
def test_the_same_call_ends_what_was_cut_off(home: Home, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    home.close()
    with monkeypatch.context() as patch:
        failing(patch, name, errno.EIO)
        with pytest.raises(StoreError, match="can't be read or written"):
            remove_runs(home.path, ["one"])
    assert verify_home(home.path).problems == ()
    with Home.open(home.path, write=False) as again:
        assert [run.name for run in again.ledger.runs()] == ["two"]
    remove_runs(home.path, ["one"])
    assert left(home.path) == OF_START | OF_TWO
    assert os.listdir(home.path / "runs") == ["two"]


def test_files_of_the_user_stay(home: Home, tmp_path: Path) -> None:
    directory = home.path / "runs" / "one"
    (directory / "notes.txt").write_text("mine")
    (home.path / "runs" / "two").rename(tmp_path / "elsewhere")
    (home.path / "runs" / "two").symlink_to(tmp_path / "elsewhere")
    home.close()
    assert [path.name for path in remove_runs(home.path, ["one"]).foreign] == ["notes.txt"]
    assert os.listdir(directory) == ["notes.txt"]
    with pytest.raises(StoreError, match="no run 'one'"):
        remove_runs(home.path, ["one"])
    remove_runs(home.path, ["two"])
    assert (tmp_path / "elsewhere" / "summary.json").exists()


def test_rm_waits_for_no_writer_and_knows_its_runs(home: Home) -> None:
    with pytest.raises(StoreError, match=f"process {os.getpid()} on"):
        remove_runs(home.path, ["one"])
    before = texts(home)
    home.close()
    with pytest.raises(StoreError, match="no run 'tow' in this home; its runs are 'one', 'two'") as caught:
        remove_runs(home.path, ["one", "tow"])
    assert caught.value.fix == "did you mean 'two'?"
    assert left(home.path) == before


def test_rm_on_the_command_line(home: Home, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    home.close()
    code, out, _ = call("rm", "one", "--home", home.path, "--dry-run")
    assert (code, out.splitlines()[-1].startswith("would be removed: 1 run, 1 stage,")) == (0, True)
    assert "bytes of 'one' stay: run 'two' reads start" in out
    for answer, code in (("n", 1), ("y", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{answer}\n"))
        assert "one" in texts(home)
        assert call("rm", "one", "--home", home.path)[0] == code
    assert "removed: 1 run, 2 stages," in call("rm", "two", "--home", home.path, "--yes")[1]
    assert left(home.path) == set()


def test_status_says_what_runs_take_and_what_rm_and_gc_would_free(home: Home, call: Call) -> None:
    begin(home, "one", ["start", "one", "more"])
    home.ledger.commit_state("k-more", 1, put(home, "state of more"))
    home.ledger.commit_state("k-more", 2, digest_of(home, "one"))  # which is the very object that "one" made
    home.ledger.commit_state("k-abandoned", 1, put(home, "state of a stage that no run has"))
    sizes = {text: size_below(home.path / "objects" / digest_of(home, text)) for text in texts(home)}
    put(home, "stray")
    with Home.open(home.path, write=False) as reader:
        used = usage(home.path, reader.ledger)[0]
    assert {name: (part.own, part.states, part.shared) for name, part in used.stages.items()} == {
        "start": (0, 0, sum(sizes[text] for text in OF_START)),
        "one": (sizes["one"] + sizes["groups 0 of one"], 0, 0),
        "more": (0, sizes["state of more"], 0),
        "earlier results and inputs": (0, 0, 0),
    }
    told = json.loads(call("status", "one", "--home", home.path, "--json")[1])
    (one,) = told["runs"]
    assert (one["stages"][1]["own_bytes"], one["stages"][2]["states_bytes"]) == (
        sizes["one"] + sizes["groups 0 of one"],
        sizes["state of more"],
    )
    shown = call("status", "one", "--home", home.path)[1]
    assert f"{one['own_bytes']:,} bytes of its own, {one['states_bytes']:,} of its states" in shown
    assert call("status", "on", "--home", home.path)[0] == StoreError.exit_code
    home.close()
    gc = call("gc", "--home", home.path, "--dry-run")[1].splitlines()
    assert [line for line in gc if "bytes are" in line] == [line for line in shown.splitlines() if "bytes are" in line]
    assert f" {told['gc']['free_bytes']:,} bytes with leftovers" in "\n".join(gc)
    assert f"{told['gc']['abandoned_states_bytes']:,} bytes are states of unfinished stages" in shown
    assert f"{told['gc']['kept_bytes']:,} bytes are what runs have" in shown
    assert look_for_runs(home.path, ["one"]).num_bytes == one["own_bytes"] + one["states_bytes"]


def test_runs_of_recipes_go_on_after_another_one_is_removed(
    recipe_file: Path, home_path: Path, stages: Any, without_charts: None
) -> None:
    twin = recipe_file.with_name("twin.toml")
    twin.write_text(recipe_file.read_text().replace('name = "small"', 'name = "twin"'))
    before = run_once(recipe_file, home_path)
    run_once(twin, home_path, "second.text=x")
    assert "first" in {it.what for it in remove_runs(home_path, ["small"]).staying}
    assert verify_home(home_path).problems == ()
    assert stages.calls == ["first", "second", "check", "second", "check"]
    run_once(twin, home_path, "second.text=x")
    assert stages.calls == []
    again = run_once(recipe_file, home_path)
    assert stages.calls == ["second", "check"]
    assert [it.artifact.digest for it in again.stages] == [it.artifact.digest for it in before.stages]
