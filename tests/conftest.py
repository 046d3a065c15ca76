"""Options of the test suite, and what holds for all tests.

`make test` runs what is enumerated and the controls, `make check` the tests that are marked with `check`: what is
drawn, and every case where the plain tests take one of each kind. `make chaos` runs the long forms of tests/chaos.
"""

import gc
import os
import shlex
from collections.abc import Iterator

import pytest

from forked import FORKED_PYTHON, start_server

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
    # The processes of tests are forked from one server that has imported what is slow (forked.py), and share it.
    if config.getoption("numprocesses", None):
        start_server()
        config.option.tx = [f"popen//python={shlex.join(FORKED_PYTHON)}" for _ in config.option.tx]


def pytest_collection_finish() -> None:
    """What has been imported stays: a collection needn't look at it again and again."""
    gc.freeze()
    gc.enable()


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
