"""`gc`: what it removes, what it leaves alone, and how it tells it."""

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import get_args

import pytest

from command_line import Call
from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk
from reasonmill.store.commit import replace_directory, replace_file
from reasonmill.store.disk import Operation
from reasonmill.store.garbage import collect_garbage, look_for_garbage
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home
from reasonmill.store.views import view_digests
from small_homes import digest_of, fill, finish, found, put, texts


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        fill(home)
        yield home


def test_gc_removes_what_nothing_refers_to_and_nothing_else(home: Home) -> None:
    kept = texts(home) - {"stray"}
    stray = digest_of(home, "stray")
    home.ledger.commit_state("k0", 2, put(home, "state that a killed process left"))
    home.run_dir("r")
    (home.path / "runs" / "r" / ".model.new").mkdir()
    (home.path / "runs" / "r" / ".model.new" / "half").write_text("half")
    home.close()
    (home.path / "tmp" / "put-x").write_text("half")

    planned = look_for_garbage(home.path)
    assert stray in planned.objects
    assert [path.name for path in planned.leftovers] == ["put-x", ".model.new"]
    assert planned.num_bytes > len("stray") + 2 * len("half")
    assert (home.path / "tmp" / "put-x").exists()

    assert collect_garbage(home.path) == planned
    with Home.open(home.path) as again:
        assert texts(again) == kept
        assert again.ledger.states("k0") == []
        assert look_for_garbage_in(again) == ()
    assert not (home.path / "runs" / "r" / ".model.new").exists()
    assert verify_home(home.path).problems == ()


def cut_off(operation: str, monkeypatch: pytest.MonkeyPatch, write: Callable[[], None]) -> None:
    """Lets the process end, as far as the disk can tell, when it comes to an operation."""

    def end(reached: Operation, perform: Callable[[], object]) -> None:
        if reached.name == operation or reached.verb in ("unlink", "remove directory"):
            raise KeyboardInterrupt
        perform()

    with monkeypatch.context() as patch:
        patch.setattr(disk, "around", end)
        with pytest.raises(KeyboardInterrupt):
            write()


def test_gc_takes_half_written_views_and_no_file_of_the_user(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, model = home.run_dir("r"), home.objects.path(digest_of(home, "zero"))
    replace_directory(directory / "model", model)
    home.ledger.record_views("r", view_digests(directory))
    cut_off("rename view directory", monkeypatch, lambda: replace_directory(directory / "model", model))
    cut_off("replace view", monkeypatch, lambda: replace_file(directory / "summary.json", b"{}"))
    half_written = sorted(path.name for path in directory.iterdir())
    assert half_written == [".model.new", ".model.old", ".summary.json.tmp"]

    replace_directory(directory / "model", model)  # which removes its own leftovers
    cut_off("rename old view directory", monkeypatch, lambda: replace_directory(directory / "model", model))
    (directory / ".notes").write_text("mine")
    (directory / ".ipynb_checkpoints").mkdir()
    (directory / ".ipynb_checkpoints" / "notes.tmp").write_text("mine")
    assert found(home) == [("runs/r/.ipynb_checkpoints/notes.tmp", False), ("runs/r/.notes", False)]
    home.close()
    assert [path.name for path in collect_garbage(home.path).leftovers] == [".model.new", ".summary.json.tmp"]
    assert sorted(path.name for path in directory.iterdir()) == [".ipynb_checkpoints", ".notes", "model"]


def look_for_garbage_in(home: Home) -> tuple[str, ...]:
    home.close()
    return look_for_garbage(home.path).objects


def test_gc_keeps_a_forgotten_stages_artifact_and_its_parents(home: Home) -> None:
    finish(home, "k2", "child", put(home, "child"), (digest_of(home, "zero"),))
    for key in ("k0", "k2"):
        home.ledger.forget_stage(key)
    home.close()
    assert len(collect_garbage(home.path).objects) == 1
    with Home.open(home.path) as again:
        assert {"child", "zero"} <= texts(again)


def test_gc_keeps_the_quarantine(home: Home) -> None:
    digest = digest_of(home, "stray")
    (home.objects.path(digest) / "text").write_text("rotten")
    home.close()
    with Home.open(home.path) as again:
        assert again.objects.sound_path(digest, instead="nothing") is None
    assert collect_garbage(home.path).num_bytes_quarantined > 0
    assert len(os.listdir(home.path / "quarantine")) == 1


def test_gc_waits_for_no_writer(home: Home) -> None:
    for collect in (collect_garbage, look_for_garbage):
        with pytest.raises(StoreError, match=f"process {os.getpid()} on"):
            collect(home.path)
    assert "stray" in texts(home)


@pytest.mark.parametrize("name", ["quarantine", "tmp", "runs", "backups"])
def test_gc_does_without_directories_that_the_user_removed(home: Home, name: str) -> None:
    stray = digest_of(home, "stray")
    home.ledger.commit_state("k0", 2, put(home, "state that a killed process left"))
    home.close()
    shutil.rmtree(home.path / name)
    assert stray in look_for_garbage(home.path).objects
    assert len(collect_garbage(home.path).objects) == 2
    assert not home.objects.exists(stray)
    assert verify_home(home.path).problems == ()


def test_gc_looks_and_removes_under_one_lock(home: Home, operations: list[Operation]) -> None:
    home.ledger.commit_state("k0", 2, put(home, "state that a killed process left"))
    home.close()
    operations.clear()
    assert len(collect_garbage(home.path).objects) == 2
    assert [operation.name for operation in operations].count("write lock") == 1


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    """What is done to the disk from now on."""
    done: list[Operation] = []

    def note(operation: Operation, perform: Callable[[], object]) -> None:
        done.append(operation)
        perform()

    monkeypatch.setattr(disk, "around", note)
    return done


def fail_with(number: int, verbs: Collection[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets these operations fail from now on."""

    def fail(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.verb in verbs:
            raise OSError(number, os.strerror(number), str(operation.path))
        perform()

    monkeypatch.setattr(disk, "around", fail)


NEED_SPACE = ("write", "copy", "fill", "make directory", "commit", "start log", "empty log")


def test_gc_makes_room_on_a_full_disk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    stray = digest_of(home, "stray")
    home.close()
    (home.path / "tmp" / "put-x").write_text("half")
    fail_with(errno.ENOSPC, NEED_SPACE, monkeypatch)
    assert collect_garbage(home.path).objects == (stray,)
    assert not home.objects.exists(stray)
    assert list((home.path / "tmp").iterdir()) == []


def test_gc_says_what_it_can_not_do_on_a_full_disk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    stray, idle = digest_of(home, "stray"), put(home, "state that a killed process left")
    home.ledger.commit_state("k0", 2, idle)
    home.close()
    with monkeypatch.context() as patch:
        fail_with(errno.ENOSPC, NEED_SPACE, patch)
        with pytest.raises(OutOfSpace, match="to record which states are gone") as caught:
            collect_garbage(home.path)
    assert "elsewhere" in caught.value.fix
    assert "same command" not in caught.value.fix
    assert (home.objects.exists(stray), home.objects.exists(idle)) == (False, True)
    assert collect_garbage(home.path).objects == (idle,)


def test_gc_tells_why_it_can_not_write(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.close()
    fail_with(errno.EROFS, get_args(disk.Verb), monkeypatch)
    assert len(look_for_garbage(home.path).objects) == 1
    with pytest.raises(StoreError, match="can't be read or written: Read-only file system") as caught:
        collect_garbage(home.path)
    assert caught.value.fix


def test_gc_does_not_trust_a_damaged_ledger(home: Home) -> None:
    home.close()
    with (home.path / "ledger.sqlite").open("r+b") as ledger:
        ledger.seek(80)
        ledger.write(b"x")
    with pytest.raises(StoreError, match="it is not known what is needed: nothing was removed"):
        collect_garbage(home.path)
    assert "stray" in texts(home)
    Home.open(home.path).close()  # as a run does
    collect_garbage(home.path)


def test_gc_does_not_follow_links(home: Home, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    home.run_dir("r")
    (home.path / "runs" / "r" / ".model.new").symlink_to(tmp_path / "mine")
    home.close()
    assert len(collect_garbage(home.path).leftovers) == 1
    assert (tmp_path / "mine" / "file").exists()
    assert not (home.path / "runs" / "r" / ".model.new").is_symlink()


def test_states_of_abandoned_stages_go_only_if_they_are_asked_to(home: Home) -> None:
    stages = [("zero", "rl", "k0"), ("more", "rl", "k1")]
    home.ledger.begin_run("r", {"stage": ["changed"]}, [stages[0], ("more", "rl", "k2")])
    home.ledger.commit_state("k2", 1, put(home, "state of the changed"))
    home.close()
    plain = collect_garbage(home.path)
    assert plain.states == ()
    assert plain.num_bytes_abandoned > len("state of more")
    planned = look_for_garbage(home.path, abandoned=True)
    assert [key for key, _, _ in planned.states] == ["k1"]
    assert (planned.num_bytes, planned.num_bytes_abandoned) == (plain.num_bytes_abandoned, 0)

    with Home.open(home.path) as again:  # changed back
        again.ledger.begin_run("r", {"stage": []}, stages)
    assert [key for key, _, _ in look_for_garbage(home.path, abandoned=True).states] == ["k2"]
    assert collect_garbage(home.path, abandoned=True).num_bytes > 0
    with Home.open(home.path) as again:
        assert {"state of more", "groups of more"} <= texts(again)
        assert "state of the changed" not in texts(again)
        assert again.ledger.states("k1") == [(1, digest_of(again, "state of more"))]
        assert again.ledger.states("k2") == []
        assert [step for step, _ in again.ledger.steps("k1")] == [0]


def test_last_states_of_finished_stages_go_only_if_they_are_asked_to(home: Home) -> None:
    home.ledger.commit_state("k0", 2, put(home, "state that a killed process left"))
    home.ledger.commit_state("k0", 3, put(home, "state behind the last step"))
    home.close()
    plain = collect_garbage(home.path)
    assert [step for _, step, _ in plain.states] == [2]
    assert plain.num_bytes_last > len("state behind the last step")
    planned = look_for_garbage(home.path, last_states=True)
    assert [step for _, step, _ in planned.states] == [3]
    assert (planned.num_bytes, planned.num_bytes_last) == (plain.num_bytes_last, 0)
    assert collect_garbage(home.path, last_states=True).num_bytes == plain.num_bytes_last
    with Home.open(home.path) as again:
        assert again.ledger.states("k0") == []
        assert "state of more" in texts(again)


def test_gc_on_the_command_line(home: Home, call: Call) -> None:
    home.close()
    code, out, _ = call("gc", "--home", home.path, "--dry-run")
    assert code == 0
    assert "would be removed: 1 object," in out
    assert call("gc", "--home", home.path)[1].startswith("object ")
    assert call("gc", "--home", home.path)[1].startswith("removed: 0 objects, 0 bytes with leftovers\n")
    with Home.open(home.path) as again:
        again.ledger.commit_state("k0", 3, put(again, "state behind the last step"))
        again.ledger.begin_run("r", {"stage": ["changed"]}, [("zero", "rl", "k0"), ("more", "rl", "k2")])
    assert "gc --last-states removes them" in call("gc", "--home", home.path)[1]
    assert "removed: 1 object," in call("gc", "--home", home.path, "--last-states")[1]
    assert "gc --abandoned removes them" in call("gc", "--home", home.path)[1]
    assert "removed: 1 object," in call("gc", "--home", home.path, "--abandoned")[1]
