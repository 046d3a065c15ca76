"""The filter of system calls: what a program in the jail may ask of the kernel; everything else is refused.

A list of what is allowed, because a list of what is forbidden is never complete: no processes, no programs to start, no
network, no signals to others, no looking into others, no changes of files, no namespaces, no keys, no limits of others.
The numbers are the kernel's, of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; the
filter is classic BPF over struct seccomp_data (Documentation/userspace-api/seccomp_filter.rst).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

# A call's number on x86-64 and on 64-bit ARM; None where an architecture has no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "pipe": (22, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "socketpair": (53, 199),
    "getsockopt": (55, 209),
    "clone": (56, 220),
    "exit": (60, 93),
    "kill": (62, 129),
    "uname": (63, 160),
    "fcntl": (72, 25),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "readlink": (89, None),
    "umask": (95, 166),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "prctl": (157, 167),
    "arch_prctl": (158, None),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "tgkill": (234, 131),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "prlimit64": (302, 261),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "clone3": (435, 435),
    "faccessat2": (439, 439),
}
# AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64, and the column of the numbers.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# Calls with this bit are those of x32, another table that no filter means to allow.
_X32 = 0x40000000

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000  # with an error number in the lower half
_KILL = 0x80000000

# Offsets within struct seccomp_data; of arguments their lower half, which is all that the kernel reads of those below.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06

# A thread of the same process, and none of CLONE_NEW* or CLONE_PTRACE.
_CLONE_THREAD, _CLONE_LOOKED_AT = 0x00010000, 0x7E032000
# Which terminal, close on exec, how much there is to read, not to block.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Duplicates, flags and locks; not who gets a signal when something can be read.
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
# The name of a thread, and of memory.
_PRCTLS = (15, 16, 0x53564D41)
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF


def supported() -> bool:
    """Whether this machine's architecture has a filter."""
    return os.uname().machine in _MACHINES


def program(pid: int) -> bytes:
    """The filter for the process `pid`, which may signal itself only: instructions as the kernel reads them."""
    architecture, column = _MACHINES[os.uname().machine]
    # What is looked at more closely: the argument, the bits of it that count, and what they may be.
    closely: dict[str, list[tuple[int, int, tuple[int, ...]]]] = {
        "clone": [(0, _CLONE_LOOKED_AT, (_CLONE_THREAD,))],
        "kill": [(0, 0xFFFFFFFF, (pid,))],
        "tgkill": [(0, 0xFFFFFFFF, (pid,))],
        "prlimit64": [(0, 0xFFFFFFFF, (0, pid))],
        "ioctl": [(1, 0xFFFFFFFF, _IOCTLS)],
        "fcntl": [(1, 0xFFFFFFFF, _FCNTLS)],
        "prctl": [(0, 0xFFFFFFFF, _PRCTLS)],
        "socketpair": [(0, 0xFFFFFFFF, (_AF_UNIX,)), (1, _SOCK_TYPE, (_SOCK_STREAM,))],
    }

    def instructions() -> Iterator[tuple[int, int, int, int]]:
        yield _LOAD, 0, 0, _ARCHITECTURE
        yield _EQUAL, 1, 0, architecture
        yield _RETURN, 0, 0, _KILL
        yield _LOAD, 0, 0, _NUMBER
        yield _AT_LEAST, 0, 1, _X32
        yield _RETURN, 0, 0, _REFUSE | errno.EPERM
        for name, numbers in _NUMBERS.items():
            number = numbers[column]
            if number is None:
                continue
            checks = list(_checks(closely.get(name, [])))
            # libc starts threads by clone where there is no clone3, whose flags lie where a filter can't see them.
            end = _REFUSE | errno.ENOSYS if name == "clone3" else _ALLOW
            yield _EQUAL, 0, len(checks) + 1, number
            yield from checks
            yield _RETURN, 0, 0, end
        yield _RETURN, 0, 0, _REFUSE | errno.EPERM

    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions())


def _checks(looks: list[tuple[int, int, tuple[int, ...]]]) -> Iterator[tuple[int, int, int, int]]:
    """Instructions that refuse the call unless each argument is one of what it may be, and fall through if so."""
    for argument, bits, values in looks:
        yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument
        yield _AND, 0, 0, bits
        for place, value in enumerate(values):
            yield _EQUAL, len(values) - place, 0, value
        yield _RETURN, 0, 0, _REFUSE | errno.EPERM
