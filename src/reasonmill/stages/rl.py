"""Reinforcement learning on graded rollouts: GRPO and its relatives (R1 paper, section 2.1)."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from reasonmill.algo.advantages import advantages
from reasonmill.algo.examples import denominator, pg_examples
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack, unpack
from reasonmill.errors import RecipeError
from reasonmill.learn.on_policy import Update
from reasonmill.plugins.catalogue import RewardShares, known
from reasonmill.protocols import Learner, Preference, Scorer
from reasonmill.recipe.reference import RewardModelRef
from reasonmill.rewards.combination import check_rewards
from reasonmill.rollouts import TaskMix, refuse_ungraded
from reasonmill.settings import INCIDENTAL, Real
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.on_policy import OnPolicySettings, Policy
from reasonmill.types import Example, Group

MAKES: ArtifactKind = "model"
NEEDS = ("sampler", "learner", "scorer")

_PRESETS: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


class Settings(OnPolicySettings):
    """Settings of an `rl` stage. `preset = "r1"` fills in R1-Zero's published ones."""

    kind: Literal["rl"]
    preset: Literal["r1"] | None = None
    rewards: RewardShares = Field(default={"accuracy": 1.0, "format": 1.0}, min_length=1)
    reward_models: dict[Preference, RewardModelRef] = Field(
        default={}, description="the models of the rewards helpfulness and safety, which count on general tasks"
    )
    preference_share: Real = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the last steps in which reward models count; the problems of general tasks, which have "
        "no other judge, are only drawn in these steps",
    )
    group_size: int = Field(default=16, ge=2, description="samples of each problem")
    loss: LossSettings = LossSettings()
    reference_every: int = Field(
        default=25, ge=1, description="steps after which the policy becomes the KL's reference"
    )
    max_ungraded: Annotated[Real, INCIDENTAL] = Field(
        default=0.05, ge=0, le=1, description="share of ungraded rollouts that ends the stage"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") != "r1":
            return data
        filled = dict(_PRESETS["r1"])
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
        return super().against_more_steps()

    @property
    def first_preference_step(self) -> int:
        """The step from which reward models count, and general problems are drawn; 0 without reward models."""
        return self.steps - max(1, round(self.preference_share * self.steps))


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains the model `from` refers to; the outcome is the trained model."""
    policy = Policy(settings, context, inputs["from"].path)
    scorers: dict[str, Scorer] = {
        name: context.scorer(
            inputs[f"reward_models.{name}"].path,
            name,
            precision=settings.precision,
            tokens_per_batch=settings.tokens_per_batch,
        )
        for name in settings.reward_models
    }
    rewards = context.rewards(settings.rewards, scorers)
    rule_shares = {name: share for name, share in settings.tasks.items() if policy.tasks[name].domain == "reasoning"}
    rule_mix = TaskMix(policy.tasks, rule_shares)
    loss = settings.loss

    def sample(step: int) -> list[Group]:
        groups = policy.draw(step, policy.mix if step >= settings.first_preference_step else rule_mix, rewards)
        refuse_ungraded(groups, settings.max_ungraded)
        return groups

    def updates(step: int, groups: Sequence[Group]) -> Iterator[Update]:
        if loss.kl_coefficient and step % settings.reference_every == 0:
            policy.learner.keep_reference()
        for share in _shares(_examples(settings, groups), settings.updates_per_step):
            examples = [example for group in share for example in group]
            if loss.kl_coefficient:
                examples = _with_reference(policy.learner, examples, settings.tokens_per_batch)
            yield Update(
                pack(examples, settings.tokens_per_batch),
                loss,
                denominator(examples, loss.normalisation),
                settings.schedule.at(step, settings.steps),
                num_rollouts=len(examples),
            )

    return policy.train(sample, updates, compared=True)


def _examples(settings: Settings, groups: Sequence[Group]) -> list[list[Example]]:
    """The examples of each group that has something to learn from; a flat group has none."""
    loss, max_tokens = settings.loss, settings.sampling.max_tokens
    return [
        pg_examples(group, advantages(group.rewards, loss.advantage), loss.normalisation, max_tokens)
        for group in groups
        if not group.is_flat
    ]


def _with_reference(learner: Learner, examples: Sequence[Example], tokens_per_batch: int) -> list[Example]:
    """The examples with the log-probs of the reference."""
    batches = pack(examples, tokens_per_batch)
    rows = unpack(learner.reference_logprobs(batches), batches, examples)
    return [dataclasses.replace(e, ref_logprobs=row) for e, row in zip(examples, rows, strict=True)]


def _shares(groups: Sequence[Sequence[Example]], count: int) -> list[Sequence[Sequence[Example]]]:
    """Up to `count` runs of groups, as equal as can be; none where there is nothing to train on."""
    size = math.ceil(len(groups) / count)
    return [groups[i : i + size] for i in range(0, len(groups), size)] if groups else []
