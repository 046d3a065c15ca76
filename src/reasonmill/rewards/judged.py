"""Rewards that a judge behind a server decides: criteria of a rubric, and comparisons within a group.

A judge is asked about the final answer, never about the thinking. The same question is asked once in a stage, whatever
asks it, and a budget bounds how many there are: when it is spent the stage stops, and goes on from there with a larger
one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from statistics import fmean
from typing import Annotated, Self, get_args

from pydantic import Field

from reasonmill.errors import RecipeError
from reasonmill.grading.verdict import Isolation
from reasonmill.protocols import Attempt, Domain, Measured
from reasonmill.rewards.judge import Judge, JudgeSettings, Pair, Point
from reasonmill.settings import INCIDENTAL
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import final_answer
from reasonmill.types import Problem

Budget = Annotated[int, INCIDENTAL, Field(ge=1)]


_EVERYWHERE: list[Domain] = list(get_args(Domain))
_NO_VERDICT = "the judge gave no verdict"


class JudgedReward(ABC):
    """What rewards by a judge have in common.

    Attributes:
        server: where the judge is served.
        budget: how many replies of it a stage may have.
    """

    of_groups = True
    isolation: Isolation = "none"  # the judge computes elsewhere, and what it says is kept by this process

    def __init__(self, server: JudgeSettings, budget: int, domains: Sequence[Domain]) -> None:
        self.server = server
        self.budget = budget
        self.domains = frozenset(domains)
        self._judge = Judge(server)

    def asking(self, judge: Judge) -> Self:
        """The same reward with a judge whose replies are kept."""
        other = copy(self)
        other._judge = judge
        return other

    def require(self, task: NamedTask) -> None:
        """Refuses a task with an environment: the judge is shown one turn, and the others might be what counts.

        Raises:
            RecipeError: it has one.
        """
        if task.environment is not None:
            raise RecipeError(
                f"task {task.name!r} has an environment, and the judge of a reward reads one turn",
                fix="remove the weight of the reward, or the environment",
            )

    def measure(self, attempt: Attempt) -> float | None:
        """What it says of one attempt alone."""
        return self.measure_group([attempt])[0].value

    @abstractmethod
    def measure_group(self, attempts: Sequence[Attempt]) -> list[Measured]:
        """What it says of each of the attempts at a problem."""


class Rubric(JudgedReward):
    """The share of some criteria that an answer meets, each of which is a question of its own; 0.0 without an answer.

    Args:
        criteria: what a judge is to look for, one sentence each.
        budget: how many verdicts a stage may ask for.
        domains: of the tasks on which it counts.
    """

    def __init__(
        self,
        server: JudgeSettings,
        criteria: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)],
        budget: Budget = 10_000,
        domains: list[Domain] = _EVERYWHERE,
    ) -> None:
        super().__init__(server, budget, domains)
        self._criteria = criteria

    def measure_group(self, attempts: Sequence[Attempt]) -> list[Measured]:
        answers = [_answer(attempt) for attempt in attempts]
        points = {
            (answer, criterion): Point(attempt.problem, answer, criterion)
            for attempt, answer in zip(attempts, answers, strict=True)
            for criterion in self._criteria
            if answer
        }
        met = dict(zip(points, self._judge.met(list(points.values())), strict=True))
        return [
            self._share([met[answer, each] for each in self._criteria]) if answer else Measured(0.0)
            for answer in answers
        ]

    def _share(self, met: Sequence[bool | None]) -> Measured:
        known = [verdict for verdict in met if verdict is not None]
        return Measured(fmean(known)) if len(known) == len(met) else Measured(None, _NO_VERDICT)


class Pairwise(JudgedReward):
    """How often an answer is preferred to others of its group, from 0.0 to 1.0; 0.5 is as good as them.

    Each attempt is compared with the next ones of its group, as if they stood in a ring. Each two answers are compared
    in both orders: where the judge prefers the place and not the answer, they are as good as each other. An attempt
    without an answer loses to all that have one, and equal answers are as good, which nobody is asked about.

    Args:
        opponents: with how many of the next ones each attempt is compared; each takes part in twice as many
            comparisons.
        budget: how many verdicts a stage may ask for, each order being one.
        domains: of the tasks on which it counts.
    """

    def __init__(
        self,
        server: JudgeSettings,
        opponents: Annotated[int, Field(ge=1)] = 2,
        budget: Budget = 10_000,
        domains: list[Domain] = _EVERYWHERE,
    ) -> None:
        super().__init__(server, budget, domains)
        self._opponents = opponents

    def measure_group(self, attempts: Sequence[Attempt]) -> list[Measured]:
        answers = [_answer(attempt) for attempt in attempts]
        num = len(answers)
        ring = {
            (min(place, other), max(place, other))
            for place in range(num)
            for step in range(1, self._opponents + 1)
            if (other := (place + step) % num) != place
        }
        wins: list[list[float | None]] = [[] for _ in answers]
        preferred = self._preferred(attempts[0].problem, [(answers[a], answers[b]) for a, b in sorted(ring)])
        for (first, second), share in zip(sorted(ring), preferred, strict=True):
            wins[first].append(share)
            wins[second].append(None if share is None else 1 - share)
        return [_mean(own) for own in wins]

    def _preferred(self, problem: Problem, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Of each two answers the share of the first: 1.0, 0.5 or between; None without a verdict in both orders."""
        asked = {
            order: Pair(problem, *order)
            for first, second in pairs
            if first and second and first != second
            for order in ((first, second), (second, first))
        }
        given = dict(zip(asked, self._judge.preferences(list(asked.values())), strict=True))
        shares: list[float | None] = []
        for first, second in pairs:
            if (first, second) not in asked:
                shares.append(0.5 + 0.5 * (bool(first) - bool(second)))
                continue
            there, back = given[first, second], given[second, first]
            shares.append(None if there is None or back is None else _share(there, back))
        return shares


def _share(there: float, back: float) -> float:
    """The first answer's share, where `there` and `back` say how much better the first one shown is, from -1 to 1."""
    return 0.5 if there * back > 0 else 0.5 + (there - back) / 4


def _mean(shares: Sequence[float | None]) -> Measured:
    known = [share for share in shares if share is not None]
    return (
        Measured(fmean(known)) if known else Measured(None, _NO_VERDICT if shares else "it has nobody to compare with")
    )


def _answer(attempt: Attempt) -> str:
    return (final_answer(attempt.completion.text) or "").strip()
