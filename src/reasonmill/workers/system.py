"""What the kernel is asked for: to whom orphans belong, who dies with whom, and how much a process may take."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# Of linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Of a clock's number, beside that of a process: what all its threads have computed (clock_getcpuclockid(3)).
_PROCESS_CLOCK = 2

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Makes this process the parent of all its descendants whose parents end."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """This process is killed as soon as its parent ends.

    Raises:
        OSError: the parent is another one, or has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError(f"process {parent} is no longer the parent")


def children() -> list[int]:
    """The processes whose parent this one is, dead ones that nobody waited for among them."""
    own, found = os.getpid(), []
    for number in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # a process may end meanwhile
            if int(_state_and_parent(number)[1]) == own:
                found.append(int(number))
    return found


def computes(process: int) -> bool:
    """Whether the first thread of a process computes, or could if there was a core for it; no where the kernel does not
    count how long.

    Threads are not looked for one by one. Where that was done, waiting for an ended process kept the manager busy in
    the kernel for seconds to minutes now and then: most likely while folders in /proc of threads were cleared away.
    """
    with suppress(OSError):
        return os.path.exists(f"/proc/{process}/schedstat") and _state_and_parent(str(process))[0] == b"R"
    return False


def _state_and_parent(process: str) -> list[bytes]:
    with open(f"/proc/{process}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[:2]  # behind the name, which is in parentheses


class Spent(NamedTuple):
    """Seconds that a process has computed, all threads together, and that its first one has waited for a core."""

    computed_s: float
    waited_s: float


NOTHING = Spent(0.0, 0.0)


def spent_by(process: int) -> Spent:
    """What a process has used; nothing where it has ended, or the kernel does not count."""
    with suppress(OSError), open(f"/proc/{process}/schedstat", "rb") as counted:
        clock = (~process << 3) | _PROCESS_CLOCK
        return Spent(time.clock_gettime(clock), int(counted.read().split()[1]) / 1e9)
    return NOTHING


def strangers(known: Collection[int]) -> list[int]:
    """All children but the known ones."""
    return [child for child in children() if child not in known]


def kill_strangers(known: Collection[int]) -> None:
    """Kills all children but the known ones, and theirs, who become children of this process. Returns when they are
    gone."""
    while found := strangers(known):
        for child in found:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in found:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def restrain(memory_bytes: int, processes: int) -> None:
    """Limits this process and each one that it starts.

    Args:
        memory_bytes: address space beyond what the process has now.
        processes: that its user may have beyond those that there are now; the kernel lets root have any number.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    if os.getuid() != 0:
        _lower(resource.RLIMIT_NPROC, _tasks_of_user() + processes)


def _tasks_of_user() -> int:
    """The threads of all processes of this process's user, which is what the kernel counts."""
    own, found = os.getuid(), 0
    for number in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{number}").st_uid == own:
                found += len(os.listdir(f"/proc/{number}/task"))
    return found


def _lower(which: int, value: int) -> None:
    """Sets a limit, unless a lower one holds already."""
    hard = resource.getrlimit(which)[1]
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (wanted, wanted))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
