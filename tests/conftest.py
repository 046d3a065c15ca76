"""Options of the test suite, and what holds for all tests.

`make test` runs what is enumerated and the controls, `make check` the tests that are marked with `check`: what is
drawn, and every case where the plain tests take one of each kind. `make chaos` runs the long forms of tests/chaos.
"""

import functools
import gc
import os
import shlex
import sqlite3
from collections.abc import Iterator

import pytest

from forked import FORKED_PYTHON, start_server
from reasonmill.store import disk

# One thread for each process, this one and those that tests start: the processes are as many as the cores, and the
# bits of a run are promised for the same number of threads. Before torch is imported, which reads it then.
os.environ["OMP_NUM_THREADS"] = "1"
# Nearly all that importing and collecting make stays: to look through it for garbage takes a tenth of their time.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-long", action="store_true", help="run the long forms of the tests in tests/chaos")
    parser.addoption("--chaos-jobs", type=int, help="processes that a test of tests/chaos uses at a time")


def pytest_configure(config: pytest.Config) -> None:
    # Nobody cuts the power here, so that nothing waits for the disk: what is asked of it is seen before (chaos/).
    os.fsync = os.fstat  # type: ignore[assignment]
    disk.begin = functools.wraps(disk.begin)(begin_without_waiting)
    # The processes of tests are forked from one server that has imported what is slow (forked.py), and share it.
    if config.getoption("numprocesses", None):
        start_server()
        config.option.tx = [f"popen//python={shlex.join(FORKED_PYTHON)}" for _ in config.option.tx]


def pytest_collection_finish() -> None:
    """What has been imported stays: a collection needn't look at it again and again."""
    gc.freeze()
    gc.enable()


def begin_without_waiting(database: sqlite3.Connection, *, synced: bool) -> None:
    """Begins a transaction whose commit does not wait for the disk either."""
    database.execute("PRAGMA synchronous = OFF")
    database.execute("BEGIN IMMEDIATE")


# Files of tests are taken in their order: so many that take long come first that none of them is the last.
TAKE_LONG = (
    "chaos",
    "e2e",
    "knobs/test_stage",
    "unit/test_keys",
    "unit/test_more_steps",
    "unit/test_recovery",
    "unit/test_workers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The same order in all processes of tests; within it, files and their tests stay in theirs."""
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(TAKE_LONG))


@pytest.fixture(scope="session")
def chaos_long(pytestconfig: pytest.Config) -> bool:
    """Whether tests of tests/chaos run in their long form."""
    return bool(pytestconfig.getoption("--chaos-long"))


@pytest.fixture(scope="session")
def chaos_jobs(pytestconfig: pytest.Config) -> int:
    """Processes that a test may use at a time: the cores, unless other tests run beside it on them."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    return pytestconfig.getoption("--chaos-jobs") or (min(8, os.cpu_count() or 1) if alone else 1)


@pytest.fixture(scope="module")
def without_charts() -> Iterator[None]:
    """Reports have no charts: to draw them takes longer than all else in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reasonmill.mill.report._chart", lambda *_: None)
        yield
