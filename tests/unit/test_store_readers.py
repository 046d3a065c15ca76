"""Readers where SQLite can't make the files that it needs beside the ledger: on a read-only or a full disk."""

import sqlite3
from pathlib import Path

import pytest

from reasonmill.store import sealed_rows
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import LEDGER, SEAL, SIDE_FILES, Seal, encode_seal, read_seal
from reasonmill.store.sealed_rows import Unreachable
from reasonmill.store.verification import verify_home


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed home whose ledger knows a run; SQLite can't make the log's index there, as on a read-only disk."""
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {}, [])
    index_of(tmp_path / "home").symlink_to("nowhere/index")
    return tmp_path / "home"


def index_of(home: Path) -> Path:
    return home / SIDE_FILES[1]


def runs_of(home: Home) -> list[str]:
    return [run.name for run in home.ledger.runs()]


def open_seal(path: Path) -> None:
    """Leaves the seal as a killed writer does."""
    seal = read_seal(path)
    assert seal is not None
    (path / SEAL).write_bytes(encode_seal(Seal(None, seal.backups)))


def test_a_closed_home_is_read_where_nothing_can_be_written(path: Path) -> None:
    with Home.open(path, write=False) as reader:
        assert runs_of(reader) == ["r"]
    assert verify_home(path).findings == ()


def test_such_a_reader_notices_a_writer(path: Path) -> None:
    reader = Home.open(path, write=False)
    assert runs_of(reader) == ["r"]
    index_of(path).unlink()
    with Home.open(path) as writer:  # as through another mount
        with pytest.raises(Unreachable, match="a run has opened the home"):
            reader.ledger.damage()
        with pytest.raises(Unreachable, match="a run has opened the home") as caught:
            runs_of(reader)
        assert caught.value.where == str(path / SEAL)
        writer.ledger.begin_run("s", {}, [])
    with pytest.raises(Unreachable, match="a run has opened the home"):
        runs_of(reader)
    reader.close()
    with Home.open(path, write=False) as reader:
        assert runs_of(reader) == ["r", "s"]


def test_an_open_ledger_that_cant_be_reached_is_told_and_is_no_damage(path: Path) -> None:
    open_seal(path)
    before = (path / LEDGER).read_bytes()
    for use in (verify_home, lambda home: Home.open(home, write=False), Home.open):
        with pytest.raises(Unreachable, match="unable to open") as caught:
            use(path)
        assert caught.value.fix
    assert (path / LEDGER).read_bytes() == before
    assert list((path / "quarantine").iterdir()) == []
    index_of(path).unlink()
    with Home.open(path) as home:
        assert (runs_of(home), home.ledger.incidents()) == (["r"], [])


def test_a_closed_ledger_is_not_read_without_the_log_that_would_change_it(path: Path) -> None:
    (path / SIDE_FILES[0]).write_bytes(b"log")
    with pytest.raises(Unreachable):
        Home.open(path, write=False)


def test_a_ledger_that_another_program_holds_is_told_and_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_rows, "_BUSY_TIMEOUT_S", 0.0)
    with Home.open(tmp_path / "home") as home:
        home.ledger.begin_run("r", {}, [])
    open_seal(tmp_path / "home")
    other = sqlite3.connect(tmp_path / "home" / LEDGER, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    for use in (verify_home, Home.open):
        with pytest.raises(Unreachable, match="locked"):
            use(tmp_path / "home")
    other.close()
    with Home.open(tmp_path / "home") as home:
        assert (runs_of(home), home.ledger.incidents()) == (["r"], [])
