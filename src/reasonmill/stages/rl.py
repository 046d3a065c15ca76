"""Reinforcement learning on graded rollouts: GRPO and its relatives (R1 paper, section 2.1)."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from reasonmill.algo.advantages import ADVANTAGES
from reasonmill.algo.examples import denominator, minibatches, pg_examples, soft_overlong
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.errors import RecipeError
from reasonmill.learn.on_policy import Update
from reasonmill.learn.scoring import scored, with_old_logprobs
from reasonmill.plugins.catalogue import RewardShares, known
from reasonmill.protocols import Preference, Scorer
from reasonmill.recipe.reference import RewardModelRef
from reasonmill.rewards.combination import RewardWeights, check_rewards
from reasonmill.rollouts import TaskMix, refuse_ungraded
from reasonmill.settings import INCIDENTAL, Real
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.alarm import Alarm, AlarmSettings
from reasonmill.stages.on_policy import OnPolicySettings, Policy
from reasonmill.store.accounts import ALWAYS, Fate
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Example, Group, Rollout

MAKES: ArtifactKind = "model"
NEEDS = ("sampler", "learner", "scorer")

# Problems of a step that is refilled, as a multiple of its own, where the settings say nothing.
_REFILL_LIMIT = 4.0
# What two fp32 computations of a log-prob differ by at most on average, in nats; some 1e-6 is usual.
_ROUNDING = 1e-3
# The part of a grade that the soft punishment is.
_OVERLONG = "overlong"
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
    flat_groups: Literal["keep", "drop", "refill"] = Field(
        default="keep",
        description="whether groups without differences count in denominators and KL, are left out, or replaced",
    )
    refill_limit: Real | None = Field(
        default=None, gt=1, description="the most problems of a step, as a multiple of its own"
    )
    drop_overlong: bool = Field(default=False, description="leave out what was cut off, but for its group's baseline")
    soft_overlong: int | None = Field(
        default=None, ge=1, description="the last tokens before max_tokens, through which a punishment grows to -1"
    )
    old_policy: Literal["auto", "learner", "sampler"] = Field(
        default="auto", description="whose log-probs ratios are against; auto: the sampler's where they are the same"
    )
    max_mismatch: Annotated[Real, INCIDENTAL] = Field(
        default=0.1, gt=0, description="mean difference of the two's log-probs, in nats, that ends the stage"
    )
    reference_every: int = Field(
        default=25,
        ge=1,
        description="steps after which the policy becomes the KL's reference; with lora, that is the model without it",
    )
    max_ungraded: Annotated[Real, INCIDENTAL] = Field(
        default=0.05, ge=0, le=1, description="share of ungraded rollouts that ends the stage"
    )

    alarm: AlarmSettings | None = Field(
        default=None, description="a second verifier of some attempts, and what is done where it disagrees"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") != "r1":
            return data
        filled = dict(_PRESETS["r1"])
        loss = data.get("loss")
        if data.get("lora") is not None or (isinstance(loss, dict) and loss.get("kl_coefficient") == 0):
            del filled["reference_every"]  # which would have no effect
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

    @model_validator(mode="after")
    def _alarm_fits(self, info: ValidationInfo) -> Settings:
        if self.alarm is not None:
            catalogue = known(info)
            self.alarm.require_fit(self.rewards, [catalogue.task(name) for name in self.tasks], catalogue)
        return self

    @model_validator(mode="after")
    def _step_is_possible(self) -> Settings:
        rollouts = self.problems_per_step * self.group_size
        if rollouts % self.updates_per_step:
            raise ValueError(
                f"updates_per_step must divide the {rollouts} rollouts of a step into equal parts, and "
                f"{self.updates_per_step} does not"
            )
        if self.refill_limit is not None and self.flat_groups != "refill":
            raise ValueError("refill_limit has no effect unless flat_groups is 'refill'; remove it, or set that")
        if self.loss.advantage == "per_reward" and self.flat_groups != "keep":
            raise ValueError(
                "a group whose rewards are equal may differ in their parts, which per_reward looks at; "
                "use flat_groups = 'keep'"
            )
        if self.loss.correction is not None and self.old_policy == "sampler":
            raise ValueError(
                "loss.correction has no effect where ratios are against the sampler; remove it, or old_policy"
            )
        if self.lora is not None and "reference_every" in self.model_fields_set:
            raise ValueError(
                "reference_every has no effect with lora, whose reference is the model without the adapter"
            )
        if not self.loss.kl_coefficient and "reference_every" in self.model_fields_set:
            raise ValueError("reference_every has no effect without a loss.kl_coefficient; remove it, or set that")
        if self.soft_overlong is not None and _OVERLONG in self.rewards:
            raise ValueError(
                f"soft_overlong is a part of the reward that is called {_OVERLONG!r}, as is one of rewards"
            )
        if self.soft_overlong is not None and self.soft_overlong > self.sampling.max_tokens:
            raise ValueError(f"soft_overlong must be at most sampling.max_tokens, which is {self.sampling.max_tokens}")
        return self

    @property
    def most_problems(self) -> int:
        """How many problems a step draws at most."""
        factor = 1 if self.flat_groups != "refill" else self.refill_limit or _REFILL_LIMIT
        return int(factor * self.problems_per_step)

    @property
    def fates(self) -> frozenset[Fate]:
        """What can become of a rollout."""
        left_out: list[Fate] = ["ungraded"]
        left_out += ["flat"] if self.flat_groups != "keep" else []
        left_out += ["overlong"] if self.drop_overlong else []
        return ALWAYS.union(left_out)

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
    same = settings.old_policy == "auto" and loss.correction is None and policy.draws_as_scored
    as_drawn = same or settings.old_policy == "sampler"
    bound = min(settings.max_mismatch, _ROUNDING) if same else settings.max_mismatch
    alarm = settings.alarm and Alarm(settings.alarm, context, settings.name, settings.rewards, policy.tasks)

    def sample(step: int) -> list[Group]:
        mix = policy.mix if step >= settings.first_preference_step else rule_mix
        groups = _punished(policy.draw(step, mix, rewards), settings)
        own, most = len(groups), settings.most_problems
        while missing := _missing(settings, groups, len(groups)):
            places = range(len(groups) - own, len(groups) - own + missing)
            groups += _punished(policy.draw_more(step, mix, rewards, places, most - own), settings)
        refuse_ungraded(groups, settings.max_ungraded)
        return groups

    def updates(step: int, groups: Sequence[Group]) -> tuple[Mapping[str, float], Iterator[Update]]:
        watched = alarm.look(step, groups) if alarm else {}
        if loss.kl_coefficient and step % settings.reference_every == 0:
            policy.learner.keep_reference()
        noise = (context.seed, settings.name, step)
        parts, measured = with_old_logprobs(
            policy.learner,
            minibatches(_examples(settings, groups, policy.tasks, rewards), settings.updates_per_step, noise),
            as_drawn=as_drawn,
            bound=bound,
            step=step,
            tokens_per_batch=settings.tokens_per_batch,
            noise=noise,
        )
        if loss.kl_coefficient:
            parts = scored(parts, "ref_logprobs", policy.learner.reference_logprobs, settings.tokens_per_batch)
        return {**measured, **watched}, of_step(step, parts)

    def of_step(step: int, parts: Sequence[Sequence[Example]]) -> Iterator[Update]:
        for part in parts:
            yield Update(
                pack(part, settings.tokens_per_batch),
                loss,
                denominator(part, loss.normalisation),
                settings.schedule.at(step, settings.steps),
                num_rollouts=len(part),
            )

    def problems(groups: Sequence[Group]) -> int:
        asked = settings.problems_per_step
        while missing := _missing(settings, groups[:asked], asked):
            asked += missing
        return asked

    outcome = policy.train(
        sample, updates, kind="pg", loss=loss, fates=settings.fates, problems=problems, scores=bool(scorers)
    )
    context.drop_judged()
    return outcome


def _missing(settings: Settings, groups: Sequence[Group], asked: int) -> int:
    """How many more problems a step draws after so many, so that its batch is full or its limit reached."""
    if settings.flat_groups != "refill":
        return 0
    useful = sum(not group.is_flat for group in groups)
    return min(settings.problems_per_step - useful, settings.most_problems - asked)


def _punished(groups: Sequence[Group], settings: Settings) -> list[Group]:
    """The groups with the soft punishment of long attempts as a part of their rewards (DAPO, arXiv 2503.14476)."""
    if settings.soft_overlong is None:
        return list(groups)
    longest, soft = settings.sampling.max_tokens, settings.soft_overlong

    def punished(rollout: Rollout) -> Rollout:
        grade = rollout.grade
        part = soft_overlong(len(rollout.completion.tokens), longest, soft)
        reward = None if grade.reward is None else grade.reward + part
        return replace(rollout, grade=replace(grade, reward=reward, parts={**grade.parts, _OVERLONG: part}))

    return [replace(group, rollouts=tuple(map(punished, group.rollouts))) for group in groups]


def _examples(
    settings: Settings, groups: Sequence[Group], tasks: Mapping[str, NamedTask], rewards: RewardWeights
) -> list[Example]:
    """The examples of all groups that are learned from, and of all attempts of theirs that are."""
    loss = settings.loss
    groups = [group for group in groups if settings.flat_groups == "keep" or not group.is_flat]
    graded = [[rollout.grade for rollout in group.rollouts if rollout.grade.reward is not None] for group in groups]
    if loss.advantage_kind == "per_reward":
        soft = {} if settings.soft_overlong is None else {_OVERLONG: 1.0}
        weights = [rewards.on(tasks[group.problem.task].domain) | soft for group in groups]
        parts = [
            [(weight, _filled([grade.parts.get(name) for grade in g])) for name, weight in own.items()]
            for own, g in zip(weights, graded, strict=True)
        ]
    else:
        parts = [[(1.0, [grade.reward or 0.0 for grade in g])] for g in graded]
    found = []
    for group, own in zip(groups, ADVANTAGES[loss.advantage_kind](parts), strict=True):
        values = iter(own)
        of_each = [None if rollout.grade.reward is None else next(values) for rollout in group.rollouts]
        if settings.drop_overlong:
            pairs = zip(group.rollouts, of_each, strict=True)
            of_each = [None if rollout.completion.finish == "length" else value for rollout, value in pairs]
        found += pg_examples(group, of_each, loss.normalisation, settings.sampling.max_tokens)
    return found


def _filled(values: Sequence[float | None]) -> list[float]:
    """The values of a part; an attempt that the part does not apply to gets their mean, which says nothing of it."""
    known = [value for value in values if value is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    return [mean if value is None else value for value in values]
