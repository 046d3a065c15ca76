"""The store under faults: full disks, failing disks, killed writers, two writers, readers beside a writer."""

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
from reasonmill.store import commit
from reasonmill.store.home import Home

SOURCE = Path(reasonmill.store.home.__file__).parents[2]


def write_two_files(directory: Path) -> None:
    (directory / "a").write_text("alpha")
    (directory / "sub").mkdir()
    (directory / "sub" / "b").write_text("beta")


NUM_FSYNCS = 6  # two files, the manifest, two directories, and the store's directory after the rename


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


def failing(function: Callable[..., None], failing_call: int, code: int) -> Callable[..., None]:
    """`function`, whose call number `failing_call` (from 0) raises instead."""
    num_calls = 0

    def call(*args: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == failing_call + 1:
            raise OSError(code, os.strerror(code))
        function(*args)

    return call


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, OutOfSpace), (errno.EIO, StoreError)])
@pytest.mark.parametrize(
    ("function", "failing_call"), [*(("fsync", call) for call in range(NUM_FSYNCS)), ("rename", 0)]
)
def test_a_disk_that_fails_during_the_commit(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    failing_call: int,
    code: int,
    expected: type[StoreError],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing(getattr(os, function), failing_call, code))
        with pytest.raises(StoreError) as caught:
            home.objects.put(write_two_files)
    assert type(caught.value) is expected
    was_renamed = (function, failing_call) == ("fsync", NUM_FSYNCS - 1)
    assert len(require_whole(home)) == was_renamed

    digest = home.objects.put(write_two_files)  # the same command again
    assert require_whole(home) == [digest]


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, OutOfSpace), (errno.EIO, StoreError)])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_view_keeps_its_old_bytes_when_the_disk_fails(
    home: Home, monkeypatch: pytest.MonkeyPatch, function: str, code: int, expected: type[StoreError]
) -> None:
    view = home.run_dir("r") / "summary.json"
    commit.replace_file(view, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing(getattr(os, function), 0, code))
        with pytest.raises(StoreError) as caught:
            commit.replace_file(view, b"new")
    assert type(caught.value) is expected
    assert view.read_bytes() == b"old"
    assert list(view.parent.iterdir()) == [view]


def test_a_delete_that_fails_leaves_the_whole_object(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = home.objects.put(write_two_files)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing(os.rename, 0, errno.EIO))
        with pytest.raises(StoreError):
            home.objects.delete(digest)
    assert require_whole(home) == [digest]


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


DIE_IN_COMMIT = """
    import os, signal, sys
    from pathlib import Path
    from reasonmill.store import commit
    from reasonmill.store.home import Home

    home = Home.open(sys.argv[1])
    name, deadly_call, calls = sys.argv[2], int(sys.argv[3]), 0
    function = getattr(os, name)

    def call(*args):
        global calls
        if calls == deadly_call:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        function(*args)

    def write(directory: Path) -> None:
        (directory / "a").write_text("alpha")
        (directory / "sub").mkdir()
        (directory / "sub" / "b").write_text("beta")

    setattr(commit.os, name, call)
    home.objects.put(write)
"""


@pytest.mark.parametrize(
    ("function", "deadly_call"),
    [("fsync", 0), ("fsync", 2), ("fsync", NUM_FSYNCS - 2), ("rename", 0), ("fsync", NUM_FSYNCS - 1)],
)
def test_a_writer_that_dies_in_a_commit_leaves_a_whole_object_or_none(
    tmp_path: Path, function: str, deadly_call: int
) -> None:
    process = start(DIE_IN_COMMIT, tmp_path / "home", function, deadly_call)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    was_renamed = (function, deadly_call) == ("fsync", NUM_FSYNCS - 1)
    assert len(list((tmp_path / "home" / "tmp").iterdir())) == (not was_renamed)
    with Home.open(tmp_path / "home") as home:
        assert len(require_whole(home)) == was_renamed
        digest = home.objects.put(write_two_files)
        assert require_whole(home) == [digest]


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
