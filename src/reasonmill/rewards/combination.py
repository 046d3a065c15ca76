"""The reward of a rollout: the weighted sum of those parts that are a reward on the domain of its task.

As in the R1 paper (section 3), rules decide on reasoning and reward models on general prompts; format and language
count on both. A domain that a reward does not speak of is not a 0 in the sum: the reward is left out there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast, get_args

from reasonmill.errors import ReasonmillError, RecipeError
from reasonmill.protocols import Attempt, Domain, FunctionOfRows, Measured, Reward, Scorer
from reasonmill.randomness import Part
from reasonmill.rewards.grades import ACCURACY, own_grades
from reasonmill.rewards.rules.format import FormatReward
from reasonmill.rewards.rules.language import LanguageReward
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Problem
from reasonmill.workers.answers import Failed, raised

ALL_DOMAINS: frozenset[Domain] = frozenset(get_args(Domain))
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
        for name in sorted(weighted & rules.keys()):
            if task.domain in domains_of(name, rules) and hasattr(rules[name], "require"):
                cast(FunctionOfRows, rules[name]).require(task)


@dataclass(frozen=True)
class Begun:
    """What workers compute of an attempt's grade: functions that wait for it. What this process computes itself is not
    among them, or is what they do.

    Attributes:
        grade: the task's own; None where that is not begun.
        measured: what rewards measure, by their names.
    """

    grade: Callable[[], Grade] | None
    measured: Mapping[str, Callable[[], float | Measured | None]]


# What is begun of all attempts at a problem together: what rewards say of each, by their names.
BegunGroup = Mapping[str, Callable[[], Sequence[Measured]]]


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

    def begin(self, task: NamedTask, problem: Problem, completion: Completion, *, noise: tuple[Part, ...]) -> Begun:
        """Begins to grade an attempt where workers do that, and returns at once.

        Args:
            noise: as for `grade`, with the number of the sample at the end.
        """
        begin_grade = getattr(task.task, "begin_grade", None)
        attempt = Attempt(problem, completion, task, noise)
        return Begun(
            begin_grade and begin_grade(problem, completion),
            {
                name: rule.begin_measure(attempt)
                for name, rule in self._rules_of(self.on(task.domain)).items()
                if hasattr(rule, "begin_measure") and not _looks_at_groups(rule)
            },
        )

    def begin_group(
        self, task: NamedTask, problem: Problem, completions: Sequence[Completion], *, noise: tuple[Part, ...]
    ) -> BegunGroup:
        """Begins what workers say of all attempts at a problem together, and returns at once.

        Args:
            noise: as for `grade`.
        """
        attempts = _attempts(task, problem, completions, noise)
        return {
            name: rule.begin_group(attempts)
            for name, rule in self._rules_of(self.on(task.domain)).items()
            if hasattr(rule, "begin_group") and _looks_at_groups(rule)
        }

    def grade(
        self,
        task: NamedTask,
        problem: Problem,
        completions: Sequence[Completion],
        *,
        noise: tuple[Part, ...],
        begun: Sequence[Begun] | None = None,
        begun_group: BegunGroup | None = None,
    ) -> list[Grade]:
        """One grade for each completion. Where a part of the reward can't be measured, all of it is None, never 0.

        Args:
            begun: what was begun for each completion; None begins it now.
            begun_group: what was begun for all of them; None begins it now.

        Raises:
            ValueError: no weighted reward counts on the task's domain.
        """
        applied = self.on(task.domain)
        if not applied:
            raise ValueError(f"no weighted reward counts on task {task.name!r}, whose domain is {task.domain}")
        if begun is None:
            begun = [self.begin(task, problem, c, noise=(*noise, sample)) for sample, c in enumerate(completions)]
        if begun_group is None:
            begun_group = self.begin_group(task, problem, completions, noise=noise)
        said: dict[str, Sequence[Measured]] = {
            name: [Measured(score) for score in self.scorers[name].score(problem, completions)]
            for name in applied
            if name in self.scorers
        }
        awaited = [attempt.grade() for attempt in begun if attempt.grade is not None]
        own = awaited or own_grades(task, problem, completions)
        attempts = [
            replace(attempt, accuracy=grade.parts.get(ACCURACY))
            for attempt, grade in zip(_attempts(task, problem, completions, noise), own, strict=True)
        ]
        for name, rule in self._rules_of(applied).items():
            if name in begun_group:
                said[name] = begun_group[name]()
            elif _looks_at_groups(rule):
                said[name] = cast(FunctionOfRows, rule).measure_group(attempts)
            else:
                waiting = (each.measured.get(name) for each in begun)
                said[name] = [
                    _measured(wait or partial(rule.measure, attempt))
                    for wait, attempt in zip(waiting, attempts, strict=True)
                ]
        return [
            _combined(applied, dict(zip(said, each, strict=True)), grade)
            for grade, *each in zip(own, *said.values(), strict=True)
        ]

    def on(self, domain: Domain) -> dict[str, float]:
        """The weights of the rewards that count on a domain, none of them 0."""
        weighted = {name: weight for name, weight in self.weights.items() if weight}
        return {n: weight for n, weight in weighted.items() if self.everywhere or domain in domains_of(n, self.rules)}

    def _rules_of(self, applied: Collection[str]) -> dict[str, Reward]:
        """The rules that measure an attempt: those that are always measured, and those with a weight."""
        return {**MEASURED, **{name: self.rules[name] for name in applied if name in self.rules}}


def measured(rule: Reward, attempt: Attempt) -> float | None:
    """What a rule measures; None where it can't, be it that it raises, or gives what is no number."""
    return _measured(partial(rule.measure, attempt)).value


def _attempts(
    task: NamedTask, problem: Problem, completions: Sequence[Completion], noise: tuple[Part, ...]
) -> list[Attempt]:
    return [Attempt(problem, completion, task, (*noise, sample)) for sample, completion in enumerate(completions)]


def _looks_at_groups(rule: Reward) -> bool:
    """Whether a reward looks at all attempts at a problem together."""
    return bool(getattr(rule, "of_groups", False))


def _measured(measure: Callable[[], float | Measured | None]) -> Measured:
    """What a rule measures; the reason where it can't, be it that it raises, or gives what is no number."""
    try:
        return Measured.of(measure())
    except ReasonmillError:
        raise
    except Failed as failed:
        return Measured(None, str(failed))
    except (Exception, SystemExit) as error:
        return Measured(None, raised(error))


def _combined(weights: Mapping[str, float], said: Mapping[str, Measured], grade: Grade) -> Grade:
    """The grade with all parts, and with their weighted sum as its reward; what does not apply is left out of it.

    Args:
        said: what the rules and the reward models say, by name of the reward.
    """
    measured = dict(grade.parts)
    for name, each in said.items():
        measured |= each.parts if each.value is None else {**each.parts, name: each.value}
    # A number that is not finite says that its part could not be measured.
    parts = {name: value for name, value in measured.items() if math.isfinite(value)}
    if grade.reward is None:
        return Grade(None, parts, grade.error)
    why = {name: said[name].why_not for name in weights if name in said}
    does_not_apply = {name for name, reason in why.items() if said[name].value is None and not reason}
    applied = [name for name in weights if name not in does_not_apply]
    missing = [f"{name} ({why[name]})" if why.get(name) else name for name in applied if name not in parts]
    if missing:
        return Grade(None, parts, f"the reward {' and '.join(missing)} could not be measured")
    if not applied:
        return Grade(None, parts, f"the reward {' and '.join(weights)} says that it does not apply")
    reward = sum(weights[name] * parts[name] for name in applied)
    return Grade(reward, parts) if math.isfinite(reward) else Grade(None, parts, "the reward is not finite")


# What evaluation and collection ask of every rollout, whatever its domain: whether it is right.
ACCURACY_ALONE = RewardWeights({ACCURACY: 1.0}, everywhere=True)
