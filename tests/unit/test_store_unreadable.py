"""Files of a home that can't be read, copied or written over: what is put aside, and what is left alone."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from failing_disk import UNREACHABLE, fail_reading
from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk
from reasonmill.store.commit import replace_file
from reasonmill.store.garbage import look_for_garbage
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import LEDGER, SEAL, SIDE_FILES, DamagedSeal, read_seal
from reasonmill.store.verification import verify_home
from reasonmill.store.views import view_digests


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed home whose ledger knows a run and three steps."""
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {}, [("zero", "rl", "k")])
        for step in range(3):
            home.ledger.record_metrics("k", step, {"loss/ce": 1.5})
    return tmp_path / "home"


def steps_of(home: Home) -> list[int]:
    return [entry["step"] for entry in home.ledger.metrics("k")]


def fell_back(home: Home) -> bool:
    """Whether a backup ever took the place of the ledger."""
    return LEDGER in {incident.file for incident in home.ledger.incidents()}


def damage(ledger: Path) -> None:
    """Changes a byte that SQLite does not look at."""
    with ledger.open("r+b") as file:
        file.seek(80)
        file.write(b"x")


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_ledger_with_an_unreadable_sector_is_put_aside_as_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_closed: bool
) -> None:
    if not is_closed:
        Home.open(path).close(at_once=True)
    broken = (path / LEDGER).read_bytes()
    with monkeypatch.context() as patch:
        fail_reading(patch, errno.EIO, path / LEDGER)
        assert [finding.file for finding in verify_home(path).problems] == [LEDGER]
        with monkeypatch.context() as inner:
            inner.setattr(disk, "replace", mends_the_sector(patch))
            home = Home.open(path)
    with home:
        assert (fell_back(home), steps_of(home)) == (True, [0, 1, 2])
    assert [kept.read_bytes() for kept in (path / "quarantine").glob("ledger-????????")] == [broken]
    assert verify_home(path).problems == ()


def test_an_open_ledger_whose_log_has_an_unreadable_sector_falls_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.open(path)
    home.ledger.record_metrics("k", 3, {"loss/ce": 1.5})
    shutil.copy(path / SIDE_FILES[0], path.parent / "log")
    home.close(at_once=True)
    (path.parent / "log").rename(path / SIDE_FILES[0])
    fail_reading(monkeypatch, errno.EIO, path / SIDE_FILES[0])
    assert [(it.file, it.what) for it in verify_home(path).problems] == [
        (LEDGER, "is damaged: the disk can't read ledger.sqlite-wal")
    ]
    with Home.open(path) as home:
        assert (fell_back(home), steps_of(home)) == (True, [0, 1, 2])
    assert len(list((path / "quarantine").glob("ledger-????????-wal"))) == 1


def mends_the_sector(patch: pytest.MonkeyPatch) -> Callable[[Path, Path, str], None]:
    """What puts another file in the place of the ledger, which then can be read."""
    replace_right = disk.replace

    def replace_ledger(source: Path, target: Path, what: str) -> None:
        replace_right(source, target, what)
        if target.name == LEDGER:
            patch.undo()

    return replace_ledger


@pytest.mark.parametrize("number", UNREACHABLE)
def test_a_ledger_that_can_not_be_reached_is_left_where_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        fail_reading(patch, number, path / LEDGER)
        for use in (verify_home, Home.open):
            with pytest.raises(StoreError, match=f"can't be read or written: {os.strerror(number)}"):
                use(path)
    with Home.open(path) as home:
        assert home.ledger.incidents() == []


def test_a_reader_of_a_ledger_that_can_not_be_reached_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / SIDE_FILES[1]).symlink_to("nowhere/index")  # so that SQLite can't, either
    fail_reading(monkeypatch, errno.EACCES, path / LEDGER)
    with pytest.raises(StoreError, match="can't be read or written: Permission denied") as caught:
        Home.open(path, write=False)
    assert caught.value.where == str(path / LEDGER)


@pytest.mark.parametrize("number", UNREACHABLE)
def test_a_seal_that_can_not_be_reached_is_no_damage_and_an_unreadable_sector_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        fail_reading(patch, number, path / SEAL)
        for use in (verify_home, Home.open):
            with pytest.raises(StoreError, match=f"can't be read or written: {os.strerror(number)}"):
                use(path)
    with monkeypatch.context() as patch:
        fail_reading(patch, errno.EIO, path / SEAL)
        assert [finding.file for finding in verify_home(path).problems] == [SEAL]
        with pytest.raises(DamagedSeal):
            read_seal(path)
    with Home.open(path) as home:
        assert home.ledger.incidents() == []


@pytest.mark.parametrize("what", ["restored ledger", "damaged ledger"])
def test_a_fall_back_without_room_leaves_no_half_of_a_copy(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def without_room(operation: disk.Operation, perform: Callable[[], object]) -> None:
        perform()
        if operation.name == f"copy {what}":
            os.truncate(operation.path, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    damage(path / LEDGER)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "around", without_room)
        for _ in range(2):
            with pytest.raises(OutOfSpace):
                Home.open(path)
            assert [list((path / place).iterdir()) for place in ("tmp", "quarantine")] == [[], []]
    with Home.open(path) as home:
        assert (fell_back(home), steps_of(home)) == (True, [0, 1, 2])


@pytest.mark.parametrize("name", [LEDGER, SEAL])
def test_a_directory_in_the_place_of_the_ledger_or_its_seal_is_put_aside(path: Path, name: str) -> None:
    (path / name).unlink()
    (path / name).mkdir()
    (path / name / "mine").write_text("mine")
    assert [finding.file for finding in verify_home(path).problems] == [name]
    with Home.open(path) as home:
        assert [incident.file for incident in home.ledger.incidents()] == [name]
        assert steps_of(home) == [0, 1, 2]
    (kept,) = (path / "quarantine").iterdir()
    assert (kept / "mine").read_text() == "mine"
    assert verify_home(path).problems == ()


@pytest.mark.parametrize("name", ["summary.json", "model"])
def test_what_no_view_can_be_written_over_is_put_aside_where_no_view_is_recorded(path: Path, name: str) -> None:
    with Home.open(path) as home:
        directory = home.run_dir("r")
        if name == "model":
            (directory / name).write_text("mine")
        else:
            (directory / name).mkdir()
        assert home.run_dir("r") == directory
        (incident,) = home.ledger.incidents()
        (kept,) = (path / "quarantine").iterdir()
        assert (incident.file, incident.what) == (f"runs/r/{name}", f"is damaged, and is now in quarantine/{kept.name}")
        assert list(directory.iterdir()) == []


def test_gc_looks_at_the_rows_where_the_seal_is_damaged_and_stops_where_it_can_not_be_reached(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_reading(patch, errno.EACCES, path / SEAL)
        with pytest.raises(StoreError, match="can't be read or written: Permission denied"):
            look_for_garbage(path)
    (path / SEAL).write_bytes(b"x")
    assert look_for_garbage(path).objects == ()


@pytest.mark.parametrize("fall_back", [True, False])
@pytest.mark.parametrize("name", ["summary.json", ""])
def test_what_no_view_can_be_written_over_is_put_aside(path: Path, name: str, fall_back: bool) -> None:
    with Home.open(path) as home:
        directory = home.run_dir("r")
        for view in ("summary.json", "report.html"):
            replace_file(directory / view, b"{}")
        home.ledger.record_views("r", view_digests(directory))
    if name:
        (directory / name).unlink()
        (directory / name).mkdir()
    else:
        shutil.rmtree(directory)
        directory.write_text("mine")
    if fall_back:
        damage(path / LEDGER)
    assert f"runs/r/{name or 'summary.json'}" in {finding.file for finding in verify_home(path).problems}
    with Home.open(path) as home:
        assert home.run_dir("r").is_dir()
        replace_file(directory / "summary.json", b"{}")
        (incident,) = (it for it in home.ledger.incidents() if it.file != LEDGER)
        assert incident.file == str(Path("runs/r", name))
        assert home.ledger.views("r") == {}
        (kept,) = (path / "quarantine").glob("[!l]*")
        assert incident.what.endswith(f", and is now in quarantine/{kept.name}")
