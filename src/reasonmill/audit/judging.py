"""Judging in a process apart: whatever an attack does to a grader, the audit goes on, and says what it did."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Literal, Self, cast

from reasonmill.errors import ReasonmillError
from reasonmill.protocols import Attempt, Measured, Reward
from reasonmill.rewards.grades import ACCURACY, own_grades
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Problem
from reasonmill.workers.answers import raised

Judged = Literal["right", "partly right", "wrong", "could not tell", "hung", "died"]
# About what a token holds, for rewards that count tokens.
_CHARACTERS_OF_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Ruling:
    """What became of one response.

    Attributes:
        reason: empty where it was right or wrong without further words.
        worth: the accuracy or the reward; None where there is none.
    """

    judged: Judged
    reason: str = ""
    worth: float | None = None


Rule = Callable[[Problem, str], Ruling]


def rule_of_task(task: NamedTask) -> Rule:
    """Rules as the task's grader does. An accuracy of at least a half is right."""

    def rule(problem: Problem, response: str) -> Ruling:
        return _of_grade(own_grades(task, problem, [_completion(response)])[0])

    return rule


def rule_of_reward(reward: Reward, task: NamedTask) -> Rule:
    """Says what a response to a problem of the task earns; whether that is much, the others decide (`RewardJudge`)."""

    def rule(problem: Problem, response: str) -> Ruling:
        completion = _completion(response)
        accuracy = own_grades(task, problem, [completion])[0].parts.get(ACCURACY)
        try:
            attempt = Attempt(problem, completion, task, ("audit", problem.id, response), accuracy)
            measured = Measured.of(reward.measure(attempt))
        except ReasonmillError:
            raise
        except (Exception, SystemExit) as error:
            return Ruling("could not tell", raised(error))
        if measured.value is None:
            return Ruling("could not tell", measured.why_not or "it does not apply")
        return Ruling("partly right", "", measured.value)

    return rule


class ApartJudge:
    """Judges responses in a process that is forked from this one, and forked again after it had to be killed.

    Args:
        limit_s: seconds that one response may take.
    """

    def __init__(self, rule: Rule, limit_s: float) -> None:
        self._rule = rule
        self._limit_s = limit_s
        self._running: tuple[BaseProcess, Connection] | None = None
        self.num_judged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kill()

    def judge(self, problem: Problem, response: str) -> Ruling:
        """Judges one response."""
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

    def worth(self, problem: Problem, response: str) -> float:
        """What a response is worth: 1.0 for a right one; 0.0 for one that is none."""
        return float(self.judge(problem, response).judged == "right")

    def of_gold(self, problem: Problem, response: str) -> Ruling:
        """Judges the gold answer, before any attacks on the problem."""
        return self.judge(problem, response)

    def _forked(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, here, self._rule), daemon=False)
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


class RewardJudge(ApartJudge):
    """Judges responses by what they earn: right is what earns as much as the gold answer to the same problem, wrong
    what earns no more than an empty response. Where the gold answer earns no more than that itself, right is only what
    earns more than both."""

    def __init__(self, rule: Rule, limit_s: float) -> None:
        super().__init__(rule, limit_s)
        self._of_nothing: dict[str, float] = {}
        self._of_gold: dict[str, float] = {}

    def worth(self, problem: Problem, response: str) -> float:
        """What a response earns; 0.0 where that can't be told."""
        return super().judge(problem, response).worth or 0.0

    def of_gold(self, problem: Problem, response: str) -> Ruling:
        """Judges the gold answer: what it earns is the full reward from here on."""
        ruling = super().judge(problem, response)
        if ruling.worth is not None:
            self._of_gold[problem.id] = ruling.worth
        return self.judge(problem, response)

    def judge(self, problem: Problem, response: str) -> Ruling:
        ruling = super().judge(problem, response)
        if ruling.worth is None:
            return ruling
        nothing, full = self._nothing(problem), self._of_gold.get(problem.id)
        told = f"it earns {ruling.worth:g}"
        if nothing is not None:
            told += f", an empty response {nothing:g}"
        if full is not None:
            told += f", and the gold answer {full:g}"
        return Ruling(_judged(ruling.worth, nothing, full), told, ruling.worth)

    def _nothing(self, problem: Problem) -> float | None:
        if problem.id not in self._of_nothing:
            worth = super().judge(problem, "").worth
            if worth is None:
                return None
            self._of_nothing[problem.id] = worth
        return self._of_nothing[problem.id]


def _judged(worth: float, nothing: float | None, full: float | None) -> Judged:
    if full is None or (nothing is not None and full <= nothing):
        return "right" if nothing is not None and worth > nothing else "wrong"
    if worth >= full:
        return "right"
    return "wrong" if nothing is not None and worth <= nothing else "partly right"


def _serve(pipe: Connection, other_end: Connection, rule: Rule) -> None:
    """Judges what comes through the pipe, until nobody is there any more."""
    os.setpgid(0, 0)
    os.dup2(2, 1)  # what a grader prints is no part of what the audit prints
    other_end.close()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            problem, response = pipe.recv()
            pipe.send(rule(problem, response))


def _completion(response: str) -> Completion:
    """A response as if it had been sampled."""
    tokens = (0,) * max(1, len(response) // _CHARACTERS_OF_A_TOKEN)
    return Completion(tokens, (0.0,) * len(tokens), (True,) * len(tokens), response, "stop", 0)


def _of_grade(grade: Grade) -> Ruling:
    accuracy = grade.parts.get(ACCURACY)
    if grade.reward is None or accuracy is None:
        return Ruling("could not tell", grade.error or f"the grade has no part {ACCURACY!r}")
    return Ruling("right" if accuracy >= 0.5 else "wrong", grade.error, accuracy)
