"""The gate: compares a candidate with its parent on the same problems, and promotes it or refuses it with reasons.

A candidate is promoted if reasoning is better and nothing else is worse. "Better" is the one-sided sign-flip test at
level `alpha`. Its default of 0.01, where the R1 paper's tables begin to print in bold, bounds the chance that a model
is promoted over itself: of 20 such comparisons, two or more are with a probability of at most 0.02 (0.26 at 0.05).
"Not worse" means that the 95 % interval of the difference excludes a loss of more than the margin: noise can refuse a
candidate, and never excuse one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from reasonmill.algo.comparison import Comparison, paired_comparison
from reasonmill.errors import RecipeError
from reasonmill.recipe.reference import EvaluationRef, ModelRef
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.types import Group, Rollout

KIND = "gate"
MAKES: ArtifactKind = "verdict"
VERDICT_FILE = "verdict.json"


@dataclass(frozen=True)
class Measure:
    """A figure of a rollout, of which more is better; None where a rollout has none. `tasks` of None are all."""

    of: Callable[[Rollout], float | None]
    tasks: tuple[str, ...] | None = None


def _part(name: str) -> Callable[[Rollout], float | None]:
    return lambda rollout: rollout.grade.parts.get(name)


def _not(name: str) -> Callable[[Rollout], float | None]:
    return lambda rollout: None if name not in rollout.grade.parts else 1 - rollout.grade.parts[name]


MEASURES: dict[str, Measure] = {
    "general": Measure(_part("accuracy"), ("facts", "small-talk")),
    "helpful": Measure(_part("helpful")),
    "safe": Measure(_part("safe"), ("harmful-requests",)),
    "not_refused": Measure(_not("refused"), ("harmless-requests",)),
    "language": Measure(_part("language")),
    "format": Measure(_part("format")),
}


class Settings(StageSettings):
    """Settings of a `gate` stage. Both evaluations must have asked the same problems."""

    kind: Literal["gate"]
    candidate: ModelRef
    candidate_eval: EvaluationRef
    parent: ModelRef
    parent_eval: EvaluationRef
    better: list[str] = Field(min_length=1, description="tasks whose pooled pass@1 must be higher")
    alpha: float = Field(default=0.01, gt=0, lt=0.5, description="level of the test of `better`")
    not_worse: dict[str, float] = Field(
        default_factory=dict, description="measures, and by how much each may be lower (0.02: two points)"
    )

    @field_validator("not_worse")
    @classmethod
    def _known_measures(cls, value: dict[str, float]) -> dict[str, float]:
        for name, margin in value.items():
            if name not in MEASURES:
                raise ValueError(f"unknown measure {name!r}; use one of {', '.join(MEASURES)}")
            if not (math.isfinite(margin) and margin > 0):
                raise ValueError(f"the margin of {name!r} must be a positive number, got {margin}")
        return value

    @model_validator(mode="after")
    def _two_evaluations(self) -> Self:
        if self.candidate_eval == self.parent_eval:
            raise ValueError(f"candidate_eval and parent_eval are both {self.parent_eval!r}")
        return self


@dataclass(frozen=True)
class Rule:
    """What one rule found, and whether it holds."""

    name: str
    holds: bool
    comparison: Comparison
    text: str


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Compares the evaluations; the outcome is a verdict that names the promoted model."""
    for role in ("candidate", "parent"):
        _require_evaluation_of(role, inputs, context)
    pairs = paired_groups(
        read_groups(inputs["candidate_eval"].path / GROUPS_FILE), read_groups(inputs["parent_eval"].path / GROUPS_FILE)
    )
    rules = judge(settings, pairs, seed=context.seed)
    promoted = all(rule.holds for rule in rules)
    metrics: dict[str, Any] = {
        "promoted": promoted,
        "model": inputs["candidate" if promoted else "parent"].digest,
        "reasons": [rule.text for rule in rules],
        "rules": {rule.name: _figures(rule) for rule in rules},
    }
    verdict = {
        **metrics,
        "candidate": {"name": settings.candidate, "digest": inputs["candidate"].digest},
        "parent": {"name": settings.parent, "digest": inputs["parent"].digest},
    }
    context.progress.note(f"{settings.name}: {'promoted' if promoted else 'refused'} {settings.candidate}")
    return Outcome(lambda target: _write(target, verdict), metrics)


def judge(settings: Settings, pairs: Sequence[tuple[Group, Group]], *, seed: int) -> list[Rule]:
    """What each rule of the settings finds in pairs of (candidate's group, parent's group) of the same problems.

    Raises:
        RecipeError: the evaluations hold nothing that a rule could compare.
    """
    pass_at_1 = Measure(_part("accuracy"), tuple(settings.better))
    missing = set(settings.better) - {group.problem.task for group, _ in pairs}
    if missing:
        raise _nothing_to_compare(settings, f"no problem of {', '.join(sorted(missing))}")
    rules = [_better(settings, _compare(settings, pairs, "better", pass_at_1, seed))]
    for name, margin in settings.not_worse.items():
        rules.append(_not_worse(name, margin, _compare(settings, pairs, name, MEASURES[name], seed)))
    return rules


def paired_groups(candidate: Sequence[Group], parent: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The two models' groups of each distinct problem; attempts at a problem that was asked twice are put together.

    Raises:
        RecipeError: the evaluations did not ask the same problems.
    """
    ours, theirs = _by_problem(candidate), _by_problem(parent)
    if ours.keys() != theirs.keys():
        lone = len(ours.keys() ^ theirs.keys())
        raise RecipeError(
            f"the evaluations did not ask the same problems: {lone} were asked of one model only",
            where="candidate_eval and parent_eval",
            fix="give both evaluate stages the same tasks and split",
        )
    return [(ours[problem], theirs[problem]) for problem in ours]


def _by_problem(groups: Sequence[Group]) -> dict[str, Group]:
    found: dict[str, Group] = {}
    for group in groups:
        earlier = found[group.problem.id].rollouts if group.problem.id in found else ()
        found[group.problem.id] = Group(group.problem, earlier + group.rollouts)
    return found


def _compare(
    settings: Settings, pairs: Sequence[tuple[Group, Group]], rule: str, measure: Measure, seed: int
) -> Comparison:
    """Compares a measure over the problems for which both models have a figure."""
    values = [
        (_values(ours, measure), _values(theirs, measure))
        for ours, theirs in pairs
        if measure.tasks is None or ours.problem.task in measure.tasks
    ]
    compared = [(ours, theirs) for ours, theirs in values if ours and theirs]
    if not compared:
        raise _nothing_to_compare(settings, f"nothing that {rule!r} measures")
    return paired_comparison(
        [ours for ours, _ in compared], [theirs for _, theirs in compared], noise=(seed, settings.name, rule)
    )


def _values(group: Group, measure: Measure) -> list[float]:
    values = [measure.of(rollout) for rollout in group.rollouts if rollout.grade.reward is not None]
    return [value for value in values if value is not None]


def _better(settings: Settings, found: Comparison) -> Rule:
    holds = found.p_value < settings.alpha
    said = "better" if holds else "not shown to be better"
    test = f"p = {found.p_value:.4f}, {'below' if holds else 'not below'} {settings.alpha}"
    return Rule("better", holds, found, f"{' + '.join(settings.better)}: {_change(found)}; {test}: {said}")


def _not_worse(name: str, margin: float, found: Comparison) -> Rule:
    holds = found.difference.low > -margin
    bound = (
        f"it may be {_points(-found.difference.low)} points lower" if found.difference.low < 0 else "it is not lower"
    )
    said = f"{'within' if holds else 'and only'} {_points(margin)} {'' if holds else 'are '}allowed"
    text = f"{name}: {_change(found)}; {bound}, {said}: {'not worse' if holds else 'refused'}"
    return Rule(name, holds, found, text)


def _change(found: Comparison) -> str:
    """The two figures and their difference in words."""
    change = found.difference
    return (
        f"{_points(found.parent)} % -> {_points(found.candidate)} %, {_points(change.value, '+')} points "
        f"({_points(change.low, '+')} to {_points(change.high, '+')}) on {found.problems} problems"
    )


def _points(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f}"


def _figures(rule: Rule) -> dict[str, Any]:
    found = rule.comparison
    return {
        "holds": rule.holds,
        "candidate": found.candidate,
        "parent": found.parent,
        "difference": found.difference.as_metric(),
        "p_value": found.p_value,
        "problems": found.problems,
    }


def _require_evaluation_of(role: str, inputs: Mapping[str, Input], context: StageContext) -> None:
    """Refuses an evaluation of another model, whose figures would promote a model that nobody measured."""
    evaluated = context.home.ledger.artifact(inputs[f"{role}_eval"].digest).parents
    if inputs[role].digest not in evaluated:
        raise RecipeError(
            f"{role}_eval is no evaluation of the {role}: it evaluated {', '.join(d[:12] for d in evaluated)}",
            where=f"{role} {inputs[role].digest[:12]}",
            fix=f"name an evaluate stage whose `from` is the {role}",
        )


def _nothing_to_compare(settings: Settings, what: str) -> RecipeError:
    return RecipeError(
        f"the evaluations hold {what}",
        where=f"stage {settings.name!r}",
        fix="add the tasks to both evaluate stages, or take the rule out of the gate",
    )


def _write(target: Path, verdict: Mapping[str, Any]) -> None:
    (target / VERDICT_FILE).write_text(json.dumps(verdict, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
