"""Reinforcement learning on graded rollouts: GRPO and its relatives (R1 paper, section 2.1)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from reasonmill.algo.advantages import advantages
from reasonmill.algo.examples import denominator, pg_examples
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch, pack, unpack
from reasonmill.algo.schedules import Schedule
from reasonmill.errors import TooManyUngraded
from reasonmill.learn.checkpoints import Checkpoints
from reasonmill.learn.divergence import DivergenceGuard
from reasonmill.learn.local import LocalLearner, OptimizerSettings
from reasonmill.learn.reference import Reference
from reasonmill.model.decoder import load_decoder, working_dtype
from reasonmill.model.saving import save_decoder
from reasonmill.protocols import Renderer
from reasonmill.recipe.reference import ModelRef
from reasonmill.render import renderer_for
from reasonmill.rewards.combination import RewardWeights, reward_names
from reasonmill.rollouts import TaskMix, collect, thinking_tokens
from reasonmill.sample.native import NativeSampler
from reasonmill.stages.context import Input, Outcome, StageContext, StageSettings
from reasonmill.store.groups import read_groups, write_groups
from reasonmill.tasks import registry
from reasonmill.types import Example, Group, SamplingParams

KIND = "rl"
GROUPS_FILE = "groups.parquet"

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
    tasks: dict[str, float] = Field(min_length=1, description="tasks and their shares")
    rewards: dict[str, float] = Field(default={"accuracy": 1.0, "format": 1.0}, min_length=1)
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
    state_every: int = Field(default=10, ge=1, description="steps between saved states")
    max_ungraded: float = Field(default=0.05, ge=0, le=1, description="share of ungraded rollouts that ends the stage")

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

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: dict[str, float]) -> dict[str, float]:
        return _checked_shares(value, registry.names(), "task", positive=True)

    @field_validator("rewards")
    @classmethod
    def _known_rewards(cls, value: dict[str, float]) -> dict[str, float]:
        return _checked_shares(value, reward_names(), "reward", positive=False)


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains the model `from` refers to; the outcome is the trained model."""
    return Trainer(settings, inputs["from"].path, context).run()


class Trainer:
    """The loop over steps, and what it needs at hand."""

    def __init__(self, settings: Settings, model_dir: Path, context: StageContext) -> None:
        self.settings = settings
        self.context = context
        self.model_dir = model_dir
        dtype = working_dtype(settings.precision, context.device)
        self.decoder = load_decoder(model_dir, device=context.device, dtype=dtype)
        self.renderer = renderer_for(model_dir)
        self.learner = LocalLearner(self.decoder, settings.optimizer, temperature=settings.sampling.temperature)
        self.reference = Reference(self.learner, settings.reference_every) if settings.loss.kl_coefficient else None
        self.sampler = NativeSampler(self.decoder, self.renderer, num_slots=settings.sampling.slots)
        self.rewards = RewardWeights(settings.rewards)
        self.tasks = {name: registry.get(name) for name in settings.tasks}
        self.mix = TaskMix(self.tasks, settings.tasks)

    def run(self) -> Outcome:
        settings, context = self.settings, self.context
        ledger = context.home.ledger
        checkpoints = Checkpoints(context, settings.state_every)
        start = checkpoints.resume(self._load_state)
        self.sampler.load(self.learner.weights(), version=start)
        guard = DivergenceGuard()
        context.progress.begin(settings.name, settings.steps, "steps")
        for entry in ledger.metrics(context.key)[:start]:
            context.progress.advance(entry["step"] + 1, entry)
        for step in range(start, settings.steps):
            checkpoints.before_step(step, settings.steps, self._state)
            began = time.monotonic()
            groups = self._committed_groups(step)
            sampled = time.monotonic()
            if self.reference is not None:
                self.reference.before_step(step)
            examples = self._examples(groups)
            updates = list(self._fit(examples, settings.schedule.at(step, settings.steps)))
            for updated in updates:
                guard.check(step, updated)
            self.sampler.load(self.learner.weights(), version=step + 1)
            metrics = {**rollout_metrics(groups, self.renderer), **_mean_metrics(updates)}
            metrics["speed/sampling_s"], metrics["speed/step_s"] = sampled - began, time.monotonic() - began
            metrics["speed/tokens_per_s"] = metrics["tokens/sampled"] / metrics["speed/step_s"]
            ledger.record_metrics(context.key, step, metrics)
            context.progress.advance(step + 1, metrics)
        return self._outcome()

    def _committed_groups(self, step: int) -> list[Group]:
        """The step's groups: the committed ones of an earlier run, else new ones, committed before they are used."""
        ledger, objects = self.context.home.ledger, self.context.home.objects
        digest = ledger.step_groups(self.context.key, step)
        if digest is not None:
            return read_groups(objects.path(digest) / GROUPS_FILE)
        groups = self._sample(step)
        _refuse_ungraded(groups, self.settings.max_ungraded)
        ledger.commit_step(
            self.context.key, step, objects.put(lambda target: write_groups(target / GROUPS_FILE, groups))
        )
        return groups

    def _sample(self, step: int) -> list[Group]:
        settings, seed = self.settings, self.context.seed
        first = step * settings.problems_per_step
        problems = [self.mix.problem("train", seed, first + i) for i in range(settings.problems_per_step)]
        params = SamplingParams(temperature=settings.sampling.temperature, max_tokens=settings.sampling.max_tokens)
        return collect(
            self.sampler,
            self.renderer,
            self.tasks,
            problems,
            rewards=self.rewards,
            num_samples=settings.group_size,
            params=params,
            noise=(seed, settings.name, step),
        )

    def _examples(self, groups: Sequence[Group]) -> list[list[Example]]:
        """The examples of each group that has something to learn from; a flat group has none."""
        loss, max_tokens = self.settings.loss, self.settings.sampling.max_tokens
        return [
            pg_examples(group, advantages(group.rewards, loss.advantage), loss.normalisation, max_tokens)
            for group in groups
            if not group.is_flat
        ]

    def _fit(self, examples: Sequence[Sequence[Example]], learning_rate: float) -> Iterator[dict[str, float]]:
        """One optimizer step for each share of the groups; yields its metrics."""
        loss = self.settings.loss
        for share in _shares(examples, self.settings.updates_per_step):
            flat = [example for group in share for example in group]
            if self.reference is not None:
                flat = self._with_reference(flat)
            total = denominator(flat, loss.normalisation)
            batches = pack(flat, self.settings.tokens_per_batch)
            sums = [self.learner.forward_backward(batch, loss, total) for batch in batches]
            means = {name: math.fsum(entry[name] for entry in sums) / total for name in sums[0]}
            yield {**means, **self.learner.optim_step(learning_rate)}

    def _with_reference(self, examples: Sequence[Example]) -> list[Example]:
        assert self.reference is not None
        batches: list[Batch] = pack(examples, self.settings.tokens_per_batch)
        rows = unpack(self.reference.logprobs(batches), batches, examples)
        return [dataclasses.replace(e, ref_logprobs=row) for e, row in zip(examples, rows, strict=True)]

    def _state(self) -> dict[str, Tensor]:
        return {**self.learner.state(), **(self.reference.state() if self.reference else {})}

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state(state)
        if self.reference is not None:
            self.reference.load_state(state)

    def _outcome(self) -> Outcome:
        steps = self.context.home.ledger.metrics(self.context.key)
        tokens = int(sum(entry["tokens/sampled"] for entry in steps))
        last = {name: value for name, value in steps[-1].items() if name != "step" and not name.startswith("speed/")}
        self.context.progress.end(last)
        return Outcome(
            "model", lambda target: save_decoder(self.decoder, target, companions=self.model_dir), last, tokens
        )


def rollout_metrics(groups: Sequence[Group], renderer: Renderer) -> dict[str, float]:
    """What a step's rollouts were like, by `area/name`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    graded = [rollout for rollout in rollouts if rollout.grade.reward is not None]
    tokens = sum(len(rollout.completion.tokens) for rollout in rollouts)
    metrics = {
        "reward/mean": _mean([rollout.grade.reward or 0.0 for rollout in graded]),
        "length/response": tokens / len(rollouts),
        "length/thinking": _mean([float(thinking_tokens(rollout, renderer)) for rollout in rollouts]),
        "length/truncated": _mean([float(rollout.completion.finish == "length") for rollout in rollouts]),
        "groups/flat": _mean([float(group.is_flat) for group in groups]),
        "groups/ungraded": 1 - len(graded) / len(rollouts),
        "policy/entropy": -math.fsum(math.fsum(r.completion.logprobs or ()) for r in rollouts) / max(1, tokens),
        "tokens/sampled": float(tokens),
    }
    for part in sorted({name for rollout in graded for name in rollout.grade.parts}):
        metrics[f"reward/{part}"] = _mean([rollout.grade.parts[part] for rollout in graded])
    return metrics


def _shares(groups: Sequence[Sequence[Example]], count: int) -> list[Sequence[Sequence[Example]]]:
    """Up to `count` runs of groups, as equal as can be; none where there is nothing to train on."""
    size = math.ceil(len(groups) / count)
    return [groups[i : i + size] for i in range(0, len(groups), size)] if groups else []


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _mean_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = updates[0] if updates else ()
    return {name: _mean([updated[name] for updated in updates]) for name in names}


def _refuse_ungraded(groups: Sequence[Group], limit: float) -> None:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    errors = [rollout.grade.error for rollout in rollouts if rollout.grade.reward is None]
    if len(errors) > limit * len(rollouts):
        raise TooManyUngraded(
            f"{len(errors)} of {len(rollouts)} rollouts of a step could not be graded, for example: {errors[0]}",
            fix="mend the grader, or raise max_ungraded",
        )


def _checked_shares(value: dict[str, float], known: Sequence[str], what: str, *, positive: bool) -> dict[str, float]:
    for name, share in value.items():
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; use one of {', '.join(known)}")
        if not math.isfinite(share) or (positive and share <= 0):
            raise ValueError(
                f"the share of {what} {name!r} must be a {'positive ' if positive else ''}number, got {share}"
            )
    return value
