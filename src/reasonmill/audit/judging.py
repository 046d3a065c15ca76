"""Grading in a process apart: whatever an attack does to a grader, the audit goes on, and says what it did."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Literal, Self, cast

from reasonmill.rewards.grades import ACCURACY, own_grades
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Problem

Judged = Literal["right", "wrong", "could not tell", "hung", "died"]


@dataclass(frozen=True, slots=True)
class Ruling:
    """What became of one response; `reason` is empty where it was right or wrong without further words."""

    judged: Judged
    reason: str = ""


class ApartJudge:
    """Judges responses in a process that is forked from this one, and forked again after it had to be killed.

    Args:
        limit_s: seconds that one response may take.
    """

    def __init__(self, task: NamedTask, limit_s: float) -> None:
        self._task = task
        self._limit_s = limit_s
        self._running: tuple[BaseProcess, Connection] | None = None
        self.num_judged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kill()

    def judge(self, problem: Problem, response: str) -> Ruling:
        """Judges one response. An accuracy of at least a half is right."""
        self.num_judged += 1
        process, pipe = self._running = self._running or self._forked()
        try:
            pipe.send((problem, response))
            if pipe.poll(self._limit_s):
                ruling: Ruling = pipe.recv()
                return ruling
        except (EOFError, OSError):
            self._kill()
            return Ruling("died", f"the process of the grader ended with exit code {process.exitcode}")
        self._kill()
        return Ruling("hung", f"no verdict after {self._limit_s:g} s")

    def _forked(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, here, self._task), daemon=False)
        process.start()
        there.close()
        return process, here

    def _kill(self) -> None:
        if self._running is None:
            return
        process, pipe = self._running
        self._running = None
        pipe.close()
        with contextlib.suppress(ProcessLookupError):
            # The process has a group of its own, with all that its grader started.
            os.killpg(cast(int, process.pid), signal.SIGKILL)
        process.kill()
        process.join()


def _serve(pipe: Connection, other_end: Connection, task: NamedTask) -> None:
    """Judges what comes through the pipe, until nobody is there any more."""
    os.setpgid(0, 0)
    os.dup2(2, 1)  # what a grader prints is no part of what the audit prints
    other_end.close()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            problem, response = pipe.recv()
            completion = Completion((0,), None, (True,), response, "stop", 0)
            pipe.send(_ruling(own_grades(task, problem, [completion])[0]))


def _ruling(grade: Grade) -> Ruling:
    accuracy = grade.parts.get(ACCURACY)
    if grade.reward is None or accuracy is None:
        return Ruling("could not tell", grade.error or f"the grade has no part {ACCURACY!r}")
    return Ruling("right" if accuracy >= 0.5 else "wrong", grade.error)
