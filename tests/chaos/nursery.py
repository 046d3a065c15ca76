"""Starts that cost nothing: a process that has imported everything once, and forks a child for each start.

The nursery itself never computes: a fork copies no threads, so nothing that starts some may run before it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from forked import FORKED_PYTHON

TESTS = Path(__file__).parents[1]
TIMED_OUT_S = 300.0

_ENVIRONMENT = {
    # One thread: the bits of a run are promised for the same number of threads.
    "OMP_NUM_THREADS": "1",
    # transformers loads weights in threads, of which a forked torch now and then can't start the first two at once.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    # tokenizers would start threads for several texts at a time, which a fork leaves behind.
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Order:
    """What a child does: a command line of reasonmill, under the tests' patches.

    `states` is the directory for the digests of the learners' last states, and `log` the file for what the child says.
    `sabotage` names a part of the product that is broken on purpose. `dies_after_steps` is the number of recorded
    steps after which the child kills its own process group.
    """

    arguments: tuple[str, ...]
    states: str
    log: str
    sabotage: str | None = None
    dies_after_steps: int | None = None


class Nursery:
    """The process that forks; one child at a time."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [*FORKED_PYTHON, "-c", "from chaos.nursery import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **_ENVIRONMENT},
            text=True,
        )
        assert self.read() == {"ready": True}

    def start(self, order: Order) -> Child:
        """A new child, the leader of a process group of its own."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        return Child(self, int(self.read()["pid"]))

    def run(self, order: Order) -> int:
        """Starts a child and waits for its exit code; that of a child which a signal ended is negative."""
        code = self.start(order).wait(TIMED_OUT_S)
        assert code is not None, f"the child did not end in {TIMED_OUT_S:.0f} s; see {order.log}"
        return code

    def read(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery is gone"
        message: Mapping[str, Any] = json.loads(line)
        return message

    def says_something(self, timeout_s: float) -> bool:
        return bool(select.select([self._process.stdout], [], [], max(0.0, timeout_s))[0])

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Child:
    """A running child."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None for a child that is still running after so long."""
        return int(self._nursery.read()["code"]) if self._nursery.says_something(timeout_s) else None

    def signal(self, number: int) -> None:
        """Sends a signal to the child alone."""
        os.kill(self.pid, number)

    def kill(self) -> int:
        """SIGKILL to the whole process group; returns the exit code, which a child that was faster chose itself."""
        # The nursery has not told the code yet, or nobody has read it: the pid may be gone, but is not another's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return int(self._nursery.read()["code"])


def main() -> None:
    """Forks a child for each order that comes in, and tells its pid and its exit code."""
    from chaos import victim

    victim.prepare()
    threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    # That of pyarrow's allocator looks after forks itself; of any other, a fork would leave the locks as they are.
    assert len([thread for thread in threads if thread != "jemalloc_bg_thd"]) == 1, threads
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_a_child(Order(**order))
        # Parent and child both do it, so that it is done before either goes on.
        _lead_a_group(pid)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def _lead_a_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.setpgid(pid, pid)


def _be_a_child(order: Order) -> None:
    """Does what the order says, and never returns."""
    from chaos import victim

    code = 1
    try:
        _lead_a_group(os.getpid())
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = victim.live(order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the nursery's own cleanup is not the child's to do
