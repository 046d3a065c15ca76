"""A process that runs recipes one after the other in itself, with a fault in each: what leaks adds up here."""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos.nursery import TESTS, Order


class Worker:
    """The worker, seen from its parent."""

    def __init__(self, states: Path) -> None:
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.soak_worker", str(states)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        self.pid = self._process.pid

    def run(self, order: Order, fault: str, place: float, expected_s: float) -> int:
        """Runs the order's command line in the worker's own process; returns its exit code, or -1 for a traceback.

        Args:
            fault: one of FAULTS.
            place: where in the run it comes, from 0 to 1.
            expected_s: how long the run is expected to take.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        work = {"arguments": order.arguments, "log": order.log, "fault": fault, "place": place, "seconds": expected_s}
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline())["code"])

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def nothing(place: float, expected_s: float) -> Iterator[None]:
    """No fault at all."""
    yield


@contextmanager
def termination(place: float, expected_s: float) -> Iterator[None]:
    """SIGTERM after a share of the expected time."""
    timer = threading.Timer(place * expected_s, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def full_disk(place: float, expected_s: float) -> Iterator[None]:
    """Some fsyncs in a row find no space; the first of them is among the first sixty, about what a tiny run has."""
    fsync, calls, first = os.fsync, itertools.count(), int(60 * place)

    def find_no_space(descriptor: int) -> None:
        if first <= next(calls) < first + 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    os.fsync = find_no_space
    try:
        yield
    finally:
        os.fsync = fsync


@contextmanager
def short_write(place: float, expected_s: float) -> Iterator[None]:
    """No file can grow beyond a size that some files of a run have."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(2_000 + 600_000 * place), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Each with the exit codes that it may end in.
FAULTS: Mapping[str, tuple[Callable[[float, float], Any], frozenset[int]]] = {
    "none": (nothing, frozenset({0})),
    "term": (termination, frozenset({0, 128 + signal.SIGTERM})),
    "full": (full_disk, frozenset({0, 75})),
    "short": (short_write, frozenset({0, 3, 75})),
}


def main() -> None:
    """Takes work from standard input, one JSON object a line, and answers with exit codes."""
    from chaos import victim

    replies = os.fdopen(os.dup(1), "w")
    victim.prepare()
    victim.watch_states(Path(sys.argv[1]))
    # A termination that comes when the run is over is none.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    for line in sys.stdin:
        work = json.loads(line)
        log = os.open(work["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.close(log)
        fault, _ = FAULTS[work["fault"]]
        try:
            with fault(work["place"], work["seconds"]):
                code = victim.command(work["arguments"])
        except Exception:
            traceback.print_exc()
            code = -1
        # What is held counts, not what the allocators keep for the next run.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        print(json.dumps({"code": code}), file=replies, flush=True)


if __name__ == "__main__":
    main()
