"""The reward of a rollout: the weighted sum of those parts that are a reward on the domain of its task.

As in the R1 paper (section 3), rules decide on reasoning and reward models on general prompts; format and language
count on both. A domain that a reward does not speak of is not a 0 in the sum: the reward is left out there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.protocols import Attempt, Domain, Reward, Scorer, Task
from reasonmill.randomness import Part
from reasonmill.rewards.rules.format import FormatReward
from reasonmill.rewards.rules.language import LanguageReward
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Problem

ALL_DOMAINS: frozenset[Domain] = frozenset(get_args(Domain))
ACCURACY = "accuracy"
# Rewards that reward models give, and the domains on which they count.
BY_MODEL: Mapping[str, frozenset[Domain]] = {
    "helpfulness": frozenset({"helpfulness"}),
    "safety": frozenset({"safety"}),
}
# Parts that no rule decides: the task's own grader gives the accuracy.
NOT_RULES = frozenset({ACCURACY, *BY_MODEL})
# Parts that are reported of every rollout, with a weight or without, wherever they can be measured.
MEASURED: Mapping[str, Reward] = {"format": FormatReward(), "language": LanguageReward()}


def domains_of(name: str, rules: Mapping[str, Reward]) -> frozenset[Domain]:
    """The domains on whose problems a reward counts.

    Args:
        rules: the rewards that rules decide, by name.
    """
    if name == ACCURACY:
        return frozenset({"reasoning"})
    if name in BY_MODEL:
        return BY_MODEL[name]
    return frozenset(getattr(rules[name], "domains", ALL_DOMAINS))


def check_rewards(
    weights: Mapping[str, float],
    tasks: Iterable[NamedTask],
    reward_of: Callable[[str], Reward],
    reward_models: Collection[str] = (),
) -> None:
    """Refuses weights that can't be a reward of each of the tasks.

    Args:
        weights: by name of the reward; 0 is no weight.
        reward_of: finds the rule of a name.
        reward_models: names of the rewards that the recipe has a reward model for.

    Raises:
        RecipeError: a reward is unknown or lacks its reward model, a reward model lacks its weight, a task has no
            reward at all, or the language has weight and that of a task's problems is not known.
    """
    weighted = {name for name, weight in weights.items() if weight}
    for name in sorted(weights.keys() | set(reward_models)):
        by_model = name in BY_MODEL
        if by_model and name in weighted and name not in reward_models:
            raise RecipeError(f"the reward {name!r} has a weight and no reward model", fix=f"add reward_models.{name}")
        if name in reward_models and (name not in weighted or not by_model):
            fix = f"give {name!r} a weight" if by_model else f"remove reward_models.{name}"
            raise RecipeError(f"the reward model {name!r} has no effect", fix=fix)
    rules = {name: reward_of(name) for name in weights if name not in NOT_RULES}
    for task in tasks:
        if not any(task.domain in domains_of(name, rules) for name in weighted):
            known = dict.fromkeys((ACCURACY, *BY_MODEL, *rules))
            fitting = [name for name in known if task.domain in domains_of(name, rules)]
            raise RecipeError(
                f"task {task.name!r} has no reward: none of {', '.join(sorted(weighted)) or 'them'} with a weight "
                f"counts on {task.domain} tasks",
                fix=f"give a weight to one of {', '.join(fitting)}",
            )
        scored = sorted(name for name in weighted if name in BY_MODEL and task.domain in BY_MODEL[name])
        if task.environment is not None and scored:
            raise RecipeError(
                f"task {task.name!r} has an environment, and the model of the reward {scored[0]!r} reads one turn",
                fix="remove the weight or the environment",
            )
        if "language" in weighted:
            task.require_languages("the reward 'language'")


@dataclass(frozen=True)
class RewardWeights:
    """Weights by name of the reward, 0 being none.

    Attributes:
        rules: the rewards that rules decide, for every weighted reward that is one.
        scorers: the reward models, for every weighted reward that needs one.
        everywhere: whether all rewards count on all domains.

    Raises:
        ValueError: who decides a weighted reward is missing.
    """

    weights: Mapping[str, float]
    rules: Mapping[str, Reward] = field(default_factory=lambda: MEASURED)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    everywhere: bool = False

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if weight and name != ACCURACY and name not in self.scorers and name not in self.rules:
                raise ValueError(f"the reward {name!r} has a weight, but no rule and no scorer")

    def grade(
        self, task: NamedTask, problem: Problem, completions: Sequence[Completion], *, noise: tuple[Part, ...]
    ) -> list[Grade]:
        """One grade for each completion. Where a part of the reward can't be measured, all of it is None, never 0.

        Raises:
            ValueError: no weighted reward counts on the task's domain.
        """
        applied = self.on(task.domain)
        if not applied:
            raise ValueError(f"no weighted reward counts on task {task.name!r}, whose domain is {task.domain}")
        scores = {name: self.scorers[name].score(problem, completions) for name in applied if name in self.scorers}
        grades = []
        for sample, (completion, grade, *scored) in enumerate(
            zip(completions, own_grades(task, problem, completions), *scores.values(), strict=True)
        ):
            measured = {
                **grade.parts,
                **self._ruled(applied, Attempt(problem, completion, task, (*noise, sample))),
                **dict(zip(scores, scored, strict=True)),
            }
            # A number that is not finite says that its part could not be measured.
            finite = {name: value for name, value in measured.items() if math.isfinite(value)}
            grades.append(_combined(applied, finite, grade))
        return grades

    def on(self, domain: Domain) -> dict[str, float]:
        """The weights of the rewards that count on a domain, none of them 0."""
        weighted = {name: weight for name, weight in self.weights.items() if weight}
        return {n: weight for n, weight in weighted.items() if self.everywhere or domain in domains_of(n, self.rules)}

    def _ruled(self, applied: Collection[str], attempt: Attempt) -> dict[str, float]:
        """What the rules measure; what one of them can't measure is left out."""
        rules = {**MEASURED, **{name: self.rules[name] for name in applied if name in self.rules}}
        found = {name: measured(rule, attempt) for name, rule in rules.items()}
        return {name: value for name, value in found.items() if value is not None}


def own_grades(task: Task | NamedTask, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
    """The task's own grades. A completion at which its grader raises, or gives what is no grade, stays ungraded, and
    spoils no other one.

    Raises:
        ReasonmillError: from the grader: it tells the user what to do, as where a server can't be reached.
    """
    try:
        grades = task.grade(problem, completions)
        if len(grades) != len(completions):
            raise ValueError(f"{len(grades)} grades for {len(completions)} completions")
        return [_checked(grade) for grade in grades]
    except ReasonmillError:
        raise
    except Exception as error:
        if len(completions) == 1:
            return [Grade(None, error=f"the grader of {problem.task!r} raised {type(error).__name__}: {error}")]
    return [grade for completion in completions for grade in own_grades(task, problem, [completion])]


def _checked(grade: Grade) -> Grade:
    """The grade with plain numbers as its parts.

    What is not finite is left to whoever adds the parts up.

    Raises:
        ValueError: the accuracy is no share. Other errors: it is no grade.
    """
    parts = {name: float(value) for name, value in grade.parts.items()}
    accuracy = parts.get(ACCURACY, 0.0)
    if math.isfinite(accuracy) and not 0 <= accuracy <= 1:
        raise ValueError(f"an accuracy lies in [0, 1], got {accuracy}")
    return replace(grade, reward=None if grade.reward is None else float(grade.reward), parts=parts)


def measured(rule: Reward, attempt: Attempt) -> float | None:
    """What a rule measures; None where it can't, be it that it raises, or gives what is no number."""
    try:
        value = rule.measure(attempt)
        return None if value is None else float(value)
    except ReasonmillError:
        raise
    except Exception:
        return None


def _combined(weights: Mapping[str, float], parts: Mapping[str, float], grade: Grade) -> Grade:
    """The grade with all parts, and with their weighted sum as its reward."""
    if grade.reward is None:
        return Grade(None, parts, grade.error)
    missing = [name for name in weights if name not in parts]
    if missing:
        return Grade(None, parts, f"the reward {' and '.join(missing)} could not be measured")
    reward = sum(weight * parts[name] for name, weight in weights.items())
    return Grade(reward, parts) if math.isfinite(reward) else Grade(None, parts, "the reward is not finite")


# What evaluation and collection ask of every rollout, whatever its domain: whether it is right.
ACCURACY_ALONE = RewardWeights({ACCURACY: 1.0}, everywhere=True)
