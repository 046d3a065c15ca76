"""The gate: compares a candidate with its parent on the same problems, and promotes it or refuses it with reasons.

A candidate is promoted if reasoning is better and nothing else is worse, no single task of reasoning either. "Better"
is the one-sided sign-flip test at level `alpha`. Its default of 0.01, where the R1 paper's tables begin to print in
bold, bounds the chance that a model is promoted over itself: of 20 such comparisons, two or more are with a probability
of at most 0.02 (0.26 at 0.05). "Not worse" means that the 95 % interval of the difference excludes a loss of more than
the margin: noise can refuse a candidate, and never excuse one. What could not be graded counts against the candidate:
as bad as can be where the candidate wrote it, as good as can be where the parent did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from reasonmill.algo.comparison import Comparison, paired_comparison, problems_needed
from reasonmill.algo.error_rates import ErrorRates, error_rates
from reasonmill.errors import RecipeError
from reasonmill.protocols import Measure
from reasonmill.recipe.reference import EvaluationRef, ModelRef
from reasonmill.settings import Real
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.stages.measures import MEASURES_FILE, Measured, TaskMeasure, measure_of, read_measures
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
    alpha: Real = Field(default=0.01, gt=0, lt=0.5, description="level of the test of `better`")
    task_margin: Real = Field(
        default=0.1, gt=0, le=1, description="by how much pass@1 of each single task of reasoning may be worse"
    )
    not_worse: dict[str, Annotated[Real, Field(gt=0, le=1)]] = Field(
        default_factory=dict, description="measures, and by how much each may be worse (0.02: two points)"
    )

    @model_validator(mode="after")
    def _two_evaluations(self) -> Self:
        if self.candidate_eval == self.parent_eval:
            raise ValueError(f"candidate_eval and parent_eval are both {self.parent_eval!r}")
        return self


@dataclass(frozen=True)
class Rule:
    """What one rule found, and whether it holds; `margin` is the loss that it allows, None where it asks for a gain."""

    name: str
    holds: bool
    comparison: Comparison
    text: str
    margin: float | None = None


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Compares the evaluations; the outcome is a verdict that names the promoted model."""
    for role in ("candidate", "parent"):
        _require_evaluation_of(role, inputs, context)
    pairs = paired_groups(
        read_groups(inputs["candidate_eval"].path / GROUPS_FILE), read_groups(inputs["parent_eval"].path / GROUPS_FILE)
    )
    measured = read_measures(inputs["candidate_eval"].path / MEASURES_FILE)
    rules = judge(settings, pairs, measured, seed=context.seed)
    promoted = all(rule.holds for rule in rules)
    rates = rates_of(settings, rules, seed=context.seed)
    metrics: dict[str, Any] = {
        "promoted": promoted,
        "model": inputs["candidate" if promoted else "parent"].digest,
        "reasons": [*(rule.text for rule in rules), _said(rates)],
        "rules": {rule.name: _figures(rule) for rule in rules},
        "rates": {**asdict(rates), "power": {_points(gain): power for gain, power in rates.power.items()}},
    }
    verdict = {
        **metrics,
        "candidate": {"name": settings.candidate, "digest": inputs["candidate"].digest},
        "parent": {"name": settings.parent, "digest": inputs["parent"].digest},
    }
    context.progress.note(f"{settings.name}: {'promoted' if promoted else 'refused'} {settings.candidate}")
    return Outcome(lambda target: _write(target, verdict), metrics)


def judge(settings: Settings, pairs: Sequence[tuple[Group, Group]], measured: Measured, *, seed: int) -> list[Rule]:
    """What each rule of the settings finds in pairs of (candidate's group, parent's group) of the same problems.

    Args:
        measured: which of the evaluations' tasks are guarded, and what they measure besides pass@1.

    Raises:
        RecipeError: the evaluations hold nothing that a rule could compare.
    """
    measures = measured.measures
    unknown = [name for name in settings.not_worse if name not in measures]
    if unknown:
        raise RecipeError(
            f"no task of the evaluations measures {unknown[0]!r}",
            where=f"not_worse of stage {settings.name!r}",
            fix=f"use one of {', '.join(measures)}",
        )
    missing = set(settings.better) - {group.problem.task for group, _ in pairs}
    if missing:
        raise _nothing_to_compare(settings, f"no problem of {', '.join(sorted(missing))}")

    def pass_at_1(*tasks: str) -> TaskMeasure:
        return TaskMeasure("pass@1", Measure("accuracy", "pass@1"), tasks)

    rules = [_better(settings, _compare(settings, pairs, "better", pass_at_1(*settings.better), seed))]
    guarded = [(name, margin, measures[name]) for name, margin in settings.not_worse.items()]
    tasks = list(dict.fromkeys([*settings.better, *measured.reasoning]))
    # A single task that must be better is asked for more than not to be worse.
    guarded += [
        (f"pass@1 of {task}", settings.task_margin, pass_at_1(task)) for task in tasks if [task] != settings.better
    ]
    return rules + [
        _not_worse(name, margin, _compare(settings, pairs, name, measured, seed)) for name, margin, measured in guarded
    ]


def rates_of(settings: Settings, rules: Sequence[Rule], *, seed: int) -> ErrorRates:
    """How often the rules err on problems like those that they compared, by trials that the seed names."""
    guards = [(rule.comparison, rule.margin) for rule in rules if rule.margin is not None]
    return error_rates(rules[0].comparison, guards, alpha=settings.alpha, noise=(seed, settings.name))


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
    measure = measured.measure
    # An ungraded rollout does not say whether it would have had the figure: its task does, or the others of the task.
    having = measured.tasks or {
        group.problem.task
        for pair in pairs
        for group in pair
        if any(measure_of(measure, rollout) is not None for rollout in group.rollouts)
    }
    values = [
        (ours.problem, _values(ours, measure, ungraded=0.0), _values(theirs, measure, ungraded=1.0))
        for ours, theirs in pairs
        if ours.problem.task in having
    ]
    compared = [each for each in values if each[1] and each[2]]
    if not compared:
        raise _nothing_to_compare(settings, f"nothing that {rule!r} measures")
    return paired_comparison(
        [ours for _, ours, _ in compared],
        [theirs for _, _, theirs in compared],
        names=[problem.id for problem, _, _ in compared],
        clusters=[problem.cluster for problem, _, _ in compared],
        noise=(seed, settings.name, rule),
    )


def _values(group: Group, measure: Measure, ungraded: float) -> list[float]:
    """The rollouts' values, turned round where lower is better: more is better for all that is compared.

    Args:
        ungraded: the value of a rollout that could not be graded.
    """
    found = []
    for rollout in group.rollouts:
        value = measure_of(measure, rollout)
        if rollout.grade.reward is None:
            found.append(ungraded)
        elif value is not None:
            found.append(1 - value if measure.better == "lower" else value)
    return found


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
    if holds:
        said = f"within {_points(margin)} allowed: not worse"
    else:
        needed = problems_needed(found, margin)
        said = f"and only {_points(margin)} are allowed: refused; to show it, an equal model needs {needed:,} problems"
    return Rule(name, holds, found, f"{name}: {_change(found)}; {bound}, {said}", margin)


def _change(found: Comparison) -> str:
    """The two figures and their difference in words."""
    change, clusters = found.difference, len(found.change.clusters)
    alike = f" about {clusters} things" if clusters < found.problems else ""
    return (
        f"{_points(found.parent)} % -> {_points(found.candidate)} %, {_points(change.value, '+')} points "
        f"({_points(change.low, '+')} to {_points(change.high, '+')}) on {found.problems} problems{alike}"
    )


def _said(rates: ErrorRates) -> str:
    """The rates of error in words."""
    *most, last = [_points(gain).removesuffix(".0") for gain in rates.power]
    powers = ", ".join(f"{_points(power)} %" for power in rates.power.values())
    passes, false = _points(rates.let_through), _points(rates.false_promotion)
    return (
        f"on such problems a model that equals its parent passes the rules on losses in {passes} % of cases and is "
        f"promoted in {false} %; one that reasons better by {', '.join(most)} and {last} points is promoted in "
        f"{powers} ({rates.trials:,} trials)"
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
        "clusters": len(found.change.clusters),
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
