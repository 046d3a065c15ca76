"""Processes that cost no imports: a server that has imported what is slow forks one for each program.

What a process of Python would do with `python -c PROGRAM ARGUMENTS` happens in the child: its exit code is the
interpreter's, its signals and streams are its own. The server never computes: a fork copies no threads. There is one
for all processes of a run of the tests, which it forks a server of its own for each. These processes of tests are its
children, too: pytest-xdist starts them as `FORKED_PYTHON`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

ADDRESS = "REASONMILL_TESTS_FORKS"  # the variable of the environment with the address of the server
LONGEST_ORDER = 1 << 20  # bytes
TIMED_OUT_S = 120
FORKED_PYTHON = [sys.executable, str(Path(__file__).with_name("forked_python.py"))]
SLOW_TO_IMPORT = (
    "matplotlib.figure",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic.main",
    "rich.live",
    "rich.progress",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",  # with torch
    "typer",
)
# transformers loads weights in threads, of which a forked torch now and then can't start the first two at once.
ENVIRONMENT = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}


@dataclass
class Ended:
    """How a process ended, and what it said on stderr."""

    returncode: int
    stderr: str


class Running:
    """A running process; what it says on `stdout` can be read where that was asked for."""

    def __init__(self, server: ForkServer, pid: int, stdout: TextIO | None, stderr: TextIO) -> None:
        self._server = server
        self._code: int | None = None
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        try:
            self.send_signal(0)
        except ProcessLookupError:
            return False
        return True

    def wait(self) -> int:
        """The exit code; that of a process which a signal ended is negative."""
        if self._code is None:
            self._code = int(self._server.read()["code"])
        return self._code

    def close(self) -> None:
        """Ends the process, if it did not end by itself."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                self.send_signal(signal.SIGKILL)
            self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


class ForkServer:
    """The server of this process, one child at a time: one that still runs when the next is asked for is killed."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._last: Running | None = None

    def start(
        self,
        program: str,
        *arguments: object,
        reads_stdout: bool = False,
        ignores: Sequence[int] = (),
        longest_s: int = TIMED_OUT_S,
    ) -> Running:
        """Runs a program with these arguments, and ends it if it takes longer than `longest_s`.

        It inherits that the signals of `ignores` are ignored.
        """
        if self._last is not None:
            self._last.close()
        stdin_number = os.open(os.devnull, os.O_RDONLY)
        stdout, stdout_number = _pipe() if reads_stdout else (None, os.open(os.devnull, os.O_WRONLY))
        stderr, stderr_number = _pipe()
        streams = [stdin_number, stdout_number, stderr_number]
        pid = self._order(program, arguments, streams, ignores, longest_s)
        for number in streams:
            os.close(number)
        self._last = Running(self, pid, stdout, stderr)
        return self._last

    def run(self, program: str, *arguments: object) -> Ended:
        """Runs a program to its end."""
        running = self.start(program, *arguments)
        said = running.stderr.read()
        return Ended(running.wait(), said)

    def take_my_place(self, program: str) -> int:
        """Runs a program on the streams of this process, for as long as it takes; returns its exit code."""
        self._order(program, [], [0, 1, 2])
        return int(self.read()["code"])

    def _order(
        self,
        program: str,
        arguments: Sequence[object],
        streams: Sequence[int],
        ignores: Sequence[int] = (),
        longest_s: int = 0,
    ) -> int:
        """Lets the server fork a child; returns its pid."""
        order = {
            "program": program,
            "arguments": list(map(str, arguments)),
            "path": [path for path in sys.path if path],
            "environment": {**os.environ, **ENVIRONMENT},
            "ignores": list(map(int, ignores)),
            "longest_s": longest_s,
        }
        socket.send_fds(self._socket, [json.dumps(order).encode()], streams)
        return int(self.read()["pid"])

    def read(self) -> Mapping[str, Any]:
        """What the server says next."""
        line = self._lines.readline()
        assert line, "the server is gone"
        message: Mapping[str, Any] = json.loads(line)
        return message


@cache
def fork_server() -> ForkServer:
    """The server of this process. It ends with it, when its socket closes."""
    if ADDRESS not in os.environ:
        start_server()
    return ForkServer(os.environ[ADDRESS])


@cache
def start_server() -> socket.socket:
    """Starts the server of this process and of those that it starts; it ends when the socket closes."""
    address = Path(tempfile.mkdtemp(prefix="forks-")) / "socket"
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        passed = [listener.fileno(), theirs.fileno()]
        subprocess.Popen([sys.executable, __file__, str(address), *map(str, passed)], pass_fds=passed)
    os.environ[ADDRESS] = str(address)
    return ours


def _pipe() -> tuple[TextIO, int]:
    ours, theirs = os.pipe()
    return os.fdopen(ours, "r", encoding="utf-8"), theirs


def listen(address: Path, listener: socket.socket, life: socket.socket) -> dict[str, Any] | None:
    """Forks a server for each process that asks for one, until the one that started this server is gone.

    Returns the order in a child of one of the servers, and None at the end of each of them and of this one.
    """
    while life not in select.select([listener, life], [], [])[0]:
        orders, _ = listener.accept()
        with orders:
            if os.fork() == 0:
                listener.close()
                life.close()
                return serve(orders)
    shutil.rmtree(address.parent)
    return None


def serve(orders: socket.socket) -> dict[str, Any] | None:
    """Forks a child for each order, and says how it ended; returns the order in the child, and None at the end."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, LONGEST_ORDER, 3)
        if not data:
            return None
        pid = os.fork()
        for number, given in zip((0, 1, 2), descriptors, strict=True):
            if pid == 0:
                os.dup2(given, number)
            os.close(given)
        if pid == 0:
            order: dict[str, Any] = json.loads(data)
            return order
        _say(orders, {"pid": pid})
        _, status = os.waitpid(pid, 0)
        _say(orders, {"code": os.waitstatus_to_exitcode(status)})


def _say(to: socket.socket, message: dict[str, Any]) -> None:
    to.sendall(f"{json.dumps(message)}\n".encode())


def prepare() -> None:
    """Imports what takes long, and nothing of reasonmill: a child has its own."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # which counts when it is imported
    gc.disable()  # what is imported stays: to look through it for garbage takes a tenth of the time
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page that it looks at
    gc.enable()


def become(order: dict[str, Any]) -> None:
    """Does in a child what the order says; its end is that of the interpreter."""
    signal.alarm(order["longest_s"])  # 0: never
    os.environ.clear()
    os.environ.update(order["environment"])
    for number in order["ignores"]:
        signal.signal(number, signal.SIG_IGN)
    sys.path[:] = order["path"]
    sys.argv[:] = ["-c", *order["arguments"]]
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(compile(order["program"], "<program>", "exec"), main.__dict__)


if __name__ == "__main__":
    prepare()
    place, *descriptors = sys.argv[1:]
    received = listen(Path(place), *(socket.socket(fileno=int(number)) for number in descriptors))
    if received is not None:
        become(received)
