"""Workers, as the process that trains sees them: it asks, goes on, and waits for the answers when it needs them."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Protocol

from reasonmill.activity import beat
from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.grading.verdict import Isolation
from reasonmill.workers.answers import Answer, Call, Failed
from reasonmill.workers.limits import Limits
from reasonmill.workers.wire import Frames, frame

# From the command line of a manager of workers to that which starts it isolated. The program that is started has to
# hand its standard input, a socket, and /proc on to the command, and must not leave it behind when it is killed.
Launcher = Callable[[Sequence[str]], Sequence[str]]

_PROGRAM = "import sys; sys.path[:] = {path!r}; from reasonmill.workers.manager import main; main()"
# In the environment of workers: one thread for each, nothing on the GPU, and sets in the same order every time.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
}


class Named(Protocol):
    """A plug-in. It is pickled; in a worker, its method `make_again` gives the object."""

    @property
    def title(self) -> str:
        """What it is called in messages."""


class Workers:
    """Workers for plug-ins, started when they are first needed.

    Nothing of them is left when this object is closed, or forgotten, or its process ends, also by a kill.

    Args:
        launchers: how each kind of isolation is started.

    Attributes:
        size: how many calls run at the same time, those that are slow left out. It changes no answer.
    """

    def __init__(self, launchers: Mapping[Isolation, Launcher] = MappingProxyType({"worker": list})) -> None:
        self.size = _processors()
        self._launchers = launchers
        self._managers: dict[Isolation, _Manager] = {}

    def ask(self, plugin: Named, call: Call, *, isolation: Isolation, limits: Limits) -> Answer:
        """Begins a call of a plug-in's object, in a process with its own copy of it.

        Raises:
            RecipeError: the isolation is not to be had here.
        """
        if sys.platform != "linux":
            raise RecipeError(
                f"{plugin.title} is graded in workers, which need Linux",
                fix='give it isolation = "none" in the recipe, if it can\'t hang',
            )
        if isolation not in self._launchers:
            raise RecipeError(f"{plugin.title} needs the isolation {isolation!r}, which is not to be had here")
        if isolation not in self._managers:
            self._managers[isolation] = _Manager(self._launchers[isolation])
        return self._managers[isolation].ask(plugin, call, limits, self.size)

    @contextmanager
    def limited_to(self, size: int | None) -> Iterator[None]:
        """Runs so many calls at the same time in the block, None for one on each processor; they end with it."""
        self.size = size or _processors()
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Ends all workers, also those that are asked something. The next call starts new ones."""
        for manager in self._managers.values():
            manager.close()
        self._managers.clear()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Manager:
    """The connection to a manager of workers."""

    def __init__(self, launcher: Launcher) -> None:
        self._connection, theirs = socket.socketpair()
        command = launcher([sys.executable, "-c", _PROGRAM.format(path=sys.path)])
        with theirs:
            # In a session of its own: a Ctrl-C in the terminal is this process's matter.
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), env={**os.environ, **_ENVIRONMENT}, start_new_session=True
            )
        # When this object is forgotten, and at the latest when this process ends.
        self._end = weakref.finalize(self, _end, self._connection, self._process)
        self._frames = Frames()
        self._plugins: dict[int, tuple[int, Named]] = {}
        self._asked: dict[int, tuple[int, _Answer]] = {}
        self._keys = 0
        self._calls = 0
        self._is_awaited = False

    def ask(self, plugin: Named, call: Call, limits: Limits, size: int) -> Answer:
        if id(plugin) not in self._plugins:
            self._keys += 1
            self._plugins[id(plugin)] = self._keys, plugin
            header = {"make": self._keys, "limits": limits.model_dump(), "size": size}
            header |= {"path": sys.path, "calls": type(call).__module__}
            self._send(frame(header, pickle.dumps(plugin)))
        key, answer = self._plugins[id(plugin)][0], _Answer(self)
        self._calls += 1
        self._asked[self._calls] = key, answer
        self._send(frame({"ask": self._calls, "of": key}, pickle.dumps(call)))
        self._is_awaited = False
        return answer

    def read(self) -> None:
        """Waits for news of the manager, and lets it know that nothing is done until they come."""
        if not self._is_awaited:
            self._send(frame({"awaited": True}))
            self._is_awaited = True
        try:
            data = self._connection.recv(1 << 20)
        except ConnectionError:
            data = b""
        beat()
        if not data:
            raise self._gone()
        for header, body in self._frames.of(data):
            if "unmade" in header:
                self._settle_unmade(header["unmade"], header["why"])
                continue
            number = header["answer"] if "answer" in header else header["failed"]
            _, answer = self._asked.pop(number)
            answer.settle(_read(body) if "answer" in header else {"failed": header["why"]})

    def close(self) -> None:
        self._end()

    def _settle_unmade(self, key: int, why: str) -> None:
        """What was asked of a plug-in that has no object."""
        plugin = next((plugin for known, plugin in self._plugins.values() if known == key), None)
        if plugin is None:  # said before
            return
        del self._plugins[id(plugin)]
        error: dict[str, Any] = {"what": f"{plugin.title} can't be made in a worker: {why}", "fix": "", "where": ""}
        error["exit_code"] = 2
        for number in [number for number, (of, _) in self._asked.items() if of == key]:
            self._asked.pop(number)[1].settle({"error": error})

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except ConnectionError as error:
            raise self._gone() from error

    def _gone(self) -> ReasonmillError:
        return ReasonmillError(
            f"the process that manages grader workers ended with exit code {self._process.wait()}",
            fix="look for what ended it, too little memory for example; the same command resumes this run",
        )


class _Answer:
    """An answer, which its manager brings."""

    def __init__(self, manager: _Manager) -> None:
        self._manager = manager
        self._said: dict[str, Any] | None = None

    def settle(self, said: dict[str, Any]) -> None:
        self._said = said

    def value(self) -> Any:
        while self._said is None:
            self._manager.read()
        if "failed" in self._said:
            raise Failed(self._said["failed"])
        if "error" in self._said:
            error = ReasonmillError(**{key: text for key, text in self._said["error"].items() if key != "exit_code"})
            error.exit_code = self._said["error"]["exit_code"]
            raise error
        return self._said["value"]


def _end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Ends a manager, who kills its workers as soon as the connection ends."""
    connection.close()
    process.wait()


def _read(body: bytes) -> dict[str, Any]:
    """What a worker answered, which may be anything."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and len(said) == 1:
        if "value" in said or isinstance(said.get("failed"), str):
            return said
        error = said.get("error")
        if isinstance(error, dict) and error.keys() == {"what", "fix", "where", "exit_code"}:
            return said
    return {"failed": "it gave an answer that can't be read"}
