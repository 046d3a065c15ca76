"""Power cuts at every moment of a run; `power_loss` says how."""

import sqlite3
from pathlib import Path

import pytest

from chaos.disk_model import Change, Changes
from chaos.own_process import answers
from chaos.sabotage import REORDERED
from reasonmill.store import disk


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.check)])
def test_nothing_is_lost_when_the_power_goes(chaos_long: bool, chaos_jobs: int, every: int) -> None:
    if chaos_long and every > 1:
        pytest.skip("the long form takes every moment")
    long = ["--long"] if chaos_long else []
    parts = answers("chaos.power_loss", *long, "--every", str(every), jobs=chaos_jobs)

    assert [problem for part in parts for problem in part["problems"]] == []
    assert sum(part["states"] for part in parts) > 5000 // every
    assert sum(part["continued"] for part in parts) > (5000 if chaos_long else 50 // every)
    assert sum(part["second cuts"] for part in parts) > (1000 if chaos_long else 10 // every)


def test_a_missing_fsync_or_a_wrong_order_is_noticed() -> None:
    (found,) = answers("chaos.power_loss", "--controls")
    assert found.keys() >= {*REORDERED, "without: fsync manifest", "without: fsync directory objects"}
    assert [name for name, problem in found.items() if problem is None] == []


def test_a_change_of_a_name_needs_the_earlier_ones_of_that_name() -> None:
    changes = Changes()
    for change in (
        Change(1, None, (0, "a")),
        Change(2, None, (0, "b")),
        Change(1, (0, "a"), (9, "c")),
        Change(1, (9, "c"), None),
    ):
        changes.append(change)
    assert changes.with_earlier({1}) == {1}
    assert changes.with_earlier({2}) == {0, 2}
    assert changes.with_earlier({3, 1}) == {0, 1, 2, 3}
    assert changes.without({0}, range(4)) == {1}


@pytest.mark.parametrize(("synced", "level"), [(True, 2), (False, 1)])
def test_a_commit_waits_for_the_disk_or_not(tmp_path: Path, synced: bool, level: int) -> None:
    """The model believes what it is told of commits; here the ledger's setting is looked at."""
    database = sqlite3.connect(tmp_path / "x.sqlite", isolation_level=None)
    disk.start_log(database, tmp_path / "x.sqlite", "test")
    disk.begin.__wrapped__(database, synced=synced)  # type: ignore[attr-defined]  # in tests nothing waits (conftest)
    assert database.execute("PRAGMA synchronous").fetchone() == (level,)
    disk.commit(database, tmp_path / "x.sqlite", "test", synced=synced)
    database.close()
