"""A jail: a process that starts a fresh, confined one for each job, and can be killed with all that is in it."""

from __future__ import annotations

import array
import fcntl
import json
import math
import os
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from reasonmill.jail.inside.zygote import BEGUN, READY
from reasonmill.jail.level import Level

# What a program may write. More is a flood, and ends it.
MAX_OUTPUT = 16_000_000
# How long a jail has to start, and a killed process to be gone.
_START_S, _GONE_S = 30.0, 10.0
# How often it is looked at whether a job computes.
_LOOK_S = 0.1
_MAX_REPORT = 4096


class JailFailed(Exception):
    """The jail did not do its part: no fault of what ran in it."""


class Limits:
    """What a job may use.

    Args:
        seconds: of a core. A job that sleeps or waits has as long for that, and a second. A job that could go on and
            waits for a core loses nothing, so that verdicts don't depend on what else the machine does.
        memory_mb: megabytes of addresses.
    """

    def __init__(self, seconds: float = 6.0, memory_mb: int = 1024) -> None:
        self.seconds = seconds
        self.idle_s = seconds + 1
        self.memory_bytes = memory_mb * 1_000_000

    @property
    def inside(self) -> dict[str, int]:
        return {"cpu_s": math.ceil(self.seconds), "memory_bytes": self.memory_bytes}


class Capture:
    """The reading end of a pipe into which a job writes, and what came out of it.

    Args:
        limit: bytes that are kept.
        last: where more come, keep the last ones; else it is a flood, and `flooded` is set.
    """

    def __init__(self, limit: int, *, last: bool = False) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The job's end waits when the pipe is full, as every program expects.
        os.set_blocking(self.writer, True)
        self.data = bytearray()
        self.flooded = False
        self._limit, self._last = limit, last

    def handed_over(self) -> None:
        """Closes the job's end here, once the job has it: the pipe then ends with the job."""
        os.close(self.writer)
        self.writer = -1

    def read(self) -> bool:
        """Reads what there is; whether there may be more."""
        try:
            part = os.read(self.reader, 1 << 16)
        except BlockingIOError:
            return True
        self.data += part
        if len(self.data) > self._limit:
            if not self._last:
                self.flooded = True
                return False
            del self.data[: -self._limit]
        return bool(part)

    def close(self) -> None:
        """Closes what is still open."""
        for end in (self.reader, self.writer):
            if end >= 0:
                os.close(end)
        self.reader = self.writer = -1


class Jail:
    """One jail; it runs one job at a time, and starts again after it failed.

    Args:
        level: how it is kept apart.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._first_inside: int | None = None
        self._owner = os.getpid()
        self._job: int | None = None

    def begin(self, job: Mapping[str, Any], limits: Limits, descriptors: Sequence[int]) -> None:
        """Starts a job, which finds the descriptors under the numbers from 0 on.

        Raises:
            JailFailed: it could not be started.
        """
        control = self._started()
        text = memory_file(json.dumps(dict(job)).encode())
        try:
            handed = array.array("i", [text, *descriptors])
            header = json.dumps({"limits": limits.inside}).encode()
            control.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)])
            if not _readable(control, _START_S):
                raise TimeoutError("it does not begin")
            said, found, _, _ = socket.recv_fds(control, _MAX_REPORT, 1)
            if said != BEGUN:
                raise ValueError("it ended")
            self._job = found[0]
        except (OSError, ValueError) as error:
            self.close()
            raise JailFailed(f"the jail takes no job: {error}") from error
        finally:
            os.close(text)

    def fileno(self) -> int:
        """The descriptor that can be read when the job has ended."""
        if self._control is None:
            raise JailFailed("the jail has no job")
        return self._control.fileno()

    def idle(self) -> bool:
        """Whether no thread of the job computes, or could if there was a core for it."""
        try:
            with open(f"/proc/self/fdinfo/{self._job}", encoding="ascii") as lines:
                pid = next(line.split()[1] for line in lines if line.startswith("Pid:"))
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/stat", "rb") as stat:
                    # Behind the name, in parentheses, comes the state.
                    if stat.read().rpartition(b")")[2].split()[0] in (b"R", b"D"):
                        return False
        except OSError:  # it has ended, or processes are hidden here
            return True
        return True

    def ended(self) -> tuple[int, float]:
        """What became of the job that has ended: its exit code, or minus the signal that ended it; and the seconds of a
        core that it took.

        Raises:
            JailFailed: the jail itself is gone.
        """
        try:
            report = self._control.recv(_MAX_REPORT) if self._control else b""
        except OSError:
            report = b""
        if not report:
            self.close()
            raise JailFailed("the jail ended by itself")
        self._forget_job()
        said = json.loads(report)
        return int(said["status"]), float(said["cpu_s"])

    def _forget_job(self) -> None:
        if self._job is not None:
            os.close(self._job)
            self._job = None

    def kill(self) -> None:
        """Ends the job, or the whole jail where that does not help."""
        if self._control is None:
            return
        with suppress(OSError):
            self._control.send(b"end")
        if _readable(self._control, _GONE_S):
            with suppress(JailFailed):
                self.ended()
        else:
            self.close()

    def close(self) -> None:
        """Ends the jail and all that is in it."""
        self._forget_job()
        process, self._process = self._process, None
        if self._control is not None:
            self._control.close()
            self._control = None
        if process is None:
            return
        if process.stderr is not None:
            process.stderr.close()
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            for pid in (self._first_inside, process.pid):
                if pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait(_GONE_S)

    def _started(self) -> socket.socket:
        if self._owner != os.getpid():  # this process was forked from the one whose jail it is
            self._process = self._control = None
            self._owner = os.getpid()
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._control is not None:
            return self._control
        try:
            control = self._start()
        except (OSError, ValueError) as error:
            self.close()
            raise JailFailed(f"the jail does not start: {error}") from error
        if not _readable(control, _START_S) or control.recv(_MAX_REPORT) != READY:
            said = self._said()
            self.close()
            raise JailFailed(f"the jail does not start: {said}")
        return control

    def _start(self) -> socket.socket:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        guardian = os.pidfd_open(os.getpid())
        info, told = os.pipe2(os.O_CLOEXEC)
        with open(info, "rb", buffering=0) as file:
            try:
                self._process = subprocess.Popen(
                    self._level.command(theirs.fileno(), guardian, told),
                    pass_fds=(theirs.fileno(), guardian, told),
                    env=self._level.environment(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            finally:
                theirs.close()
                os.close(guardian)
                os.close(told)
            said = b""
            # One object, after which the pipe stays open; nothing where bubblewrap refuses to start.
            while self._level.bwrap is not None and not said.rstrip().endswith(b"}") and (part := file.read(4096)):
                said += part
        self._first_inside = json.loads(said)["child-pid"] if said else None
        return self._control

    def _said(self) -> str:
        """What a jail that does not start says about it."""
        if self._process is None or self._process.stderr is None:
            return "no reason"
        said = b""
        if _readable(self._process.stderr, 1.0):
            said = os.read(self._process.stderr.fileno(), _MAX_REPORT)
        return said.decode(errors="replace").strip().rsplit("\n", 1)[-1] or "no reason"


class Job:
    """A job that runs in a jail, and what it writes.

    Attributes:
        status: None as long as it runs, and where it was killed.
        cpu_s: the seconds of a core that it took, once it has ended.
    """

    def __init__(self, jail: Jail, captures: Sequence[Capture]) -> None:
        self.jail = jail
        self.captures = captures
        self.status: int | None = None
        self.cpu_s = 0.0
        self.running = True

    @property
    def flooded(self) -> bool:
        return any(capture.flooded for capture in self.captures)

    def end(self) -> None:
        """Kills it, if it runs, and closes its pipes."""
        if self.running:
            self.running = False
            self.jail.kill()
        for capture in self.captures:
            capture.close()


def follow(jobs: Sequence[Job], idle_s: float, done: Callable[[], bool]) -> bool:
    """Reads what jobs write until `done`, which is asked after everything that happens.

    Returns:
        False where none of the jobs has computed for so long before that, all in all.

    Raises:
        JailFailed: a jail is gone.
    """
    idle, looked = 0.0, time.monotonic()
    with selectors.DefaultSelector() as selector:
        for job in jobs:
            selector.register(job.jail, selectors.EVENT_READ, job)
            for capture in job.captures:
                selector.register(capture.reader, selectors.EVENT_READ, capture)
        while not done():
            if idle >= idle_s:
                return False
            ready = selector.select(_LOOK_S)
            since = time.monotonic() - looked
            if since >= _LOOK_S:
                idle += since if all(job.jail.idle() for job in jobs if job.running) else 0.0
                looked += since
            for key, _ in ready:
                if isinstance(key.data, Capture):
                    if not key.data.read():
                        selector.unregister(key.fileobj)
                else:
                    selector.unregister(key.fileobj)
                    key.data.running = False
                    key.data.status, key.data.cpu_s = key.data.jail.ended()
                    # What it wrote before its end is in the pipes, and nobody else writes there.
                    for capture in key.data.captures:
                        while not capture.flooded and _readable(capture.reader, 0) and capture.read():
                            pass
    return True


def memory_file(data: bytes) -> int:
    """A descriptor of a file in memory that nobody can change."""
    file = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(file, "wb", closefd=False) as writer:
        writer.write(data)
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


def _readable(source: Any, seconds: float) -> bool:
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))
