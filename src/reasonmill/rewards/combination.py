"""The reward of a rollout: the weighted sum of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reasonmill.protocols import Task
from reasonmill.randomness import Part
from reasonmill.rewards.rule import RULES
from reasonmill.types import Completion, Grade, Problem

ACCURACY = "accuracy"


def reward_names() -> tuple[str, ...]:
    """What a recipe may give a weight to."""
    return (ACCURACY, *RULES)


@dataclass(frozen=True)
class RewardWeights:
    """Weights by name of the reward; parts without a weight are still measured if `measured` names them."""

    weights: Mapping[str, float]
    measured: tuple[str, ...] = (ACCURACY, "format")

    def grade(
        self, task: Task, problem: Problem, completions: Sequence[Completion], *, noise: tuple[Part, ...]
    ) -> list[Grade]:
        """One grade for each completion. Where the task could not grade, the whole reward is None, never 0."""
        return [
            self._combine(problem, completion, grade, (*noise, sample))
            for sample, (completion, grade) in enumerate(
                zip(completions, task.grade(problem, completions), strict=True)
            )
        ]

    def _combine(self, problem: Problem, completion: Completion, grade: Grade, noise: tuple[Part, ...]) -> Grade:
        parts = dict(grade.parts)
        names = dict.fromkeys((*self.measured, *self.weights))
        parts.update({name: RULES[name](problem, completion, noise) for name in names if name in RULES})
        if grade.reward is None:
            return Grade(None, parts, grade.error)
        return Grade(sum(weight * parts[name] for name, weight in self.weights.items()), parts)
