"""The gate: compares a candidate with its parent on the same problems, and promotes it or refuses it with reasons.

A candidate is promoted if reasoning is better and nothing else is worse. "Better" is the one-sided sign-flip test at
level `alpha`. Its default of 0.01, where the R1 paper's tables begin to print in bold, bounds the chance that a model
is promoted over itself: of 20 such comparisons, two or more are with a probability of at most 0.02 (0.26 at 0.05).
"Not worse" means that the 95 % interval of the difference excludes a loss of more than the margin: noise can refuse a
candidate, and never excuse one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from reasonmill.algo.comparison import Comparison, paired_comparison
from reasonmill.errors import RecipeError
from reasonmill.protocols import Measure
from reasonmill.recipe.reference import EvaluationRef, ModelRef
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.stages.measures import MEASURES_FILE, TaskMeasure, measure_of, read_measures
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.types import Group

MAKES: ArtifactKind = "verdict"
VERDICT_FILE = "verdict.json"


class Settings(StageSettings):
    """Settings of a `gate` stage. Both evaluations must have asked the same problems."""

    kind: Literal["gate"]
    candidate: ModelRef
    candidate_eval: EvaluationRef
    parent: ModelRef
    parent_eval: EvaluationRef
    better: list[str] = Field(min_length=1, description="tasks whose pooled pass@1 must be higher")
    alpha: float = Field(default=0.01, gt=0, lt=0.5, description="level of the test of `better`")
    not_worse: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="measures, and by how much each may be worse (0.02: two points)"
    )

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
    measures = read_measures(inputs["candidate_eval"].path / MEASURES_FILE)
    rules = judge(settings, pairs, measures, seed=context.seed)
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


def judge(
    settings: Settings, pairs: Sequence[tuple[Group, Group]], measures: Mapping[str, TaskMeasure], *, seed: int
) -> list[Rule]:
    """What each rule of the settings finds in pairs of (candidate's group, parent's group) of the same problems.

    Args:
        measures: what the evaluations measure besides pass@1, by name.

    Raises:
        RecipeError: the evaluations hold nothing that a rule could compare.
    """
    unknown = [name for name in settings.not_worse if name not in measures]
    if unknown:
        raise RecipeError(
            f"no task of the evaluations measures {unknown[0]!r}",
            where=f"not_worse of stage {settings.name!r}",
            fix=f"use one of {', '.join(measures)}",
        )
    pass_at_1 = TaskMeasure("pass@1", Measure("accuracy", "pass@1"), tuple(settings.better))
    missing = set(settings.better) - {group.problem.task for group, _ in pairs}
    if missing:
        raise _nothing_to_compare(settings, f"no problem of {', '.join(sorted(missing))}")
    rules = [_better(settings, _compare(settings, pairs, "better", pass_at_1, seed))]
    for name, margin in settings.not_worse.items():
        rules.append(_not_worse(name, margin, _compare(settings, pairs, name, measures[name], seed)))
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
    settings: Settings, pairs: Sequence[tuple[Group, Group]], rule: str, measured: TaskMeasure, seed: int
) -> Comparison:
    """Compares a measure over the problems for which both models have a figure."""
    values = [
        (_values(ours, measured.measure), _values(theirs, measured.measure))
        for ours, theirs in pairs
        if not measured.tasks or ours.problem.task in measured.tasks
    ]
    compared = [(ours, theirs) for ours, theirs in values if ours and theirs]
    if not compared:
        raise _nothing_to_compare(settings, f"nothing that {rule!r} measures")
    return paired_comparison(
        [ours for ours, _ in compared], [theirs for _, theirs in compared], noise=(seed, settings.name, rule)
    )


def _values(group: Group, measure: Measure) -> list[float]:
    """The rollouts' values, turned round where lower is better: more is better for all that is compared."""
    values = [measure_of(measure, rollout) for rollout in group.rollouts]
    turned = measure.better == "lower"
    return [1 - value if turned else value for value in values if value is not None]


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
    return {"holds": rule.holds, **asdict(found), "difference": found.difference.as_metric()}


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
