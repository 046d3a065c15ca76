"""A damaged home: what is found when it is opened, what takes its place, and what is told."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from damage import flip
from reasonmill.content import file_digest
from reasonmill.errors import StoreError
from reasonmill.store import disk, verification
from reasonmill.store.commit import replace_file
from reasonmill.store.garbage import collect_garbage
from reasonmill.store.home import Home
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_backup import LEDGER, SEAL, SIDE_FILES, encode_seal, read_seal
from reasonmill.store.sealed_rows import OtherVersion
from reasonmill.store.verification import verify_home
from reasonmill.store.views import view_digests
from reasonmill.types import Artifact


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed home whose ledger knows a run and three steps."""
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {}, [("zero", "rl", "k")])
        record_steps(home, range(3))
    return tmp_path / "home"


def record_steps(home: Home, steps: range) -> None:
    for step in steps:
        home.ledger.record_metrics("k", step, {"loss/ce": 1.5})


def steps_of(home: Home) -> list[int]:
    return [entry["step"] for entry in home.ledger.metrics("k")]


def change_a_number(ledger: Path) -> None:
    """What no check of SQLite's can find: a digit that has become another one."""
    with sqlite3.connect(ledger) as database:
        database.execute("UPDATE steps SET metrics = replace(metrics, '1.5', '1.7') WHERE step = 1")
    database.close()


def kill(home: Home) -> None:
    """Leaves the home as a killed writer does: its ledger is not sealed."""
    home.ledger.close()
    assert home._lock is not None
    home._lock.close()


def fell_back(home: Home) -> bool:
    """Whether a backup ever took the place of the ledger."""
    return LEDGER in {incident.file for incident in home.ledger.incidents()}


def told_by(home: Home) -> list[str]:
    told: list[str] = []
    home.incidents.tell(told.append)
    return told


def test_every_table_is_sealed() -> None:
    assert all("seal TEXT" in statement for statement in Ledger.tables if statement.startswith("CREATE TABLE"))


def test_a_changed_row_is_found_when_it_is_read_and_by_name(path: Path) -> None:
    change_a_number(path / LEDGER)
    ledger = Ledger(path / LEDGER, write=False)
    assert ledger.step_groups("k", 0) is None  # other rows can still be read
    with pytest.raises(StoreError, match="damaged: the row of table 'steps' with stage_key 'k', step '1'"):
        ledger.metrics("k")
    assert ledger.damage() == ["the row of table 'steps' with stage_key 'k', step '1' is not what was written"]
    ledger.close()


def test_what_is_updated_is_sealed_again(path: Path) -> None:
    with Home.open(path) as home:
        home.ledger.record_metrics("k", 1, {"loss/ce": 9.0})
        home.ledger.begin_run("r", {"seed": 1}, [])
        assert home.ledger.damage() == []


# Any bit of a closed ledger counts, of its reserved bytes, too.
@pytest.mark.parametrize(
    "damage", [lambda ledger: flip(ledger, 80), change_a_number, Path.unlink, lambda p: flip(p, 3)]
)
def test_a_damaged_ledger_is_put_aside_and_its_backup_takes_its_place(
    path: Path, damage: Callable[[Path], None]
) -> None:
    damage(path / LEDGER)
    broken = (path / LEDGER).read_bytes() if (path / LEDGER).exists() else None
    with Home.open(path) as home:
        assert fell_back(home)
        assert steps_of(home) == [0, 1, 2]
        (told,) = told_by(home)
        (incident,) = home.ledger.incidents()
        assert str(incident) == told
        kept = list((path / "quarantine").glob("ledger-????????"))
        assert told.startswith("ledger.sqlite is " if kept else "ledger.sqlite is missing; its last backup")
        assert all(f"; it is now in quarantine/{file.name}; " in told for file in kept)
        assert told.endswith("its last backup takes its place: what was recorded since is rebuilt")
    assert [file.read_bytes() for file in kept] == ([] if broken is None else [broken])
    with Home.open(path) as home:
        assert len(home.ledger.incidents()) == 1


def test_views_that_are_not_what_the_backup_says_are_told_and_forgotten(path: Path) -> None:
    with Home.open(path) as home:
        home.ledger.begin_run("other", {}, [])
        for content in (b"old", b"new"):
            for run in ("r", "other"):
                if run == "r" or content == b"old":
                    replace_file(home.run_dir(run) / "summary.json", content)
                    home.ledger.record_views(run, view_digests(home.run_dir(run)))
            home.back_up_ledger()
    closed = read_seal(path)
    assert closed is not None
    flip(path / LEDGER)
    flip(path / "backups" / closed.backups[0] / LEDGER)
    with Home.open(path) as home:
        assert fell_back(home)
        told = "runs/r/summary.json is damaged, or newer than the backup of the ledger; it is written again"
        assert told in told_by(home)
        assert home.ledger.views("r") == {}
        assert home.ledger.views("other").keys() == {"summary.json"}


def test_the_ledger_of_a_killed_writer_is_checked_and_falls_back_to_its_last_backup(path: Path) -> None:
    home = Home.open(path)
    record_steps(home, range(3, 5))
    home.back_up_ledger()
    record_steps(home, range(5, 6))
    kill(home)
    home = Home.open(path)
    assert (fell_back(home), steps_of(home)) == (False, [0, 1, 2, 3, 4, 5])
    record_steps(home, range(6, 7))
    kill(home)

    change_a_number(path / LEDGER)
    with Home.open(path) as home:
        assert fell_back(home)
        assert steps_of(home) == [0, 1, 2, 3, 4, 5]  # what there was when the killed writer began


def change_the_version(ledger: Path) -> None:
    flip(ledger, 63)


def empty(ledger: Path) -> None:
    ledger.write_bytes(b"")


@pytest.mark.parametrize("damage", [change_the_version, empty])
@pytest.mark.parametrize("left_by_kill", [True, False])
def test_a_ledger_without_its_version_or_its_tables_is_a_damaged_one(
    path: Path, damage: Callable[[Path], None], left_by_kill: bool
) -> None:
    if left_by_kill:
        kill(Home.open(path))
    else:
        (path / SEAL).write_text("x")
    damage(path / LEDGER)
    assert LEDGER in {finding.file for finding in verify_home(path).problems}
    with pytest.raises(StoreError, match=r"has no tables|says that its version is 3") as caught:
        Home.open(path, write=False)
    assert "restores the last backup" in caught.value.fix
    with Home.open(path) as home:
        assert fell_back(home)
        assert steps_of(home) == [0, 1, 2]
    assert verify_home(path).problems == ()


def test_a_missing_ledger_is_told_and_restored(path: Path) -> None:
    (path / LEDGER).unlink()
    with pytest.raises(StoreError, match="the ledger is missing") as caught:
        Home.open(path, write=False)
    assert caught.value.where == str(path / LEDGER)
    assert "restores the last backup" in caught.value.fix
    assert [(finding.file, finding.what) for finding in verify_home(path).problems] == [(LEDGER, "is missing")]
    with Home.open(path) as home:
        assert steps_of(home) == [0, 1, 2]
    assert verify_home(path).problems == ()


@pytest.mark.parametrize("left", [SEAL, "backups"])
def test_a_seal_or_a_backup_tells_that_there_was_a_home(path: Path, left: str) -> None:
    for name in {LEDGER, SEAL, "backups"} - {left}:
        (path / name).rename(path.parent / name)
    (path / "tmp" / "leftover").touch()
    assert verify_home(path).problems[0].what == "is missing"
    if left == "backups":
        with Home.open(path) as home:
            assert steps_of(home) == [0, 1, 2]
        return
    (path / SEAL).write_text("damaged")
    empty(path / LEDGER)
    with pytest.raises(StoreError, match="the ledger has no tables, and no sound backup of it is left"):
        Home.open(path)


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_home_of_another_version_is_refused_and_left_as_it_is(path: Path, is_closed: bool) -> None:
    with sqlite3.connect(path / LEDGER) as database:
        database.execute("CREATE TABLE of_a_later_version (x)")
        database.execute("PRAGMA user_version = 3")
    database.close()
    seal = read_seal(path)
    assert seal is not None
    replace_file(path / SEAL, encode_seal(replace(seal, ledger=file_digest(path / LEDGER) if is_closed else None)))
    (path / "tmp" / "of_a_later_version").write_text("who knows")
    before = files_of(path)
    for write in (True, False):
        with pytest.raises(OtherVersion, match="version 3, and this reasonmill reads version 2"):
            Home.open(path, write=write)
    assert files_of(path) == before


def files_of(home: Path) -> dict[str, bytes]:
    """All files of a home, but for those that SQLite keeps beside what it reads."""
    paths = [path for path in home.rglob("*") if path.is_file() and path.name not in SIDE_FILES]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in paths}


def test_without_a_sound_backup_nothing_is_touched(path: Path) -> None:
    for backup in (path / "backups").iterdir():
        flip(backup / LEDGER)
    flip(path / LEDGER)
    broken = (path / LEDGER).read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match="no sound backup of it is left") as caught:
            Home.open(path)
        assert caught.value.where == str(path / LEDGER)
        way_out = caught.value.fix
        assert next(it for it in verify_home(path).problems if it.file == LEDGER).recovery.endswith(way_out)
        with pytest.raises(StoreError, match="nothing was removed") as caught:
            collect_garbage(path)
        assert caught.value.fix.endswith(way_out)
    assert (path / LEDGER).read_bytes() == broken


def test_a_restore_that_is_cut_off_is_begun_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the log and the file, the ledger without its log looks sound, and is not what was accepted."""
    kill(Home.open(path))
    change_a_number(path / LEDGER)

    replace_right = disk.replace

    def cut_off(source: Path, target: Path, what: str) -> None:
        if target.name == LEDGER:
            raise KeyboardInterrupt
        replace_right(source, target, what)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            Home.open(path)
    with sqlite3.connect(path / LEDGER) as database:  # the damage is gone, as if it had been in the log
        database.execute("DELETE FROM steps WHERE step = 1")
    database.close()
    with Home.open(path) as home:
        assert fell_back(home)
        assert steps_of(home) == [0, 1, 2]


def test_a_damaged_seal_costs_a_closer_look_and_is_told(path: Path) -> None:
    flip(path / SEAL, 5)
    with Home.open(path) as home:
        assert told_by(home) == ["ledger.seal is damaged; the ledger is checked row by row and sealed again"]
        assert steps_of(home) == [0, 1, 2]
    assert read_seal(path) is not None

    flip(path / SEAL, 5)
    change_a_number(path / LEDGER)
    with Home.open(path) as home:
        assert steps_of(home) == [0, 1, 2]
        assert fell_back(home)


def test_a_damaged_backup_is_replaced(path: Path) -> None:
    for backup in (path / "backups").iterdir():
        flip(backup / LEDGER)
    with Home.open(path) as home:
        assert all("the ledger is backed up again" in line for line in told_by(home))
        assert not fell_back(home)
    flip(path / LEDGER)
    with Home.open(path) as home:
        assert fell_back(home)
        assert steps_of(home) == [0, 1, 2]


def chosen_backups(path: Path) -> tuple[list[int], list[int]]:
    """The steps of the backup that `verify` takes for the damaged ledger, and of that which a run takes."""
    seen: list[int] = []

    def note(inspection: verification.Inspection) -> list[verification.Finding]:
        assert inspection.ledger is not None
        seen[:] = [entry["step"] for entry in inspection.ledger.metrics("k")]
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "CHECKS", (note,))
        verification.verify_home(path)
    with Home.open(path) as home:
        return seen, steps_of(home)


def test_verify_and_a_run_take_the_latest_backup_of_a_damaged_ledger_without_a_seal(path: Path) -> None:
    for step in range(3, 13):  # so that the order of digests is not that of time in most of the cases
        with Home.open(path) as home:
            record_steps(home, range(step, step + 1))
        with Home.open(path, write=False) as home:
            known = steps_of(home)
        flip(path / SEAL, 5)
        change_a_number(path / LEDGER)
        assert chosen_backups(path) == (known, known)


def test_verify_and_a_run_take_a_backup_that_the_seal_does_not_tell_of(path: Path, tmp_path: Path) -> None:
    seal = read_seal(path)
    assert seal is not None
    other = seal.backups[0]
    shutil.copytree(path / "backups" / other, tmp_path / other)
    with Home.open(path) as home:
        for step in range(3, 5):
            record_steps(home, range(step, step + 1))
            home.back_up_ledger()
    for backup in (path / "backups").iterdir():
        flip(backup / LEDGER)
    shutil.copytree(tmp_path / other, path / "backups" / other)
    flip(path / LEDGER)
    assert chosen_backups(path) == ([0, 1, 2], [0, 1, 2])


def test_a_ledger_that_could_not_be_backed_up_is_not_sealed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room(operation: disk.Operation, perform: Callable[[], object]) -> None:
        if operation.name == "fill object":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        perform()

    home = Home.open(path)
    record_steps(home, range(3, 5))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "around", without_room)
        home.close()
    seal = read_seal(path)
    assert seal is not None
    assert seal.ledger is None

    Home.open(path).close()  # which backs it up
    flip(path / LEDGER)
    with Home.open(path) as home:
        assert fell_back(home)
        assert steps_of(home) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("is_read", [True, False])
def test_a_ledger_that_is_damaged_while_it_is_open_is_neither_backed_up_nor_sealed(path: Path, is_read: bool) -> None:
    home = Home.open(path)
    change_a_number(path / LEDGER)
    if is_read:
        with pytest.raises(StoreError, match="'steps' with stage_key 'k', step '1' is not what was written"):
            home.back_up_ledger()
    home.close()
    assert {finding.file for finding in verify_home(path).problems} == {LEDGER}
    with Home.open(path) as home:
        assert fell_back(home)
        assert home.ledger.metrics("k")[1]["loss/ce"] == 1.5


def test_a_ledger_whose_file_is_damaged_behind_an_open_one_is_not_sealed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.open(path)
    ledger = home.ledger

    def close_and_damage() -> None:
        Ledger.close(ledger)
        change_a_number(path / LEDGER)

    monkeypatch.setattr(ledger, "close", close_and_damage)
    home.close()
    with Home.open(path) as home:
        assert fell_back(home)
        assert steps_of(home) == [0, 1, 2]


def test_two_backups_are_kept(path: Path) -> None:
    with Home.open(path) as home:
        for step in range(3, 8):
            record_steps(home, range(step, step + 1))
            home.back_up_ledger()
            assert len(list((path / "backups").iterdir())) == 2


def test_an_artifact_of_a_damaged_row_is_not_handed_out(path: Path) -> None:
    with Home.open(path) as home:
        home.ledger.register(Artifact("ab" * 32, "model", "base", (), ""))
    with sqlite3.connect(path / LEDGER) as database:
        database.execute("UPDATE artifacts SET digest = replace(digest, 'abab', 'cdcd')")
    database.close()
    with Home.open(path, write=False) as reader, pytest.raises(StoreError, match="artifacts"):
        reader.ledger.artifact("cdcd")


def test_a_home_whose_maker_was_killed_before_it_had_tables_is_new(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    database = sqlite3.connect(tmp_path / "home" / LEDGER)
    database.execute("PRAGMA journal_mode = WAL")
    database.close()
    with Home.open(tmp_path / "home") as home:
        assert home.ledger.runs() == []
        assert told_by(home) == []
