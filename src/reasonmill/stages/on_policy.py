"""What stages have in common whose policy learns from its own samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from reasonmill.algo.losses import LossSettings
from reasonmill.learn.divergence import total
from reasonmill.learn.on_policy import Update, train_on_policy
from reasonmill.placement import Largest
from reasonmill.plugins.catalogue import TaskShares
from reasonmill.protocols import Renderer
from reasonmill.randomness import key
from reasonmill.rewards.combination import RewardWeights
from reasonmill.rewards.grades import reasons
from reasonmill.rollouts import TaskMix, collect, stage_seed, thinking_tokens
from reasonmill.settings import INCIDENTAL
from reasonmill.stage import Outcome, StageContext
from reasonmill.stages.curve import Curve, CurveSettings
from reasonmill.stages.sampling import SamplingSettings, num_sampled
from reasonmill.stages.training import PolicySettings
from reasonmill.store.accounts import ALWAYS, Fate
from reasonmill.store.ledger import MODELS
from reasonmill.store.steps import keep_model, kept_models
from reasonmill.types import Group, LossKind


class OnPolicySettings(PolicySettings):
    """Settings of stages whose policy learns from its own samples."""

    tasks: TaskShares = Field(min_length=1, description="tasks and their shares")
    steps: int = Field(ge=1)
    problems_per_step: int = Field(default=32, ge=1)
    group_size: int = Field(default=16, ge=1, description="samples of each problem")
    updates_per_step: int = Field(default=1, ge=1, description="optimizer steps that share a step's samples")
    sampling: SamplingSettings = SamplingSettings()
    state_every: Annotated[int, INCIDENTAL] = Field(default=10, ge=1, description="steps between saved states")
    curve: CurveSettings | None = Field(default=None, description="held-out problems that are asked as it goes")
    models_every: int | None = Field(
        default=None, ge=1, description="steps between models that are kept, which NAME@STEP names"
    )

    @model_validator(mode="after")
    def _something_is_due(self) -> Self:
        if self.curve is not None and self.curve.every > self.steps:
            raise ValueError(f"curve.every is above the {self.steps} steps: no point but the first would be drawn")
        if self.models_every is not None and self.models_every > self.steps:
            raise ValueError(f"models_every is above the {self.steps} steps: no model would be kept")
        return self

    def kept_steps(self) -> range:
        """The steps after which the model is kept."""
        return range(self.models_every, self.steps + 1, self.models_every) if self.models_every else range(0)

    def against_more_steps(self) -> str | None:
        """The schedule's reason."""
        return self.schedule.against_more_steps()


class Policy:
    """The policy that a stage trains, what draws from it, and the problems that it learns from.

    Args:
        model: where its weights come from.
        teacher: the model that it is trained towards, if there is one.
    """

    def __init__(
        self, settings: OnPolicySettings, context: StageContext, model: Path, teacher: Path | None = None
    ) -> None:
        self._settings = settings
        self._context = context
        self._renderer = context.renderer(model)
        self.learner = context.learner(
            model,
            settings.optimizer,
            precision=settings.precision,
            temperature=settings.sampling.temperature,
            teacher=teacher,
            lora=settings.lora,
            recompute=settings.recompute,
            seed=key(context.seed, settings.name),
        )
        self._sampler = context.sampler(self.learner, slots=settings.sampling.slots)
        self.tasks = {name: context.task(name) for name in settings.tasks}
        self.mix = TaskMix(self.tasks, settings.tasks)
        self._curve = None
        if settings.curve is not None:
            asked = {name: context.task(name) for name in settings.curve.tasks}
            self._curve = Curve(settings.curve, context.seed, settings.name, asked, settings.sampling.params())

    @property
    def draws_as_scored(self) -> bool:
        """Whether the sampler's log-probs are the learner's: the two have the same weights in one process, and both
        compute in fp32, so that the order of sums is all that differs."""
        return self.learner.in_fp32 and self._sampler.in_fp32

    def draw(self, step: int, mix: TaskMix, rewards: RewardWeights) -> list[Group]:
        """The step's graded groups, of problems of the mix."""
        count = self._settings.problems_per_step
        return self._draw(mix, rewards, range(step * count, (step + 1) * count), (self._settings.name, step))

    def draw_more(self, step: int, mix: TaskMix, rewards: RewardWeights, places: range, at_most: int) -> list[Group]:
        """More groups of the step, of problems that no step begins with.

        Args:
            places: which of the `at_most` that each step may draw beside its own.
        """
        first = step * at_most
        name = f"{self._settings.name}/more"
        return self._draw(mix, rewards, range(first + places.start, first + places.stop), (name, step, places.start))

    def _draw(self, mix: TaskMix, rewards: RewardWeights, problems: range, noise: tuple[str | int, ...]) -> list[Group]:
        settings, seed = self._settings, self._context.seed
        drawn = [mix.problem("train", stage_seed(seed, str(noise[0])), index) for index in problems]
        self._context.asked().refuse(settings.name, drawn)
        return collect(
            self._sampler,
            self._renderer,
            self.tasks,
            drawn,
            rewards=rewards,
            num_samples=settings.group_size,
            params=settings.sampling.params(),
            noise=(seed, *noise),
        )

    def _largest(self, kind: LossKind, loss: LossSettings, scores: bool) -> Largest:
        """The largest step, as far as the problems of the first one show how long prompts are."""
        settings = self._settings
        own = stage_seed(self._context.seed, settings.name)
        asked = {self.mix.problem("train", own, index).messages for index in range(settings.problems_per_step)}
        prompt = max(map(len, self._renderer.render_all(list(asked))))
        longest = prompt + settings.sampling.max_tokens
        return Largest(
            row=max(settings.tokens_per_batch, longest),
            text=longest,
            kind=kind,
            loss=loss,
            keeps_reference=kind == "pg" and loss.kl_coefficient > 0,
            sequences=settings.problems_per_step * settings.group_size,
            longest=longest,
            prompt=prompt,
            scores=scores,
        )

    def train(
        self,
        sample: Callable[[int], Sequence[Group]],
        updates: Callable[[int, Sequence[Group]], tuple[Mapping[str, float], Iterable[Update]]],
        *,
        kind: LossKind,
        loss: LossSettings,
        fates: AbstractSet[Fate] = ALWAYS,
        problems: Callable[[Sequence[Group]], int] | None = None,
        scores: bool = False,
    ) -> Outcome:
        """Takes all steps; the outcome is the trained model. Arguments and errors as of `train_on_policy`.

        Args:
            kind: what the updates' loss is made from, and `loss` what it is.
            problems: how many of them a step has drawn, where it is not `problems_per_step`.
            scores: whether reward models look at what is drawn.
        """
        settings = self._settings
        self._context.rehearse(self.learner, partial(self._largest, kind, loss, scores), self._sampler)
        metrics, tokens = train_on_policy(
            self._context,
            self._sampler,
            self.learner,
            name=settings.name,
            steps=settings.steps,
            state_every=settings.state_every,
            dispatched=lambda g: (problems(g) if problems else settings.problems_per_step) * settings.group_size,
            fates=fates,
            sample=sample,
            updates=updates,
            measure=lambda groups: rollout_metrics(groups, self._renderer),
            after=self._after,
            ends=settings.curve.has_ended if settings.curve else lambda rows: False,
        )
        self._context.progress.end(metrics)
        kept = {str(taken): kept for taken, kept in kept_models(self._context.home, self._context.key).items()}
        return Outcome(self.learner.save_model, {**metrics, MODELS: kept} if kept else metrics, tokens)

    def _after(self, taken: int) -> Mapping[str, float]:
        """Keeps the model and draws a point of the curve, if they are due after so many steps."""
        if taken in self._settings.kept_steps():
            record = partial(self._context.intermediate, self._settings.name, taken)
            keep_model(self._context.home, record, self.learner.save_model)
        if self._curve is None or not self._curve.is_due(taken):
            return {}
        return self._curve.point(taken, self._sampler, self._renderer)


def rollout_metrics(groups: Sequence[Group], renderer: Renderer) -> dict[str, float]:
    """What a step's rollouts were like, by `area/name`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    graded = [rollout for rollout in rollouts if rollout.grade.reward is not None]
    tokens = num_sampled(groups)
    metrics = {
        "reward/mean": _mean([rollout.grade.reward or 0.0 for rollout in graded]),
        "length/response": tokens / len(rollouts),
        "length/thinking": _mean([float(count) for count in thinking_tokens(rollouts, renderer)]),
        "length/truncated": _mean([float(rollout.completion.finish == "length") for rollout in rollouts]),
        "groups/flat": _mean([float(group.is_flat) for group in groups]),
        "groups/ungraded": 1 - len(graded) / len(rollouts),
        "policy/entropy": -total(total(r.completion.logprobs or ()) for r in rollouts) / max(1, tokens),
        "tokens/sampled": float(tokens),
    }
    for reason, count in reasons(rollout.grade for rollout in rollouts).items():
        metrics[f"could_not_tell/{reason}"] = float(count)
    for part in sorted({name for rollout in graded for name in rollout.grade.parts}):
        metrics[f"reward/{part}"] = _mean([r.grade.parts[part] for r in graded if part in r.grade.parts])
    return metrics


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
