"""`verify` and `gc`: what they find, what they leave alone, and how they tell it."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import reasonmill.store.commit
import reasonmill.store.ledger_backup
import reasonmill.store.views
from reasonmill.cli import main
from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk, verification
from reasonmill.store.commit import holds, replace_directory, replace_file
from reasonmill.store.disk import Operation
from reasonmill.store.garbage import collect_garbage, look_for_garbage
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import Seal, ledger_damage
from reasonmill.store.verification import Finding, Inspection, verify_home
from reasonmill.store.views import view_digests
from reasonmill.types import Artifact


def put(home: Home, text: str) -> str:
    return home.objects.put(lambda directory: (directory / "text").write_text(text))


def finish(home: Home, key: str, name: str, digest: str, parents: tuple[str, ...] = ()) -> None:
    made = Artifact(digest, "model", name, parents, "")
    home.ledger.commit_stage(key=key, run="r", name=name, kind="rl", artifact=made, seconds=1.0, tokens=1)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home with a finished stage "zero", an unfinished one "more", and an object that nothing refers to."""
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {"stage": []}, [("zero", "rl", "k0"), ("more", "rl", "k1")])
        for step in range(3):
            home.ledger.commit_step("k0", step, put(home, f"groups {step}"))
        finish(home, "k0", "zero", put(home, "zero"))
        home.ledger.commit_step("k1", 0, put(home, "groups of more"))
        home.ledger.commit_state("k1", 1, put(home, "state of more"))
        put(home, "stray")
        yield home


def texts(home: Home) -> set[str]:
    return {(home.objects.path(digest) / "text").read_text() for digest in home.objects.digests()}


def digest_of(home: Home, text: str) -> str:
    return next(it for it in home.objects.digests() if (home.objects.path(it) / "text").read_text() == text)


def found(home: Home) -> list[tuple[str, bool]]:
    return [(finding.file, finding.is_problem) for finding in verify_home(home.path).findings]


def test_a_sound_home_has_no_findings_while_it_is_written_and_after(home: Home) -> None:
    assert found(home) == []
    home.close()
    assert verify_home(home.path) == verification.Verification((), 7)


def test_verify_names_a_damaged_object_and_who_needs_it(home: Home) -> None:
    for text in ("groups 1", "stray"):
        (home.objects.path(digest_of(home, text)) / "text").write_text("rotten")
    digests = {text: digest_of(home, text) for text in ("zero",)}
    findings = {finding.recovery: finding for finding in verify_home(home.path).problems}
    assert len(findings) == 2
    needed, free = sorted(findings)[::-1]
    assert "groups of step 1 of stage 'zero' of run 'r'" in needed
    assert "nothing needs it" in free
    assert all(digest not in finding.file for digest in digests.values() for finding in findings.values())


def test_verify_finds_what_the_ledger_refers_to_and_the_store_lacks(home: Home) -> None:
    gone = [digest_of(home, text) for text in ("zero", "groups 0", "state of more")]
    for digest in gone:
        home.objects.delete(digest)
    assert sorted(found(home)) == sorted((f"objects/{digest}", True) for digest in gone)


def test_an_artifact_that_no_stage_has_any_more_is_no_problem(home: Home) -> None:
    digest = digest_of(home, "zero")
    home.ledger.forget_stage("k0")
    home.objects.delete(digest)
    finish(home, "k0", "zero", put(home, "zero again"))
    assert found(home) == [(f"objects/{digest}", False)]


def test_steps_must_be_consecutive(home: Home) -> None:
    home.ledger.record_metrics("k1", 2, {"loss": 1.0})
    (finding,) = verify_home(home.path).problems
    assert (finding.file, finding.what) == ("ledger.sqlite", "lacks step 1 of stage key k1")


def test_leftovers_and_what_is_not_of_the_home(home: Home) -> None:
    (home.path / "tmp" / "put-x").mkdir()
    (home.path / "notes.txt").write_text("mine")
    (home.path / "objects" / "model").mkdir()
    assert sorted(found(home)) == [("notes.txt", False), ("objects/model", True), ("tmp/put-x", False)]


def test_what_only_one_look_finds_does_not_count(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([[Finding("a", "is damaged", ""), Finding("b", "is damaged", "")], [Finding("b", "is damaged", "")]])
    last = [Finding("b", "is damaged", "")]

    def check(inspection: Inspection) -> list[Finding]:
        return next(looks, last)

    monkeypatch.setattr(verification, "CHECKS", (check,))
    assert [finding.file for finding in verify_home(home.path).findings] == ["b"]


def read_objects(home: Home) -> list[int]:
    """How many objects each look reads."""
    totals: list[int] = []
    verify_home(home.path, lambda done, total: totals.append(total) if done == 1 else None)
    return totals


def test_the_second_look_reads_only_what_was_damaged(home: Home) -> None:
    assert read_objects(home) == [7]
    (home.path / "notes.txt").write_text("mine")
    assert read_objects(home) == [7]
    (home.objects.path(digest_of(home, "zero")) / "text").write_text("rotten")
    assert read_objects(home) == [7, 1]


def test_a_second_look_reads_no_view_and_no_backup_that_is_sound(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("summary.json", "report.html"):
        replace_file(home.run_dir("r") / name, b"{}")
    home.ledger.record_views("r", view_digests(home.run_dir("r")))
    home.close()
    (home.path / "runs" / "r" / "summary.json").write_text("rotten")
    read: list[str] = []

    def note(path: Path, digest: str) -> bool:
        read.append(path.name)
        return holds(path, digest)

    for module in (reasonmill.store.views, reasonmill.store.commit):
        monkeypatch.setattr(module, "holds", note)
    assert found(home) == [("runs/r/summary.json", True)]
    assert (read.count("summary.json"), read.count("report.html")) == (2, 1)
    assert read.count("ledger.sqlite") == len(list((home.path / "backups").iterdir()))


def test_the_ledger_is_checked_once_in_a_look(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Path] = []

    def note(path: Path, seal: Seal | None) -> list[str]:
        checked.append(path)
        return ledger_damage(path, seal)

    monkeypatch.setattr(reasonmill.store.ledger_backup, "ledger_damage", note)
    assert found(home) == []
    assert len(checked) == 1


def test_a_home_whose_objects_are_gone_is_a_damaged_home(home: Home) -> None:
    home.close()
    shutil.rmtree(home.path / "objects")
    assert len(verify_home(home.path).problems) == 6


def test_what_a_damaged_ledger_does_not_know_is_not_called_garbage(home: Home) -> None:
    home.close()
    (home.path / "ledger.sqlite").write_bytes(b"rotten" * 1000)
    shutil.rmtree(home.path / "backups")
    (home.objects.path(digest_of(home, "zero")) / "text").write_text("rotten")
    (finding,) = (it for it in verify_home(home.path).problems if it.file.endswith("/text"))
    assert "what needs it is not known" in finding.recovery


def test_verify_tells_why_it_can_not_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inspection: Inspection) -> list[Finding]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/r")

    monkeypatch.setattr(verification, "CHECKS", (fail,))
    with pytest.raises(StoreError, match="can't be read or written: Permission denied") as caught:
        verify_home(home.path)
    assert (caught.value.where, bool(caught.value.fix)) == ("runs/r", True)


def test_a_ledger_beyond_reading_is_named_and_the_rest_is_still_looked_at(home: Home) -> None:
    (home.objects.path(digest_of(home, "zero")) / "text").write_text("rotten")
    home.close()
    (home.path / "ledger.sqlite").write_bytes(b"rotten" * 1000)
    files = [file for file, _ in found(home)]
    assert files[0] == "ledger.sqlite"
    assert files[1].endswith("/text")


# gc


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


# The commands


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return int(caught.value.code or 0), capsys.readouterr().out

    return call


def test_verify_on_the_command_line(home: Home, call: Call, tmp_path: Path) -> None:
    assert call("verify", "--home", home.path) == (0, "7 objects, 0 problems\n")
    file = home.objects.path(digest_of(home, "zero")) / "text"
    file.write_text("rotten")
    (home.path / "notes.txt").write_text("mine")
    code, out = call("verify", "--home", home.path)
    assert code == 3
    assert f"damage: {file.relative_to(home.path)} is damaged\n  run the recipe that needs the model of" in out
    assert "note: notes.txt is not of reasonmill" in out
    assert out.endswith("7 objects, 1 problem\n")
    code, out = call("verify", "--home", home.path, "--json")
    told = json.loads(out)
    assert code == 3
    assert told["objects"] == 7
    assert {(it["file"], it["is_problem"]) for it in told["findings"]} == set(found(home))
    assert call("verify", "--home", tmp_path / "nowhere")[0] == 3


def test_gc_on_the_command_line(home: Home, call: Call) -> None:
    home.close()
    code, out = call("gc", "--home", home.path, "--dry-run")
    assert code == 0
    assert "would be removed: 1 object," in out
    assert call("gc", "--home", home.path)[1].startswith("object ")
    assert call("gc", "--home", home.path) == (0, "removed: 0 objects, 0 bytes with leftovers\n")
    with Home.open(home.path) as again:
        again.ledger.commit_state("k0", 3, put(again, "state behind the last step"))
        again.ledger.begin_run("r", {"stage": ["changed"]}, [("zero", "rl", "k0"), ("more", "rl", "k2")])
    assert "gc --last-states removes them" in call("gc", "--home", home.path)[1]
    assert "removed: 1 object," in call("gc", "--home", home.path, "--last-states")[1]
    assert "gc --abandoned removes them" in call("gc", "--home", home.path)[1]
    assert "removed: 1 object," in call("gc", "--home", home.path, "--abandoned")[1]
