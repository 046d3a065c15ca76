"""Tasks and rewards whose verdicts are computed in workers: seen from here, they are like others that can be begun."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from reasonmill.grading.verdict import Verdict
from reasonmill.protocols import Attempt, Domain, FunctionOfRows, Measured, Reward, Task
from reasonmill.randomness import Part
from reasonmill.rewards.grades import could_not_tell, own_grades, verdict_of
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Problem
from reasonmill.workers.answers import Answer, Call, Failed


@dataclass(frozen=True)
class GradeCall:
    """Asks a task for its own grade of a completion."""

    problem: Problem
    completion: Completion

    @property
    def seed(self) -> str:
        return f"{self.problem.id} {self.completion.text}"

    def __call__(self, task: Task) -> list[Any]:
        (grade,) = own_grades(task, self.problem, [self.completion])
        return [grade.reward, dict(grade.parts), grade.error]


@dataclass(frozen=True)
class VerdictCall:
    """Asks a task for its verdict on a response."""

    problem: Problem
    response: str

    @property
    def seed(self) -> str:
        return f"{self.problem.id} {self.response}"

    def __call__(self, task: Task) -> list[Any]:
        verdict = verdict_of(task, self.problem, self.response)
        return [verdict.outcome, verdict.reason, dict(verdict.parts)]


@dataclass(frozen=True)
class MeasureCall:
    """Asks a reward what it measures of an attempt.

    Attributes:
        task: the problem's task as a plug-in, pickled; it is made only where the reward looks at it.
    """

    problem: Problem
    completion: Completion
    task: bytes
    noise: tuple[Part, ...]

    @property
    def seed(self) -> str:
        return f"{self.problem.id} {self.completion.text}"

    def __call__(self, reward: Reward) -> list[Any]:
        return _told(Measured.of(reward.measure(self.attempt)))

    @property
    def attempt(self) -> Attempt:
        """What the reward is shown."""
        task = NamedTask(self.problem.task, _WhenNeeded(self.task))  # which is like the task
        return Attempt(self.problem, self.completion, task, self.noise)


@dataclass(frozen=True)
class GroupCall:
    """Asks a reward that looks at groups what it says of all attempts at a problem."""

    attempts: tuple[MeasureCall, ...]

    @property
    def seed(self) -> str:
        return " ".join(call.seed for call in self.attempts)

    def __call__(self, reward: FunctionOfRows) -> list[Any]:
        return [_told(each) for each in reward.measure_group([call.attempt for call in self.attempts])]


def _told(measured: Measured) -> list[Any]:
    """What a reward says, as JSON."""
    return [measured.value, measured.why_not, dict(measured.parts)]


@lru_cache(maxsize=64)
def _made(plugin: bytes) -> Any:
    return pickle.loads(plugin).make_again()


class _WhenNeeded:
    """The object of a plug-in, which is made as soon as somebody looks at it."""

    def __init__(self, plugin: bytes) -> None:
        self._plugin = plugin

    def __getattr__(self, name: str) -> Any:
        return getattr(_made(self._plugin), name)


class IsolatedTask:
    """A task whose own grades come from workers; all else is the task's.

    Args:
        ask: begins a call of the task in a worker.
    """

    def __init__(self, task: Task, ask: Callable[[Call], Answer]) -> None:
        self._task = task
        self._ask = ask
        self.domain: Domain = task.domain

    def __getattr__(self, name: str) -> Any:  # what tasks may have besides: measures, files, language_share
        return getattr(self._task, name)

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return self._task.problem(split, seed, index)

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return iter(self._task.problems(split, seed))

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [grade() for grade in [self.begin_grade(problem, completion) for completion in completions]]

    def verdict(self, problem: Problem, response: str) -> Verdict:
        """What the task's grader says of a response, with its reason.

        Raises:
            Failed: it hung, ended its process or raised an error.
        """
        return Verdict(*self._ask(VerdictCall(problem, response)).value())

    def begin_grade(self, problem: Problem, completion: Completion) -> Callable[[], Grade]:
        """Begins to grade; the function waits for the grade."""
        answer = self._ask(GradeCall(problem, completion))

        def grade() -> Grade:
            try:
                reward, parts, error = answer.value()
                return Grade(reward, {str(name): float(value) for name, value in parts.items()}, error)
            except Failed as failed:
                return could_not_tell(problem, str(failed))
            except (TypeError, ValueError, AttributeError):
                return could_not_tell(problem, "it gave what is no grade")

        return grade


class IsolatedReward:
    """A reward that is measured in workers.

    Args:
        ask: begins a call of the reward in a worker.
        task: the plug-in of a task, pickled.
    """

    def __init__(self, reward: Reward, ask: Callable[[Call], Answer], task: Callable[[str], bytes]) -> None:
        self._reward = reward
        self._ask = ask
        self._task = task

    def __getattr__(self, name: str) -> Any:  # what rewards may have besides: domains, files
        return getattr(self._reward, name)

    def measure(self, attempt: Attempt) -> Measured:
        return self.begin_measure(attempt)()

    def begin_measure(self, attempt: Attempt) -> Callable[[], Measured]:
        """Begins to measure; the function waits for what it says, and raises Failed where that is nothing."""
        answer = self._ask(self._call(attempt))
        return lambda: Measured(*answer.value())

    def measure_group(self, attempts: Sequence[Attempt]) -> Sequence[Measured]:
        return self.begin_group(attempts)()

    def begin_group(self, attempts: Sequence[Attempt]) -> Callable[[], Sequence[Measured]]:
        """Begins to measure all attempts at a problem together; the function waits for what it says of each.

        Where there is no answer, it is asked about each by itself, so that one that hangs spoils no other.
        """
        answer = self._ask(GroupCall(tuple(map(self._call, attempts))))

        def measure() -> Sequence[Measured]:
            try:
                return [Measured(*each) for each in answer.value()]
            except Failed as failed:
                if len(attempts) == 1:
                    return [Measured(None, str(failed))]
            each_alone = [self.begin_group([attempt]) for attempt in attempts]
            return [found for wait in each_alone for found in wait()]

        return measure

    def _call(self, attempt: Attempt) -> MeasureCall:
        return MeasureCall(attempt.problem, attempt.completion, self._task(attempt.task.name), attempt.noise)
