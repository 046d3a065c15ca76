"""The filters of system calls: what the kernel refuses to programs, and to workers, in the jail.

For programs there is a list of what is allowed, because a list of what is forbidden is never complete: no processes, no
programs to start, no network, no signals to others, no looking into others, no changes of files, no namespaces, no
keys, no limits of others. Workers run libraries that need more than anybody has listed, and processes of their own: for
them there is a list of what is forbidden.

The numbers are the kernel's, of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; the
filters are classic BPF over struct seccomp_data (Documentation/userspace-api/seccomp_filter.rst).
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
# What no grader needs: the network, looking into others, namespaces and mounts, keys, memory shared by a number, and
# what only an administrator does.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    "shmget": (29, 194),
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "semget": (64, 190),
    "msgget": (68, 186),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "modify_ldt": (154, None),
    "pivot_root": (155, 41),
    "adjtimex": (159, 171),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "clock_settime": (227, 112),
    "mq_open": (240, 180),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "accept4": (288, 242),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "clock_adjtime": (305, 266),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
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
_CLONE_NEW = 0x7E022000
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


# An instruction: code, how far to jump if true and if false, and a number.
_Instruction = tuple[int, int, int, int]
# How a call's argument is looked at: which it is, the bits of it that count, and what they may be.
_Look = tuple[int, int, tuple[int, ...]]


def for_programs(pid: int) -> bytes:
    """The filter for a program that is the process `pid`, which may signal itself only: instructions for the kernel."""
    closely: dict[str, list[_Look]] = {
        "clone": [(0, _CLONE_LOOKED_AT, (_CLONE_THREAD,))],
        "kill": [(0, 0xFFFFFFFF, (pid,))],
        "tgkill": [(0, 0xFFFFFFFF, (pid,))],
        "prlimit64": [(0, 0xFFFFFFFF, (0, pid))],
        "ioctl": [(1, 0xFFFFFFFF, _IOCTLS)],
        "fcntl": [(1, 0xFFFFFFFF, _FCNTLS)],
        "prctl": [(0, 0xFFFFFFFF, _PRCTLS)],
        "socketpair": [(0, 0xFFFFFFFF, (_AF_UNIX,)), (1, _SOCK_TYPE, (_SOCK_STREAM,))],
    }
    return _filter(dict.fromkeys(_NUMBERS, _ALLOW), closely, _REFUSE | errno.EPERM)


def for_workers() -> bytes:
    """The filter for a worker and all that it starts: instructions for the kernel."""
    refused = dict.fromkeys(_FORBIDDEN, _REFUSE | errno.EPERM)
    return _filter({**refused, "clone": _ALLOW, "clone3": _ALLOW}, {"clone": [(0, _CLONE_NEW, (0,))]}, _ALLOW)


def _filter(ends: dict[str, int], closely: dict[str, list[_Look]], otherwise: int) -> bytes:
    """Instructions that end each call as `ends` says, if its arguments are what they may be, and others as `otherwise`
    says."""
    architecture, column = _MACHINES[os.uname().machine]
    numbers = {**_NUMBERS, **_FORBIDDEN}

    def instructions() -> Iterator[_Instruction]:
        yield _LOAD, 0, 0, _ARCHITECTURE
        yield _EQUAL, 1, 0, architecture
        yield _RETURN, 0, 0, _KILL
        yield _LOAD, 0, 0, _NUMBER
        yield _AT_LEAST, 0, 1, _X32
        yield _RETURN, 0, 0, _REFUSE | errno.EPERM
        for name, end in ends.items():
            number = numbers[name][column]
            if number is None:
                continue
            checks = list(_checks(closely.get(name, [])))
            # libc starts processes by clone where there is no clone3, whose flags lie where a filter can't see them.
            end = _REFUSE | errno.ENOSYS if name == "clone3" else end
            yield _EQUAL, 0, len(checks) + 1, number
            yield from checks
            yield _RETURN, 0, 0, end
        yield _RETURN, 0, 0, otherwise

    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions())


def _checks(looks: list[_Look]) -> Iterator[_Instruction]:
    """Instructions that refuse the call unless each argument is one of what it may be, and fall through if so."""
    for argument, bits, values in looks:
        yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument
        yield _AND, 0, 0, bits
        for place, value in enumerate(values):
            yield _EQUAL, len(values) - place, 0, value
        yield _RETURN, 0, 0, _REFUSE | errno.EPERM
