"""The store under faults: writers that fail, killed writers, two writers, readers beside a writer.

The store's own operations fail in `crash_points`, one by one.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import reasonmill.store.home
from reasonmill.errors import Interrupted, OutOfSpace, StoreError
from reasonmill.store.home import Home

SOURCE = Path(reasonmill.store.home.__file__).parents[2]


def write_two_files(directory: Path) -> None:
    (directory / "a").write_text("alpha")
    (directory / "sub").mkdir()
    (directory / "sub" / "b").write_text("beta")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


def require_whole(home: Home) -> list[str]:
    """Every object is there with all its bytes, and nothing half is left; returns the digests."""
    with Home.open(home.path, write=False) as fresh:  # a home of its own, which has not verified anything yet
        digests = fresh.objects.digests()
        assert sorted(path.name for path in (home.path / "objects").iterdir()) == digests
        for digest in digests:
            fresh.objects.path(digest)
    assert list((home.path / "tmp").iterdir()) == []
    return digests


def raise_wrapped(code: int) -> None:
    try:
        raise OSError(code, os.strerror(code))
    except OSError as error:
        raise RuntimeError("the library could not write its file") from error


def raise_plain(code: int) -> None:
    raise OSError(code, os.strerror(code))


def raise_text(code: int) -> None:
    raise RuntimeError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")


@pytest.mark.parametrize("fail", [raise_plain, raise_wrapped, raise_text])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_an_object_is_written(home: Home, fail: Callable[[int], None], code: int) -> None:
    kept = home.objects.put(write_two_files)

    def write(directory: Path) -> None:
        (directory / "half").write_text("half")
        fail(code)

    with pytest.raises(OutOfSpace, match="nothing that was committed is lost"):
        home.objects.put(write)
    assert require_whole(home) == [kept]


@pytest.mark.parametrize("fail", [raise_plain, raise_wrapped, raise_text])
@pytest.mark.parametrize("code", [errno.EIO, errno.EFBIG])
def test_a_disk_that_fails_while_an_object_is_written(home: Home, fail: Callable[[int], None], code: int) -> None:
    with pytest.raises(StoreError, match=os.strerror(code)) as caught:
        home.objects.put(lambda directory: fail(code))
    assert not isinstance(caught.value, OutOfSpace)
    assert require_whole(home) == []


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "no corpus"), ValueError("a bug"), Interrupted("stop"), KeyboardInterrupt()],
)
def test_what_is_not_the_disks_fault_passes_unchanged(home: Home, error: BaseException) -> None:
    def write(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        home.objects.put(write)
    assert caught.value is error
    assert require_whole(home) == []


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


WRITE_FOREVER = """
    import sys
    from itertools import count
    from pathlib import Path
    from reasonmill.store.home import Home

    home, first = Home.open(sys.argv[1]), int(sys.argv[2])
    home.ledger.begin_run("r", {}, [])
    for step in count(first):
        def write(directory: Path) -> None:
            for name in "abcd":
                (directory / name).write_bytes(f"{step}{name}".encode() * 20_000)
        digest = home.objects.put(write)
        home.ledger.commit_step("k", step, digest)
        home.ledger.record_metrics("k", step, {"step/twice": 2 * step})
        print(step, digest, flush=True)
"""


@pytest.mark.check
def test_nothing_that_was_accepted_is_lost_when_writers_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "home"
    lines: list[str] = []
    delays = random.Random(0)
    for first in (0, 1000, 2000):
        process = start(WRITE_FOREVER, path, first)
        for _ in range(5):
            lines.append(read_line(process))
        time.sleep(delays.uniform(0.0, 0.03))
        process.kill()
        rest, _ = process.communicate(timeout=60)
        lines += rest.splitlines()

    with Home.open(path) as home:
        whole = require_whole(home)
        recorded = {row["step"] for row in home.ledger.metrics("k")}
        assert len(lines) >= 15
        for step, digest in (line.split() for line in lines):
            assert digest in whole
            assert home.ledger.step_groups("k", int(step)) == digest
            assert int(step) in recorded


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "home"
    process = start(WRITE_FOREVER, path, 0)
    try:
        read_line(process)
        with pytest.raises(StoreError, match=f"process {process.pid} on"):
            Home.open(path)

        last_seen = -1
        for _ in range(20):
            with Home.open(path, write=False) as reader:
                rows = reader.ledger.metrics("k")
                assert [row["step"] for row in rows] == list(range(len(rows)))
                assert all(row["step/twice"] == 2 * row["step"] for row in rows)
                digest = reader.ledger.step_groups("k", rows[-1]["step"])
                assert digest is not None
                reader.objects.path(digest)
                assert rows[-1]["step"] >= last_seen
                last_seen = rows[-1]["step"]
            read_line(process)
        assert last_seen >= 19
    finally:
        process.kill()
        process.communicate(timeout=60)
    Home.open(path).close()  # the system took the dead writer's lock back


FORK_AND_WAIT = """
    import os, sys, time
    from reasonmill.store.home import Home

    home = Home.open(sys.argv[1])
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_worker_that_outlives_a_killed_writer_does_not_hold_the_home(tmp_path: Path) -> None:
    process = start(FORK_AND_WAIT, tmp_path / "home")
    worker = int(read_line(process))
    try:
        time.sleep(0.1)  # let the worker get past the fork
        process.kill()
        process.wait(timeout=60)
        os.kill(worker, 0)  # it is alive
        Home.open(tmp_path / "home").close()
    finally:
        os.kill(worker, signal.SIGKILL)
        process.communicate(timeout=60)
