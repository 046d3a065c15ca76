"""Reward models: helpfulness from judged pairs, safety from labelled responses (R1 paper, second RL stage).

The responses are rollouts of general tasks. A part of their grades labels them, or a judge behind a server compares
them, each pair in both orders. Problems are held out by a hash of their id: their responses are never trained on, and
show how often the model is right and how sure it should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from reasonmill.algo.intervals import clustered_share
from reasonmill.algo.packing import TextRow, pack_texts
from reasonmill.algo.preferences import (
    Candidate,
    brier_score,
    calibration_error,
    draw,
    is_held_out,
    judged,
    pairwise_losses,
    pointwise_losses,
    sigmoid,
    with_balanced_lengths,
)
from reasonmill.algo.preferences import Judge as PairJudge
from reasonmill.data.items import NO_TASK
from reasonmill.errors import RecipeError
from reasonmill.learn.supervised import optimise
from reasonmill.plugins.catalogue import TaskName
from reasonmill.protocols import Renderer, RewardLearner, View
from reasonmill.recipe.reference import LabelledRef, ModelRef
from reasonmill.rewards.judge import JudgeSettings, Pair
from reasonmill.rewards.verdicts import verdicts_on
from reasonmill.rewards.views import VIEWS, shown
from reasonmill.settings import Real
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.sft import Epochs
from reasonmill.stages.training import TrainingSettings
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.types import Group, Problem, Rollout, held_out

MAKES: ArtifactKind = "reward-model"
NEEDS = ("reward-learner",)

Objective = Literal["pairwise", "pointwise"]
_VIEWS: Mapping[Objective, View] = {"pairwise": VIEWS["helpfulness"], "pointwise": VIEWS["safety"]}
# One of five levels (R1 paper, supplement on the helpfulness model): a judge's go from A>>B to B>>A, which count 1 to
# -1; those of a label from 0 to 1.
_LEVEL_OF_JUDGE, _LEVEL_OF_LABEL = 0.5, 0.25
_PAIRWISE_ONLY = ("judge", "pairs_per_problem", "min_margin", "centring")
# Rounding of margins such as 0.6 - 0.3 must not decide about a pair.
_ROUNDING = 1e-9


class Settings(TrainingSettings):
    """Settings of a `reward-model` stage. Pairwise is for helpfulness, pointwise for safety."""

    kind: Literal["reward-model"]
    from_: ModelRef = Field(alias="from", description="the policy whose decoder gets the scalar head")
    data: list[LabelledRef] = Field(min_length=1, description="rollouts of earlier stages, or `[data.NAME]` tables")
    objective: Objective
    label: str | None = Field(
        default=None, description="the part of the grades that judges: more is better; pointwise: 0 or 1"
    )
    judge: JudgeSettings | None = Field(
        default=None, description="pairwise: a model behind a server that compares two answers, in place of `label`"
    )
    tasks: list[TaskName] = Field(
        default=[], description="the tasks whose rollouts count, beside rows of data; all that have the label if empty"
    )
    pairs_per_problem: int = Field(default=8, ge=1, description="pairwise: pairs that are drawn and judged")
    min_margin: Real | None = Field(
        default=None,
        gt=0,
        description="pairwise: pairs with this margin or a smaller one are dropped; one of five levels if unset",
    )
    centring: Real = Field(default=0.01, ge=0, description="pairwise: pull of rewards towards 0; 0 is none")
    held_out: Real = Field(default=0.1, gt=0, lt=1, description="share of problems that are never trained on")
    epochs: int = Field(default=1, ge=1, description="times that each example is read")
    examples_per_step: int = Field(default=64, ge=1, description="pairs or responses of an optimizer step")
    max_tokens: int = Field(default=8192, ge=2, description="longer texts are dropped")

    @model_validator(mode="after")
    def _pairwise_settings_have_effect(self) -> Settings:
        idle = [name for name in _PAIRWISE_ONLY if name in self.model_fields_set]
        if self.objective == "pointwise" and idle:
            raise ValueError(f"{', '.join(idle)} belong to pairs; remove them from a pointwise reward model")
        return self

    @model_validator(mode="after")
    def _one_judges(self) -> Settings:
        if (self.label is None) == (self.judge is None):
            raise ValueError("name exactly one of label (a part of the grades) and judge (a model behind a server)")
        return self

    @property
    def margin_to_exceed(self) -> float:
        """The margin that a pair must exceed."""
        if self.min_margin is not None:
            return self.min_margin
        return _LEVEL_OF_LABEL if self.judge is None else _LEVEL_OF_JUDGE


@dataclass(frozen=True, slots=True)
class Labelled:
    """What the model learns from: one response and its label, or the chosen and the rejected response of a pair."""

    problem_id: str
    texts: tuple[tuple[int, ...], ...]
    label: float = 1.0


@dataclass(frozen=True)
class ExampleSets:
    """Examples to train on and held-out ones, and how many of those drawn were dropped for each reason."""

    train: list[Labelled]
    held_out: list[Labelled]
    dropped: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """`examples/drawn` is the sum of all others."""
        kept = {"examples/train": len(self.train), "examples/held_out": len(self.held_out)}
        dropped = {f"examples/dropped_{reason}": count for reason, count in self.dropped.items()}
        return {"examples/drawn": sum(kept.values()) + sum(dropped.values()), **kept, **dropped}


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains the model `from` refers to, with a scalar head, on the labels of the rollouts in `data`."""
    policy_dir = inputs["from"].path
    renderer = context.renderer(policy_dir)
    groups = context.rows("labelled", settings.data, inputs, lambda made: read_groups(made / GROUPS_FILE))
    usable = [group for group in _chosen(settings, groups) if not held_out(group.problem.split)]
    context.asked().refuse(settings.name, (group.problem for group in usable))
    selection = select(settings, groups, renderer, context.seed, _judge(settings, context))
    _require_enough(settings, selection)
    found = _one_class(settings, selection.train)
    for finding in found:
        context.progress.note(f"warning: {settings.name}: {finding}")
    learner = context.reward_learner(
        policy_dir, settings.optimizer, view=_VIEWS[settings.objective], precision=settings.precision
    )
    tokens = _train(settings, context, learner, selection.train)
    metrics = {
        **held_out_metrics(learner, selection.held_out, settings.tokens_per_batch),
        **selection.counts(),
        "unknown_split": sum(group.problem.split is None for group in usable),
    }
    context.progress.end(metrics)
    return Outcome(learner.save_model, {**metrics, "findings": found} if found else metrics, tokens)


def _one_class(settings: Settings, examples: Sequence[Labelled]) -> list[str]:
    """That there is nothing to tell apart, where that is so."""
    labels = {example.label for example in examples}
    if settings.objective == "pairwise" or len(labels) > 1:
        return []
    return [
        f"all {len(examples)} labels to train on are {labels.pop():g}, so that the model learns to say one thing; "
        f"likely cause: {settings.label!r} is a part of the grades that does not differ in these rollouts"
    ]


# Selection


def select(
    settings: Settings, groups: Sequence[Group], renderer: Renderer, seed: int, judge: PairJudge | None = None
) -> ExampleSets:
    """The examples of the rollouts of `settings.tasks`; everything that is drawn is kept or counted as dropped.

    Args:
        judge: compares the responses of a pair; None for the part of the grades that `settings.label` names.
    """
    chosen = _chosen(settings, groups)
    if settings.objective == "pointwise":
        return _select_responses(settings, chosen, renderer)
    return _select_pairs(settings, chosen, renderer, seed, judge or part_judge(settings))


def _chosen(settings: Settings, groups: Sequence[Group]) -> list[Group]:
    """The groups that count: those of `tasks`, and all of tables of data, which have no task."""
    return [group for group in groups if not settings.tasks or group.problem.task in (NO_TASK, *settings.tasks)]


def part_judge(settings: Settings) -> PairJudge:
    """The world's judge: it compares a part of the grades."""
    label = settings.label
    assert label is not None  # without a judge there is one
    return lambda pairs: [
        first.rollout.grade.parts[label] - second.rollout.grade.parts[label] for first, second in pairs
    ]


def _judge(settings: Settings, context: StageContext) -> PairJudge | None:
    """The judge behind a server, whose verdicts are kept; None where the settings name none."""
    if settings.judge is None:
        return None
    judge = context.judge(settings.judge, replies=context.replies)

    def preferences(pairs: Sequence[tuple[Candidate, Candidate]]) -> list[float | None]:
        comparisons = [Pair(first.problem, first.shown, second.shown) for first, second in pairs]
        context.progress.begin(f"{settings.name}, judging", len(comparisons), "verdicts")
        verdicts = verdicts_on(comparisons, judge.preferences, run=context, stage=settings.name)
        context.progress.end({})
        return verdicts

    return preferences


def _select_pairs(
    settings: Settings, groups: Sequence[Group], renderer: Renderer, seed: int, judge: PairJudge
) -> ExampleSets:
    not_judged = ("not_judged",) if settings.judge is not None else ()
    dropped = dict.fromkeys((*_unusable(settings), "equal_texts", *not_judged, "small_margin", "length_balance"), 0)
    drawn: list[tuple[Candidate, Candidate]] = []
    for place, group in enumerate(groups):
        candidates = list(combinations(_candidates(settings, group, renderer), 2))
        for first, second in draw(candidates, settings.pairs_per_problem, seed, settings.name, place):
            if isinstance(first, str):
                dropped[first] += 1
            elif isinstance(second, str):
                dropped[second] += 1
            elif first.shown.split() == second.shown.split():
                dropped["equal_texts"] += 1  # whatever a judge would say of them
            else:
                drawn.append((first, second))
    pairs = []
    for pair in judged(judge, drawn):
        if pair is None:
            dropped["not_judged"] += 1
        elif pair.margin <= settings.margin_to_exceed + _ROUNDING:
            dropped["small_margin"] += 1
        else:
            pairs.append(pair)
    parts = {}
    for side in (False, True):
        part = [pair for pair in pairs if is_held_out(pair.chosen.problem.id, settings.held_out) == side]
        # Each side by itself: lengths must neither teach the model anything nor make it look right.
        balanced = with_balanced_lengths(part, seed, settings.name, int(side))
        dropped["length_balance"] += len(part) - len(balanced)
        parts[side] = [Labelled(pair.chosen.problem.id, (pair.chosen.text, pair.rejected.text)) for pair in balanced]
    return ExampleSets(parts[False], parts[True], dropped)


def _select_responses(settings: Settings, groups: Sequence[Group], renderer: Renderer) -> ExampleSets:
    assert settings.label is not None  # a judge compares, and here is nothing to compare
    dropped = dict.fromkeys(_unusable(settings), 0)
    parts: dict[bool, list[Labelled]] = {False: [], True: []}
    for group in groups:
        for candidate in _candidates(settings, group, renderer):
            if isinstance(candidate, str):
                dropped[candidate] += 1
                continue
            label = candidate.rollout.grade.parts[settings.label]
            if label not in (0.0, 1.0):
                raise RecipeError(
                    f"the part {settings.label!r} of a grade is {label}, and a pointwise label is 0 or 1",
                    where=f"label of stage {settings.name!r}",
                    fix='name another part, or use objective = "pairwise"',
                )
            part = parts[is_held_out(group.problem.id, settings.held_out)]
            part.append(Labelled(group.problem.id, (candidate.text,), label))
    return ExampleSets(parts[False], parts[True], dropped)


def _unusable(settings: Settings) -> tuple[str, ...]:
    """Why a response may not be usable."""
    return ("held_out", *(("unlabelled",) if settings.judge is None else ()), "no_answer", "too_long")


def _candidates(settings: Settings, group: Group, renderer: Renderer) -> list[Candidate | str]:
    """The group's responses as judge and model see them; in place of one that can't be used, the reason."""
    asked = group.problem.messages
    prompts = {dialogue: renderer.render(asked + dialogue) for dialogue in {r.dialogue for r in group.rollouts}}
    return [_candidate(settings, group.problem, prompts[r.dialogue], r, renderer) for r in group.rollouts]


def _candidate(
    settings: Settings, problem: Problem, prompt: tuple[int, ...], rollout: Rollout, renderer: Renderer
) -> Candidate | str:
    if held_out(problem.split):
        return "held_out"
    if settings.label is not None and (rollout.grade.reward is None or settings.label not in rollout.grade.parts):
        return "unlabelled"
    text = shown(rollout.completion.text, _VIEWS[settings.objective])
    if text is None:
        return "no_answer"
    candidate = Candidate(problem, rollout, text, prompt, renderer.response(text))
    return "too_long" if len(candidate.text) > settings.max_tokens else candidate


def _require_enough(settings: Settings, selection: ExampleSets) -> None:
    if not selection.train or len({example.problem_id for example in selection.held_out}) < 2:
        counts = ", ".join(f"{name} {count}" for name, count in selection.counts().items())
        raise RecipeError(
            f"stage {settings.name!r} needs examples to train on, and two held-out problems: {counts}",
            where=f"data of stage {settings.name!r}",
            fix="collect more rollouts, or change label, judge, min_margin or held_out",
        )


# Training


def _train(settings: Settings, context: StageContext, learner: RewardLearner, examples: Sequence[Labelled]) -> int:
    """All steps that the ledger has no state for; returns the tokens that were trained on, resumed ones too."""
    epochs = Epochs(examples, settings.examples_per_step, (context.seed, settings.name))

    def passes(start: int, stop: int) -> Iterator[Mapping[str, float]]:
        for chosen in epochs.feed(start, stop):
            rows = pack_texts([example.texts for example in chosen], settings.tokens_per_batch)
            total, right = 0.0, 0
            for row in rows:
                labels = torch.tensor([chosen[unit].label for unit in row.units])

                def losses(rewards: Tensor, labels: Tensor = labels) -> Tensor:
                    if settings.objective == "pairwise":
                        return pairwise_losses(rewards[0::2], rewards[1::2], settings.centring)
                    return pointwise_losses(rewards, labels.to(rewards.device))

                loss, rewards = learner.forward_backward(row, losses, len(chosen))
                total += loss
                right += sum(
                    (p > 0.5) == (label > 0.5) for p, label in zip(_chances(row, rewards), labels, strict=True)
                )
            yield {
                f"loss/{settings.objective}": total / len(chosen),
                "reward/right": float(right) / len(chosen),
                "tokens": float(sum(sum(row.lengths) for row in rows)),
            }

    return optimise(context, learner, passes, settings, settings.epochs * epochs.steps_per_epoch)


def _chances(row: TextRow, rewards: Tensor) -> list[float]:
    """For each example of a row, how likely the model finds its label 1: that the first of two is the better one."""
    numbers = rewards[0::2] - rewards[1::2] if len(row.lengths) == 2 * len(row.units) else rewards
    return [sigmoid(number) for number in numbers.tolist()]


def held_out_metrics(learner: RewardLearner, examples: Sequence[Labelled], tokens_per_batch: int) -> dict[str, Any]:
    """How often the model is right about examples that it never saw, with an interval clustered by problem, and how
    well its probabilities are calibrated."""
    chances, outcomes, problems = [], [], []
    for row in pack_texts([example.texts for example in examples], tokens_per_batch):
        for unit, chance in zip(row.units, _chances(row, learner.rewards(row)), strict=True):
            chances.append(chance)
            outcomes.append(examples[unit].label > 0.5)
            problems.append(examples[unit].problem_id)
    right = [float((chance > 0.5) == outcome) for chance, outcome in zip(chances, outcomes, strict=True)]
    if len(examples[0].texts) == 2:
        # A pair in one order only would have no outcome but "the first is better".
        chances, outcomes = [*chances, *(1 - c for c in chances)], [*outcomes, *(not o for o in outcomes)]
    return {
        "held_out/accuracy": clustered_share(right, problems).as_metric(),
        "held_out/calibration_error": calibration_error(chances, outcomes),
        "held_out/brier": brier_score(chances, outcomes),
        "held_out/problems": len(set(problems)),
    }
