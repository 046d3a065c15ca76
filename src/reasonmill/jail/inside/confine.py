"""What a process in the jail gives up before it meets what a model wrote: its user, its limits, files, system calls.

Each of these can only be made stricter afterwards, by the kernel's own promise, so no code that runs later undoes it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from dataclasses import dataclass

from . import filter as calls

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 22, 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE = 47, 2
_SECCOMP_MODE_FILTER = 2
# Landlock's system calls have these numbers everywhere (include/uapi/linux/landlock.h).
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION, _RULE_PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER, _TRUNCATE, _IOCTL = (1 << bit for bit in (0, 1, 2, 3, 14, 15))
_READ, _OF_FILES = _EXECUTE | _READ_FILE | _READ_FOLDER, _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION = 0x20080522
# What a program may hold open; a thread bomb ends at so many threads.
_MAX_FILES, _MAX_THREADS = 64, 64


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_s: seconds of a core.
        memory_bytes: of addresses, which bounds what it can hold.
    """

    cpu_s: int
    memory_bytes: int


def landlock_version() -> int:
    """The version of Landlock that the kernel has; 0 where it has none."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)))


def landlock_rules(readable: list[str], writable: list[str]) -> int | None:
    """A descriptor of rules that leave nothing but reading below `readable`, writing to the null device, and everything
    below `writable`.

    Returns:
        None where the kernel has no Landlock.
    """
    version = landlock_version()
    if version == 0:
        return None
    # Every right that this version knows is refused unless a rule grants it; the network and what lies outside of the
    # process (signals, abstract sockets) too.
    rights = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        rights |= (version >= since) << bit
    attributes = struct.pack("=QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _called("landlock", _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes[:size], size, 0))
    grants = {
        **dict.fromkeys(readable, rights & _READ),
        **dict.fromkeys(writable, rights),
        "/dev/null": _READ_FILE | _WRITE_FILE,
    }
    for path, granted in grants.items():
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            granted &= _OF_FILES
        beneath = struct.pack("=Qi", granted, place)
        _called("landlock", _libc.syscall(_LANDLOCK_ADD_RULE, rules, _RULE_PATH_BENEATH, beneath, 0))
        os.close(place)
    return rules


def become(user: int) -> None:
    """Becomes another user for good; it may read what only root may, within what the jail shows.

    Raises:
        OSError: this process may not.
    """
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # The interpreter may lie where only root can read. What else lies there, the jail hides. Programs that are started
    # keep the right, too.
    _set_capabilities(1 << _CAP_DAC_READ_SEARCH)
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)


def confine(limits: Limits, rules: int | None, *, own_user: bool, filtered: bool) -> None:
    """Gives up everything but computing, for good.

    Args:
        rules: Landlock's.
        own_user: nobody else's processes count for the user, so that their number can be limited.
        filtered: put it under the rules and the filter of programs; else only its own limits hold.
    """
    _prctl(_PR_SET_PDEATHSIG, 9)
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        *(((resource.RLIMIT_NPROC, _MAX_THREADS),) if own_user else ()),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))
    _prctl(_PR_SET_DUMPABLE, 0)
    if filtered:
        give_up(rules, calls.for_programs(os.getpid()))


def give_up(rules: int | None, filter_: bytes) -> None:
    """Puts this process and all that it starts under Landlock's rules and a filter of system calls, for good."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if rules is not None:
        _called("landlock", _libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0))
        os.close(rules)
    kept = ctypes.create_string_buffer(filter_, len(filter_))
    # struct sock_fprog: how many instructions of eight bytes, and where.
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, struct.pack("@HP", len(filter_) // 8, ctypes.addressof(kept)))


def _set_capabilities(which: int) -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = struct.pack("=6I", which, which, which, 0, 0, 0)
    _called("capset", _libc.capset(header, data))


def _prctl(option: int, value: int, more: bytes | int = 0) -> None:
    _called("prctl", _libc.prctl(option, value, more, 0, 0))


def _called(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
