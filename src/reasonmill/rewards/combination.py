"""The reward of a rollout: the weighted sum of those parts that are a reward on the domain of its task.

As in the R1 paper (section 3), rules decide on reasoning and reward models on general prompts; format and language
count on both. A domain that a reward does not speak of is not a 0 in the sum: the reward is left out there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from reasonmill.errors import RecipeError
from reasonmill.protocols import Domain, Scorer, Task
from reasonmill.randomness import Part
from reasonmill.rewards.registry import RULES
from reasonmill.rewards.rule import ALL_DOMAINS
from reasonmill.tasks import registry
from reasonmill.types import Completion, Grade, Problem

ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True)
class Reward:
    """Who measures a reward (the task's grader, a rule or a reward model), and the domains on which it counts."""

    source: Literal["task", "rule", "model"]
    domains: frozenset[Domain]


_NOT_BY_RULE: dict[str, Reward] = {
    ACCURACY: Reward("task", frozenset({"reasoning"})),
    "helpfulness": Reward("model", frozenset({"helpfulness"})),
    "safety": Reward("model", frozenset({"safety"})),
}
if taken := _NOT_BY_RULE.keys() & RULES:
    raise TypeError(f"no rule can be named {' or '.join(sorted(taken))}: another reward is")
REWARDS: dict[str, Reward] = {**_NOT_BY_RULE, **{name: Reward("rule", rule.domains) for name, rule in RULES.items()}}


def reward_names() -> tuple[str, ...]:
    """What a recipe may give a weight to."""
    return tuple(REWARDS)


def check_rewards(weights: Mapping[str, float], tasks: Iterable[str], reward_models: Collection[str] = ()) -> None:
    """Refuses weights that can't be a reward of each of the tasks.

    Args:
        weights: by name of the reward; 0 is no weight.
        tasks: names of the tasks.
        reward_models: names of the rewards that the recipe has a reward model for.

    Raises:
        RecipeError: a reward is unknown or lacks its reward model, a reward model lacks its weight, a task has no
            reward at all, or the language has weight and a task's problems name none.
    """
    weighted = {name for name, weight in weights.items() if weight}
    for name in sorted(weights.keys() | set(reward_models)):
        if name not in REWARDS:
            raise RecipeError(f"unknown reward {name!r}", fix=f"use one of {', '.join(REWARDS)}")
        by_model = REWARDS[name].source == "model"
        if by_model and name in weighted and name not in reward_models:
            raise RecipeError(f"the reward {name!r} has a weight and no reward model", fix=f"add reward_models.{name}")
        if name in reward_models and (name not in weighted or not by_model):
            fix = f"give {name!r} a weight" if by_model else f"remove reward_models.{name}"
            raise RecipeError(f"the reward model {name!r} has no effect", fix=fix)
    for task in map(registry.get, tasks):
        if not any(task.domain in REWARDS[name].domains for name in weighted):
            fitting = [name for name, reward in REWARDS.items() if task.domain in reward.domains]
            raise RecipeError(
                f"task {task.name!r} has no reward: none of {', '.join(sorted(weighted)) or 'them'} with a weight "
                f"counts on {task.domain} tasks",
                fix=f"give a weight to one of {', '.join(fitting)}",
            )
        if "language" in weighted and "language" not in task.problem("train", 0, 0).meta:
            raise RecipeError(
                f"the reward 'language' has a weight, and the problems of task {task.name!r} name no language",
                fix="remove the weight or the task",
            )


@dataclass(frozen=True)
class RewardWeights:
    """Weights by name of the reward, 0 being none.

    Attributes:
        scorers: the reward models, for every weighted reward that needs one.
        measured: parts to report without a weight, wherever they can be told.
        rewards: who measures each reward, and where it counts.

    Raises:
        ValueError: a weighted reward is unknown, or its scorer is missing.
    """

    weights: Mapping[str, float]
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    measured: tuple[str, ...] = (ACCURACY, "format", "language")
    rewards: Mapping[str, Reward] = field(default_factory=lambda: REWARDS)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in self.rewards:
                raise ValueError(f"unknown reward {name!r}; use one of {', '.join(self.rewards)}")
            if weight and self.rewards[name].source == "model" and name not in self.scorers:
                raise ValueError(f"the reward {name!r} has a weight and no scorer")

    def grade(
        self, task: Task, problem: Problem, completions: Sequence[Completion], *, noise: tuple[Part, ...]
    ) -> list[Grade]:
        """One grade for each completion. Where a part of the reward can't be told, all of it is None, never 0.

        Raises:
            ValueError: no weighted reward counts on the task's domain.
        """
        applied = {
            name: weight
            for name, weight in self.weights.items()
            if weight and task.domain in self.rewards[name].domains
        }
        if not applied:
            raise ValueError(f"no weighted reward counts on task {task.name!r}, whose domain is {task.domain}")
        scores = {
            name: self.scorers[name].score(problem, completions)
            for name in applied
            if self.rewards[name].source == "model"
        }
        grades = []
        for sample, (completion, grade, *scored) in enumerate(
            zip(completions, task.grade(problem, completions), *scores.values(), strict=True)
        ):
            measured = {
                **grade.parts,
                **self._ruled(applied, problem, completion, (*noise, sample)),
                **dict(zip(scores, scored, strict=True)),
            }
            # A number that is not finite says that its part could not be told.
            told = {name: value for name, value in measured.items() if math.isfinite(value)}
            grades.append(_combined(applied, told, grade))
        return grades

    def _ruled(
        self, applied: Collection[str], problem: Problem, completion: Completion, noise: tuple[Part, ...]
    ) -> dict[str, float]:
        """What the rules measure; what one of them can't tell is left out."""
        names = [name for name in dict.fromkeys((*self.measured, *applied)) if name in RULES]
        measured = {name: RULES[name].measure(problem, completion, noise) for name in names}
        return {name: value for name, value in measured.items() if value is not None}


def _combined(weights: Mapping[str, float], parts: Mapping[str, float], grade: Grade) -> Grade:
    """The grade with all parts, and with their weighted sum as its reward."""
    if grade.reward is None:
        return Grade(None, parts, grade.error)
    missing = [name for name in weights if name not in parts]
    if missing:
        return Grade(None, parts, f"the reward {' and '.join(missing)} could not be told")
    reward = sum(weight * parts[name] for name, weight in weights.items())
    return Grade(reward, parts) if math.isfinite(reward) else Grade(None, parts, "the reward is not finite")


# What evaluation and collection ask of every rollout, whatever its domain: whether it is right.
ACCURACY_ALONE = RewardWeights(
    {ACCURACY: 1.0}, rewards={**REWARDS, ACCURACY: replace(REWARDS[ACCURACY], domains=ALL_DOMAINS)}
)
