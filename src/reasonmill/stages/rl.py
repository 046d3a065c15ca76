"""Reinforcement learning on graded rollouts: GRPO and its relatives (R1 paper, section 2.1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from reasonmill.algo.advantages import advantages
from reasonmill.algo.examples import denominator, pg_examples
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack, unpack
from reasonmill.algo.schedules import Schedule
from reasonmill.errors import RecipeError
from reasonmill.learn.divergence import total
from reasonmill.learn.on_policy import Update, train_on_policy
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.plugins.catalogue import RewardShares, TaskShares, known
from reasonmill.protocols import Preference, Renderer, Scorer
from reasonmill.recipe.reference import ModelRef, RewardModelRef
from reasonmill.rewards.combination import check_rewards
from reasonmill.rollouts import TaskMix, collect, refuse_ungraded, stage_seed, thinking_tokens
from reasonmill.settings import INCIDENTAL
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.types import Example, Group, SamplingParams

MAKES: ArtifactKind = "model"
NEEDS = ("sampler", "learner", "scorer")

# The published settings of R1-Zero (Nature 645, supplement B.4); what a recipe sets itself goes before them.
R1_PRESET: dict[str, Any] = {
    "problems_per_step": 512,
    "group_size": 16,
    "updates_per_step": 16,
    "steps": 650,
    "sampling": {"temperature": 1.0, "max_tokens": 32_768},
    "loss": {"algorithm": "grpo", "clip_low": 10.0, "clip_high": 10.0, "kl_coefficient": 0.001, "kl_estimator": "k3"},
    "schedule": {"peak": 3e-6},
    "reference_every": 25,
}


class SamplingSettings(BaseModel):
    """How rollouts are drawn. Training scores the same distribution, which top-k and top-p would change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=256, ge=1)
    slots: int = Field(default=512, ge=1, description="sequences that run at the same time")


class Settings(StageSettings):
    """Settings of an `rl` stage. `preset = "r1"` fills in R1-Zero's published ones."""

    kind: Literal["rl"]
    from_: ModelRef = Field(alias="from")
    preset: Literal["r1"] | None = None
    tasks: TaskShares = Field(min_length=1, description="tasks and their shares")
    rewards: RewardShares = Field(default={"accuracy": 1.0, "format": 1.0}, min_length=1)
    reward_models: dict[Preference, RewardModelRef] = Field(
        default={}, description="the models of the rewards helpfulness and safety, which count on general tasks"
    )
    preference_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the last steps in which reward models count; the problems of general tasks, which have "
        "no other judge, are only drawn in these steps",
    )
    steps: int = Field(ge=1)
    problems_per_step: int = Field(default=32, ge=1)
    group_size: int = Field(default=16, ge=2)
    updates_per_step: int = Field(default=1, ge=1, description="optimizer steps that share a step's rollouts")
    sampling: SamplingSettings = SamplingSettings()
    loss: LossSettings = LossSettings()
    schedule: Schedule
    optimizer: OptimizerSettings = OptimizerSettings()
    reference_every: int = Field(
        default=25, ge=1, description="steps after which the policy becomes the KL's reference"
    )
    tokens_per_batch: int = Field(default=4096, ge=64, description="positions of one forward pass")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    state_every: Annotated[int, INCIDENTAL] = Field(default=10, ge=1, description="steps between saved states")
    max_ungraded: Annotated[float, INCIDENTAL] = Field(
        default=0.05, ge=0, le=1, description="share of ungraded rollouts that ends the stage"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") != "r1":
            return data
        filled = dict(R1_PRESET)
        for name, value in data.items():
            preset = filled.get(name)
            filled[name] = {**preset, **value} if isinstance(preset, dict) and isinstance(value, dict) else value
        return filled

    @model_validator(mode="after")
    def _rewards_fit_tasks(self, info: ValidationInfo) -> Settings:
        catalogue = known(info)
        tasks = [catalogue.task(name) for name in self.tasks]
        try:
            check_rewards(self.rewards, tasks, catalogue.reward, self.reward_models)
        except RecipeError as error:
            raise ValueError(f"{error.what}; {error.fix}") from error
        domains = {task.domain for task in tasks}
        if self.reward_models and domains == {"reasoning"}:
            raise ValueError("reward models have no effect without a general task; add one, or remove reward_models")
        if self.preference_share < 1 and not self.reward_models:
            raise ValueError("preference_share has no effect without reward models; remove it, or add reward_models")
        if self.preference_share < 1 and "reasoning" not in domains:
            raise ValueError("there is nothing to learn before reward models count; add a reasoning task")
        return self

    def against_more_steps(self) -> str | None:
        """The schedule's reason; or that the step from which reward models count depends on the number of steps."""
        if self.preference_share < 1:
            return "the step from which its reward models count depends on the number of steps (preference_share)"
        return self.schedule.against_more_steps()

    @property
    def first_preference_step(self) -> int:
        """The step from which reward models count, and general problems are drawn; 0 without reward models."""
        return self.steps - max(1, round(self.preference_share * self.steps))


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains the model `from` refers to; the outcome is the trained model."""
    trainer = Trainer(settings, inputs, context)
    metrics, tokens = train_on_policy(
        context,
        trainer.sampler,
        trainer.learner,
        name=settings.name,
        steps=settings.steps,
        state_every=settings.state_every,
        rollouts_per_step=settings.problems_per_step * settings.group_size,
        compared=True,
        sample=trainer.sample,
        updates=trainer.updates,
        measure=lambda groups: rollout_metrics(groups, trainer.renderer),
    )
    context.progress.end(metrics)
    return Outcome(trainer.learner.save_model, metrics, tokens)


class Trainer:
    """What a step samples and what it learns, and what that needs at hand."""

    def __init__(self, settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> None:
        self.settings = settings
        self.context = context
        model = inputs["from"].path
        self.renderer = context.renderer(model)
        self.learner = context.learner(
            model, settings.optimizer, precision=settings.precision, temperature=settings.sampling.temperature
        )
        self.sampler = context.sampler(self.learner, slots=settings.sampling.slots)
        scorers: dict[str, Scorer] = {
            name: context.scorer(
                inputs[f"reward_models.{name}"].path,
                name,
                precision=settings.precision,
                tokens_per_batch=settings.tokens_per_batch,
            )
            for name in settings.reward_models
        }
        self.rewards = context.rewards(settings.rewards, scorers)
        self.tasks = {name: context.task(name) for name in settings.tasks}
        self.mix = TaskMix(self.tasks, settings.tasks)
        rule_shares = {name: share for name, share in settings.tasks.items() if self.tasks[name].domain == "reasoning"}
        self.rule_mix = TaskMix(self.tasks, rule_shares)

    def sample(self, step: int) -> list[Group]:
        """The step's graded groups.

        Raises:
            TooManyUngraded: more rollouts than the settings allow could not be graded.
        """
        settings, seed = self.settings, self.context.seed
        mix = self.mix if step >= settings.first_preference_step else self.rule_mix
        first = step * settings.problems_per_step
        own_seed = stage_seed(seed, settings.name)
        groups = collect(
            self.sampler,
            self.renderer,
            self.tasks,
            [mix.problem("train", own_seed, first + i) for i in range(settings.problems_per_step)],
            rewards=self.rewards,
            num_samples=settings.group_size,
            params=SamplingParams(temperature=settings.sampling.temperature, max_tokens=settings.sampling.max_tokens),
            noise=(seed, settings.name, step),
        )
        refuse_ungraded(groups, settings.max_ungraded)
        return groups

    def updates(self, step: int, groups: Sequence[Group]) -> Iterator[Update]:
        """One update for each share of the groups."""
        settings, loss = self.settings, self.settings.loss
        if loss.kl_coefficient and step % settings.reference_every == 0:
            self.learner.keep_reference()
        for share in _shares(self._examples(groups), settings.updates_per_step):
            examples = [example for group in share for example in group]
            if loss.kl_coefficient:
                examples = self._with_reference(examples)
            yield Update(
                pack(examples, settings.tokens_per_batch),
                loss,
                denominator(examples, loss.normalisation),
                settings.schedule.at(step, settings.steps),
                num_rollouts=len(examples),
            )

    def _examples(self, groups: Sequence[Group]) -> list[list[Example]]:
        """The examples of each group that has something to learn from; a flat group has none."""
        loss, max_tokens = self.settings.loss, self.settings.sampling.max_tokens
        return [
            pg_examples(group, advantages(group.rewards, loss.advantage), loss.normalisation, max_tokens)
            for group in groups
            if not group.is_flat
        ]

    def _with_reference(self, examples: Sequence[Example]) -> list[Example]:
        batches = pack(examples, self.settings.tokens_per_batch)
        rows = unpack(self.learner.reference_logprobs(batches), batches, examples)
        return [dataclasses.replace(e, ref_logprobs=row) for e, row in zip(examples, rows, strict=True)]


def rollout_metrics(groups: Sequence[Group], renderer: Renderer) -> dict[str, float]:
    """What a step's rollouts were like, by `area/name`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    graded = [rollout for rollout in rollouts if rollout.grade.reward is not None]
    tokens = sum(rollout.completion.num_sampled for rollout in rollouts)
    metrics = {
        "reward/mean": _mean([rollout.grade.reward or 0.0 for rollout in graded]),
        "length/response": tokens / len(rollouts),
        "length/thinking": _mean([float(thinking_tokens(rollout, renderer)) for rollout in rollouts]),
        "length/truncated": _mean([float(rollout.completion.finish == "length") for rollout in rollouts]),
        "groups/flat": _mean([float(group.is_flat) for group in groups]),
        "groups/ungraded": 1 - len(graded) / len(rollouts),
        "policy/entropy": -total(total(r.completion.logprobs or ()) for r in rollouts) / max(1, tokens),
        "tokens/sampled": float(tokens),
    }
    for part in sorted({name for rollout in graded for name in rollout.grade.parts}):
        metrics[f"reward/{part}"] = _mean([r.grade.parts[part] for r in graded if part in r.grade.parts])
    return metrics


def _shares(groups: Sequence[Sequence[Example]], count: int) -> list[Sequence[Sequence[Example]]]:
    """Up to `count` runs of groups, as equal as can be; none where there is nothing to train on."""
    size = math.ceil(len(groups) / count)
    return [groups[i : i + size] for i in range(0, len(groups), size)] if groups else []


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
