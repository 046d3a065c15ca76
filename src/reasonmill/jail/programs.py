"""Programs in the jail: what one prints for an input, and what tests say of one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reasonmill.jail.inside import examine as examining
from reasonmill.jail.inside import program as running
from reasonmill.jail.jail import MAX_OUTPUT, Capture, Jail, Job, Limits, follow, memory_file

# Words for a human, and what is read of them.
_MAX_WORDS, _MAX_REASON = 100_000, 300
# How long tests may take to say that the program is gone, after it was killed.
_LAST_WORDS_S = 1.0
# The same for a program that was ended at its time limit: its tests have to run to see that, also on a busy machine.
_TESTS_LAST_WORDS_S = 5.0


Outcome = Literal["passed", "failed", "broken"]
_OUTCOMES: dict[str, Outcome] = {"passed": "passed", "failed": "failed", "broken": "broken"}


@dataclass(frozen=True)
class Ran:
    """What a program did with an input.

    Attributes:
        output: all that it printed, where `fault` is empty.
        fault: why its output does not count: too slow, too much, ended by an error.
        cpu_s: the seconds of a core that it took; 0 where it was ended.
    """

    output: bytes
    fault: str
    cpu_s: float


@dataclass(frozen=True)
class Examined:
    """What tests say of a program: "broken" where the tests themselves are at fault."""

    outcome: Outcome
    reason: str


def run(jail: Jail, source: str, stdin: bytes, limits: Limits) -> Ran:
    """Runs a program on an input.

    Raises:
        JailFailed: the jail did not do its part.
    """
    output, errors = Capture(MAX_OUTPUT), Capture(_MAX_WORDS, last=True)
    given = memory_file(stdin)
    job = Job(jail, [output, errors])
    try:
        jail.begin({"do": running.run.__name__, "source": source}, limits, [given, output.writer, errors.writer])
        output.handed_over()
        errors.handed_over()
        in_time = follow([job], limits.idle_s, lambda: not job.running or job.flooded)
        if job.flooded:
            return Ran(b"", f"it wrote more than {MAX_OUTPUT // 1_000_000} MB", 0.0)
        if not in_time:
            return Ran(b"", f"it took longer than {limits.seconds:g} s", 0.0)
        return Ran(bytes(output.data), _fault(job.status, bytes(errors.data), limits), job.cpu_s)
    finally:
        os.close(given)
        job.end()


def examine(
    program: Jail, tests: Jail, sources: Sequence[str], examination: Mapping[str, Any], limits: Limits
) -> Examined:
    """Lets tests call a program. Each is in a jail of its own, so that the program has no way to what decides.

    Args:
        sources: the program, as it may be meant: the first that is Python is taken.
        examination: the arguments of `inside.examine.examine`.
        limits: of the program and of the tests, for each.

    Raises:
        JailFailed: a jail did not do its part.
    """
    errors, verdict = Capture(_MAX_WORDS, last=True), Capture(_MAX_WORDS)
    programs_end, tests_end = socket.socketpair()
    answering, asking = Job(program, [errors]), Job(tests, [verdict])
    asking.running = answering.running = False
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        serving = {"do": running.serve.__name__, "sources": list(sources)}
        program.begin(serving, limits, [null, null, errors.writer, programs_end.fileno()])
        answering.running = True
        tests.begin(
            {"do": examining.examine.__name__, **examination},
            limits,
            [null, null, null, tests_end.fileno(), verdict.writer],
        )
        asking.running = True
        for capture in (errors, verdict):
            capture.handed_over()
        for end in (programs_end, tests_end):
            end.close()
        in_time = follow([answering, asking], limits.idle_s, lambda: not asking.running)
        slow = f"it took longer than {limits.seconds:g} s"
        if not in_time:
            answering.end()
            follow([asking], _TESTS_LAST_WORDS_S, lambda: not asking.running)
        words = [json.loads(line) for line in bytes(verdict.data).splitlines()]
        if not in_time:
            # Tests that hang before they have asked anything hang by themselves.
            return Examined("failed", slow) if words else Examined("broken", "the tests do not end")
        outcome, *reason = words[-1] if words else ["nothing"]
        if outcome in ("asked", "nothing"):
            broken_off = f"the tests break off: {_fault(asking.status, b'', limits)}"
            return Examined("failed" if outcome == "asked" else "broken", broken_off)
        if outcome == "gone":
            # Its end says more than that it is gone.
            follow([answering], _LAST_WORDS_S, lambda: not answering.running)
            fault = _fault(answering.status, bytes(errors.data), limits) if answering.status else ""
            return Examined("failed", fault or _printable(reason[0]))
        return Examined(_OUTCOMES[outcome], _printable("".join(reason)))
    finally:
        for end in (programs_end, tests_end):
            end.close()
        os.close(null)
        asking.end()
        answering.end()


def _fault(status: int | None, errors: bytes, limits: Limits) -> str:
    """Why a program that ended with this status did not end well; empty where it did."""
    if status == 0:
        return ""
    last = _printable(errors.decode(errors="replace").strip().rsplit("\n", 1)[-1][:_MAX_REASON])
    if status is not None and -status in _SIGNALS:
        return _SIGNALS[-status].format(seconds=f"{limits.seconds:g}")
    if status is not None and status < 0:
        return f"it was ended by signal {-status}"
    return f"it ended with an error: {last}" if last else f"it ended with the exit code {status}"


def _printable(text: str) -> str:
    """Words of a program, for terminals and files: without control characters and halves of characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


# Signals that say what a program did. The kernel ends by 24 or 9 what has used up its seconds of a core.
_SIGNALS = {
    9: "it took longer than {seconds} s",
    24: "it took longer than {seconds} s",
    11: "it crashed (segmentation fault)",
    6: "it crashed (abort)",
    31: "it made a forbidden system call",
}
