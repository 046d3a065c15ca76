"""The home: what can be opened, by whom, and what opening leaves alone."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reasonmill.errors import StoreError
from reasonmill.store import disk
from reasonmill.store.garbage import collect_garbage, look_for_garbage
from reasonmill.store.home import Home, is_new
from reasonmill.store.ledger_backup import SIDE_FILES


def write_a(directory: Path) -> None:
    (directory / "a").write_text("a")


def test_opening_makes_a_home_that_can_be_opened_again(tmp_path: Path) -> None:
    with Home.open(tmp_path / "new" / "home") as home:
        digest = home.objects.put(write_a)
        home.ledger.begin_run("r", {}, [])
        assert home.path == tmp_path / "new" / "home"

    with Home.open(str(home.path)) as again:
        assert again.objects.path(digest) == home.path / "objects" / digest
        assert [run.name for run in again.ledger.runs()] == ["r"]
        again.close()  # and once more when the block ends


def test_a_second_writer_is_told_who_holds_the_home(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home"):
        with pytest.raises(StoreError, match=f"process {os.getpid()} on") as caught:
            Home.open(tmp_path / "home")
        assert caught.value.where == str(tmp_path / "home" / "lock")
        assert caught.value.fix
    Home.open(tmp_path / "home").close()


def test_removing_the_lock_file_admits_no_second_writer(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        (tmp_path / "home" / "lock").unlink()
        for call in (Home.open, look_for_garbage, collect_garbage):
            with pytest.raises(StoreError, match="another run writes to this home: a process that has not left its"):
                call(tmp_path / "home")
        home.ledger.begin_run("r", {}, [])
    with Home.open(tmp_path / "home") as home:
        assert [run.name for run in home.ledger.runs()] == ["r"]


def test_a_home_can_be_moved_and_its_lock_goes_with_it(tmp_path: Path) -> None:
    Home.open(tmp_path / "home").close()
    (tmp_path / "home").rename(tmp_path / "moved")
    with Home.open(tmp_path / "moved"):
        (tmp_path / "moved").rename(tmp_path / "moved again")
        with pytest.raises(StoreError, match=f"process {os.getpid()} on"):
            Home.open(tmp_path / "moved again")
        (tmp_path / "moved again").rename(tmp_path / "moved")
    assert look_for_garbage(tmp_path / "moved").objects == ()
    Home.open(tmp_path / "moved").close()


def test_where_a_directory_cant_be_locked_there_can_be_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match="can't lock a directory") as caught:
        Home.open(tmp_path / "home")
    assert caught.value.fix == "use a home on a local disk"


def test_a_reader_needs_no_lock_and_changes_nothing(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as writer, Home.open(tmp_path / "home", write=False) as reader:
        writer.ledger.begin_run("r", {}, [])
        assert [run.name for run in reader.ledger.runs()] == ["r"]
        with pytest.raises(StoreError, match="reading only"):
            reader.objects.put(write_a)
        with pytest.raises(StoreError, match="readonly"):
            reader.ledger.begin_run("s", {}, [])
        assert not reader.run_dir("r").exists()


# SQLite turns its log on under a rollback journal. Here it is killed later, when that is certain to be on the disk.
KILLED_WITH_A_JOURNAL = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN")
for number in range(20):
    database.execute(f"CREATE TABLE t{number} (x)")
os._exit(0)
"""


def test_a_home_whose_maker_was_killed_before_it_had_a_log_is_made_by_the_next_writer(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    ledger = tmp_path / "home" / "ledger.sqlite"
    subprocess.run([sys.executable, "-c", KILLED_WITH_A_JOURNAL, str(ledger)], check=True)
    assert ledger.with_name("ledger.sqlite-journal").stat().st_size > 0
    with pytest.raises(StoreError, match="no home here"):
        Home.open(tmp_path / "home", write=False)

    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {}, [])
    with Home.open(tmp_path / "home", write=False) as reader:
        assert [run.name for run in reader.ledger.runs()] == ["r"]


@pytest.mark.parametrize("write", [True, False])
def test_a_home_that_is_a_file_or_lies_below_one_is_refused(tmp_path: Path, write: bool) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(StoreError) as caught:
            Home.open(path, write=write)
        assert caught.value.fix
        assert str(tmp_path / "file") in caught.value.where
    assert (tmp_path / "file").read_text() == "mine"


def test_reading_a_missing_home_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no home"):
        Home.open(tmp_path / "home", write=False)
    assert not (tmp_path / "home").exists()


def test_leftovers_are_removed_when_the_writer_opens(tmp_path: Path) -> None:
    Home.open(tmp_path / "home").close()
    (tmp_path / "home" / "tmp" / "put-x").mkdir()
    (tmp_path / "home" / "tmp" / "put-x" / "half").write_text("half")
    (tmp_path / "home" / "tmp" / "file").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "home" / "tmp" / "link").symlink_to(tmp_path / "outside")

    Home.open(tmp_path / "home", write=False).close()
    assert len(list((tmp_path / "home" / "tmp").iterdir())) == 3
    Home.open(tmp_path / "home").close()
    assert list((tmp_path / "home" / "tmp").iterdir()) == []
    assert (tmp_path / "outside").is_dir()


def test_leftovers_that_fill_the_disk_keep_no_writer_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {}, [])
    (tmp_path / "home" / "ledger.seal").unlink()  # so that opening backs the ledger up
    leftover = tmp_path / "home" / "tmp" / "put-x" / "half"
    leftover.parent.mkdir()
    leftover.write_text("half")

    def on_a_full_disk(operation: disk.Operation, perform: Callable[[], object]) -> None:
        if leftover.exists() and operation.verb not in ("unlink", "remove directory"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(operation.path))
        perform()

    monkeypatch.setattr(disk, "around", on_a_full_disk)
    with Home.open(tmp_path / "home") as home:
        assert [run.name for run in home.ledger.runs()] == ["r"]
    assert not leftover.parent.exists()


def test_a_directory_with_a_foreign_tmp_is_not_taken_as_a_home(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "mine").write_text("mine")
    for _ in range(2):  # the first attempt must not make it look like a home
        with pytest.raises(StoreError, match="tmp"):
            Home.open(tmp_path)
    assert (tmp_path / "tmp" / "mine").read_text() == "mine"


@pytest.mark.parametrize("with_tmp", [True, False])
def test_a_foreign_lock_is_not_emptied(tmp_path: Path, with_tmp: bool) -> None:
    (tmp_path / "lock").write_text("precious")
    (tmp_path / "notes").write_text("mine")
    if with_tmp:
        (tmp_path / "tmp").mkdir()
        (tmp_path / "tmp" / "notes").write_text("mine")
    before = entries_of(tmp_path)
    for use in (Home.open, is_new):
        with pytest.raises(StoreError, match="of its own but no ledger, so it is no home of reasonmill"):
            use(tmp_path)
    assert entries_of(tmp_path) == before


@pytest.mark.parametrize("left", [b"", b'{"pi', b'{"pid": 17, "host": "a', bytes(60)])
def test_a_lock_that_a_killed_first_writer_left_keeps_nobody_out(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "lock").write_bytes(left)
    assert is_new(tmp_path)
    Home.open(tmp_path).close()
    assert not is_new(tmp_path)


@pytest.mark.parametrize("name", ["tmp", "objects", "runs", "backups", "quarantine", "lock"])
def test_a_home_whose_entries_lead_elsewhere_is_refused_before_anything_changes(tmp_path: Path, name: str) -> None:
    Home.open(tmp_path / "home").close()
    entry, outside = tmp_path / "home" / name, tmp_path / "outside"
    entry.rename(tmp_path / "kept")
    if name == "lock":
        outside.write_text("mine")
    else:
        outside.mkdir()
        (outside / "mine").write_text("mine")
    entry.symlink_to(outside)
    before = entries_of(tmp_path)
    for call in (Home.open, look_for_garbage):
        with pytest.raises(StoreError, match=f"'{name}' of this home is a link") as caught:
            call(tmp_path / "home")
        assert (caught.value.where, bool(caught.value.fix)) == (str(entry), True)
    assert entries_of(tmp_path) == before

    entry.unlink()
    if name == "lock":
        entry.mkdir()
    else:
        entry.write_text("mine")
    with pytest.raises(StoreError, match=f"'{name}' of this home is no (file|directory)"):
        Home.open(tmp_path / "home")
    assert entry.is_dir() if name == "lock" else entry.read_text() == "mine"


def entries_of(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory and what its files hold, but for what SQLite keeps beside a file that it reads."""
    paths = [path for path in directory.rglob("*") if path.name not in SIDE_FILES]
    return {path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


def test_a_run_has_a_directory_of_its_own(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        assert home.run_dir("r1") == home.path / "runs" / "r1"
        assert home.run_dir("r1").is_dir()
        for name in ("", "..", "a/b", "../x"):
            with pytest.raises(StoreError):
                home.run_dir(name)


def test_free_bytes_is_what_the_system_says(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        stat = os.statvfs(home.path)
        assert 0 < home.free_bytes() <= stat.f_blocks * stat.f_frsize


def test_a_directory_in_which_a_lock_is_no_file_is_no_new_home(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")  # reading it would wait for somebody to write
    with pytest.raises(StoreError, match="'lock' of this home is no file"):
        is_new(tmp_path)
    (tmp_path / "lock").unlink()
    assert is_new(tmp_path)
