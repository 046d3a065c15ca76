"""Evaluations beside each other: tests, intervals, power, and the problems that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from reasonmill.algo.differences import Difference, difference_of, holm
from reasonmill.errors import RecipeError
from reasonmill.evaluation.foreign import Answered
from reasonmill.evaluation.sources import Source

# Differences for which the power is said, as shares.
GAINS = (0.02, 0.05, 0.1)
# What all tasks of two evaluations together are called.
POOLED = "all tasks"

# (the first model's answers, the second's), by the names of problems.
_Pairs = Mapping[tuple[str, str], tuple[Answered, Answered]]


@dataclass(frozen=True)
class Changed:
    """A problem that the two models do not solve equally often: the share of right answers of each."""

    problem: str
    prompt: str
    first: float
    second: float


@dataclass(frozen=True)
class Compared:
    """Two models on the problems of a task.

    Attributes:
        first, second: their titles.
        alone: problems that only one of them was asked, or that have no graded answer of one; they are left out.
        ungraded: the share of each model's answers that could not be graded, which are left out, too.
        samples: graded answers to a problem, at least and at most.
        p_holm: the p-value raised for all tests of the comparison.
        power: the chance to see a true difference, by its size.
        needed: problems that would see the difference which was found, with a chance of 80 %.
        changed: the problems that changed, the largest change first.
    """

    task: str
    first: str
    second: str
    difference: Difference
    alone: int
    ungraded: tuple[float, float]
    samples: tuple[int, int]
    p_holm: float
    power: Mapping[float, float | None]
    needed: int | None
    changed: Sequence[Changed]

    def says(self, alpha: float) -> str:
        """What the test says of the second model."""
        if self.p_holm >= alpha:
            return "no difference shown"
        return "better" if self.difference.found.difference.value > 0 else "worse"

    def as_json(self, alpha: float) -> dict[str, Any]:
        """All of it."""
        found, mcnemar = self.difference.found, self.difference.mcnemar
        return {
            "task": self.task,
            "first": self.first,
            "second": self.second,
            "says": self.says(alpha),
            "shares": [found.parent, found.candidate],
            "difference": found.difference.as_metric(),
            "bootstrap": self.difference.bootstrap.as_metric(),
            "p_value": self.difference.p_value,
            "p_holm": self.p_holm,
            "mcnemar": None if mcnemar is None else asdict(mcnemar),
            "problems": found.problems,
            "clusters": len(found.change.clusters),
            "samples": list(self.samples),
            "left_out": self.alone,
            "ungraded": list(self.ungraded),
            "power": {str(gain): power for gain, power in self.power.items()},
            "problems_needed": self.needed,
            "changed": [asdict(changed) for changed in self.changed],
        }


def compare_sources(
    sources: Sequence[Source], *, alpha: float, seed: int, gains: Sequence[float] = GAINS, every_pair: bool = False
) -> list[Compared]:
    """Compares evaluations, each with the first one, task by task and, where there are several, all tasks together.

    Args:
        alpha: the level of the tests.
        seed: of the draws of tests and bootstrap.
        gains: true differences, as shares, for which the power is said.
        every_pair: compares all of them with each other.

    Raises:
        RecipeError: two of them have no problem in common.
    """
    pairs = [*combinations(sources, 2)] if every_pair else [(sources[0], other) for other in sources[1:]]
    found = [one for first, second in pairs for one in _compared(first, second, alpha, seed, gains)]
    raised = holm([one.difference.p_value for one in found])
    return [replace(one, p_holm=p_value) for one, p_value in zip(found, raised, strict=True)]


def _compared(first: Source, second: Source, alpha: float, seed: int, gains: Sequence[float]) -> list[Compared]:
    common = [task for task in first.tasks if task in second.tasks]
    by_task: dict[str, tuple[_Pairs, int]] = {}
    for task in common:
        ours, theirs = first.tasks[task], second.tasks[task]
        pairs = {
            (task, problem): (ours[problem], theirs[problem])
            for problem in ours
            if problem in theirs and ours[problem].values and theirs[problem].values
        }
        if pairs:
            by_task[task] = pairs, len(ours.keys() | theirs.keys()) - len(pairs)
    if not by_task:
        raise RecipeError(
            f"{first.title} and {second.title} have no problem in common: the one has answers to "
            f"{', '.join(first.tasks) or 'nothing'}, the other to {', '.join(second.tasks) or 'nothing'}",
            fix="compare evaluations of the same problems, by the same program",
        )
    if len(by_task) > 1:
        together = {problem: pair for pairs, _ in by_task.values() for problem, pair in pairs.items()}
        by_task[POOLED] = together, sum(alone for _, alone in by_task.values())
    return [
        _one(task, (first.title, second.title), pairs, alone, alpha, seed, gains)
        for task, (pairs, alone) in by_task.items()
    ]


def _one(
    task: str,
    titles: tuple[str, str],
    pairs: _Pairs,
    alone: int,
    alpha: float,
    seed: int,
    gains: Sequence[float],
) -> Compared:
    answers = [[pair[model] for pair in pairs.values()] for model in (0, 1)]
    difference = difference_of(
        *([answered.values for answered in model] for model in answers),
        names=["/".join(problem) for problem in pairs],
        clusters=[answered.cluster for answered in answers[0]],
        noise=(seed, "compare", task),
    )
    counts = [len(answered.values) for model in answers for answered in model]
    changed = [
        Changed(problem, ours.prompt, fmean(ours.values), fmean(theirs.values))
        for (_, problem), (ours, theirs) in pairs.items()
        if fmean(ours.values) != fmean(theirs.values)
    ]
    return Compared(
        task,
        *titles,
        difference=difference,
        alone=alone,
        ungraded=(_ungraded(answers[0]), _ungraded(answers[1])),
        samples=(min(counts), max(counts)),
        p_holm=difference.p_value,
        power={gain: difference.power(gain, alpha) for gain in gains},
        needed=difference.problems_needed(difference.found.difference.value, alpha),
        changed=sorted(changed, key=lambda one: -abs(one.second - one.first)),
    )


def _ungraded(answers: Sequence[Answered]) -> float:
    lost = sum(answered.ungraded for answered in answers)
    return lost / (lost + sum(len(answered.values) for answered in answers))
