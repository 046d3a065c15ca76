"""The first process in the jail: it starts a fresh one for each job, and ends it when it is told to.

A process that is forked from a warm interpreter takes a millisecond where a new interpreter takes twenty. It inherits
nothing of the jobs before it, because what a job is only ever enters the forked process.
"""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from . import examine, program
from .confine import Limits, become, confine, landlock_rules

# What programs use most: imported once, and not by each of them.
_WARM = (
    *("bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools"),
    *("hashlib", "heapq", "io", "itertools", "json", "math", "operator", "random", "re", "statistics", "string"),
    *("struct", "textwrap", "time", "typing"),
)
_JOBS: dict[str, Callable[..., None]] = {work.__name__: work for work in (program.run, program.serve, examine.examine)}
# What is said when jobs can come.
READY = b"ready"
# And when one has begun, with a descriptor of its process.
BEGUN = b"begun"
_MAX_HEADER = 4096
_MAX_DESCRIPTORS = 5


def main(settings: dict[str, Any]) -> None:
    """Serves jobs until the other end of the control socket is closed, or the process that ordered the jail is gone.

    Args:
        settings: the descriptors `control` and `guardian` (of that process); the `user` to become, None for none;
            whether nobody else's processes count for the user (`own_user`); the `readable` paths; and whether to
            `confine` jobs at all.
    """
    control, guardian = socket.socket(fileno=settings["control"]), settings["guardian"]
    for name in _WARM:
        __import__(name)
    if settings["user"] is not None:
        become(settings["user"])
    gc.collect()
    gc.freeze()
    control.send(READY)
    while True:
        waiting = select.poll()
        waiting.register(control, select.POLLIN)
        waiting.register(guardian, select.POLLIN)
        if any(where == guardian for where, _ in waiting.poll()):
            return
        header, ancillary, _, _ = control.recvmsg(_MAX_HEADER, socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4))
        if not header:
            return
        if not ancillary:  # the end of a job that had ended already
            continue
        descriptors = array.array("i", ancillary[0][2])
        job = json.loads(header)
        child = os.fork()
        if child == 0:
            _work(control, list(descriptors), Limits(**job["limits"]), settings)
        for descriptor in descriptors:
            os.close(descriptor)
        if not _attend(child, control, guardian):
            return


def _attend(child: int, control: socket.socket, guardian: int) -> bool:
    """Waits for the end of a job and reports it; any message meanwhile ends the job.

    Returns:
        Whether there is somebody who may have more jobs.
    """
    alive = os.pidfd_open(child)
    socket.send_fds(control, [BEGUN], [alive])
    waiting = select.poll()
    for source in (alive, control.fileno(), guardian):
        waiting.register(source, select.POLLIN)
    wanted = True
    while True:
        ready = {where for where, _ in waiting.poll()}
        if alive in ready:
            break
        wanted = guardian not in ready and bool(control.recv(_MAX_HEADER))
        os.kill(child, signal.SIGKILL)
        if not wanted:
            break
    _, status, used = os.wait4(child, 0)
    os.close(alive)
    if wanted:
        report = {"status": os.waitstatus_to_exitcode(status), "cpu_s": used.ru_utime + used.ru_stime}
        control.send(json.dumps(report).encode())
    return wanted


def _work(control: socket.socket, descriptors: list[int], limits: Limits, settings: dict[str, Any]) -> NoReturn:
    """Does a job in the process that was forked for it, and ends it."""
    try:
        # The job itself, then what becomes 0, 1, 2, and, where the job needs them, 3 and 4.
        first = 100
        moved = [os.dup2(descriptor, first + place) for place, descriptor in enumerate(descriptors)]
        control.detach()
        os.closerange(0, first)
        os.closerange(first + len(moved), os.sysconf("SC_OPEN_MAX"))
        with open(moved[0], encoding="utf-8", errors="surrogatepass") as file:
            job = json.load(file)
        for place, descriptor in enumerate(moved[1:]):
            os.dup2(descriptor, place)
            os.close(descriptor)
        rules = landlock_rules(settings["readable"], []) if settings["confine"] else None
        confine(limits, rules, own_user=settings["own_user"], filtered=settings["confine"])
        for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
            stream = open(number, mode, encoding="utf-8")  # noqa: SIM115  # as long as the process lives
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.setrecursionlimit(1000)
        _JOBS[job.pop("do")](**job)
        os._exit(0)
    except BaseException as error:
        # Nobody believes this; it is a reason for a human.
        os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace")[-1000:])
        os._exit(1)
