"""How stages draw from a model: the settings of it, and samples that are only looked at or kept, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from reasonmill.errors import Interrupted
from reasonmill.placement import SLOTS
from reasonmill.plugins.catalogue import ProblemCounts, known, require_split
from reasonmill.protocols import Draws, Progress, Renderer
from reasonmill.randomness import Part
from reasonmill.rewards.combination import ACCURACY_ALONE, RewardWeights
from reasonmill.rollouts import collect, refuse_ungraded
from reasonmill.servers.settings import TeacherSettings
from reasonmill.settings import INCIDENTAL, Real
from reasonmill.stage import StageContext, StageSettings
from reasonmill.store.steps import committed_groups
from reasonmill.tasks.named import NamedTask
from reasonmill.types import MOST_TOKENS, Group, Problem, SamplingParams


class _Drawing(BaseModel):
    """How completions are drawn, whatever else a stage's settings say of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("temperature", check_fields=False)
    @classmethod
    def _can_be_drawn_at(cls, value: float) -> float:
        return SamplingParams(temperature=value).temperature

    def params(self) -> SamplingParams:
        """What a request says of it."""
        return SamplingParams(**self.model_dump(exclude={"slots"}))


class SamplingSettings(_Drawing):
    """How rollouts are drawn. Training scores the same distribution, which top-k and top-p would change."""

    temperature: Real = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=256, ge=1, le=MOST_TOKENS)
    slots: int = Field(default=SLOTS, ge=1, description="sequences that run at the same time")


class EvaluationSampling(_Drawing):
    """How answers are drawn; the published protocol is temperature 0.6 and top-p 0.95."""

    temperature: Real = Field(default=1.0, ge=0)
    top_p: Real = Field(default=1.0, ge=1e-6, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=256, ge=1, le=MOST_TOKENS)


class CollectSampling(EvaluationSampling):
    """How samples are drawn; R1's cold start drew at temperature 1."""

    slots: int = Field(default=SLOTS, ge=1, description="sequences that run at the same time")


class SampledSettings(StageSettings):
    """Settings of stages that ask a model problems and grade what it says."""

    tasks: ProblemCounts = Field(min_length=1, description="tasks and the number of problems of each")
    samples: int = Field(default=4, ge=1, le=100_000, description="samples of each problem")
    max_ungraded: Annotated[Real, INCIDENTAL] = Field(
        default=0.05, ge=0, le=1, description="share of ungraded samples that ends the stage"
    )
    split: str
    sampling: EvaluationSampling

    @model_validator(mode="after")
    def _tasks_have_the_split(self, info: ValidationInfo) -> Self:
        require_split(self.tasks, self.split, known(info))
        return self


def refuse_of_server(settings: SampledSettings, server: TeacherSettings, key: str, info: ValidationInfo) -> None:
    """Refuses what a model behind a server can't be asked for.

    Args:
        key: the setting that names the server.

    Raises:
        ValueError: there is such a thing in the settings.
    """
    if settings.sampling.top_k > 0:
        raise ValueError("an OpenAI-compatible server takes no top_k: leave it at 0, or use top_p")
    if untold := server.without(settings.sampling.model_fields_set):
        raise ValueError(f"{key}.parameters leaves {untold[0]} out, so it can't be set in sampling")
    for name in settings.tasks:
        if known(info).task(name).environment is not None:
            raise ValueError(
                f"task {name!r} has an environment, whose episodes need tokens, which a server does not give: "
                "sample it from a model (from), or leave the environment out"
            )


# Makes the groups of a part from its number and from what samples it, or has them already.
Keep = Callable[[int, Callable[[], Sequence[Group]]], Sequence[Group]]


@dataclass(frozen=True)
class Surroundings:
    """What is done around sampling; nothing is kept unless it says so.

    Attributes:
        keep: how the groups of a part are kept; not at all if nothing is said.
    """

    progress: Progress
    stop_requested: Callable[[], bool] = lambda: False
    keep: Keep = lambda part, sample: sample()

    @classmethod
    def of(cls, context: StageContext) -> Surroundings:
        """Those of a stage, which commits its groups."""

        def keep(part: int, sample: Callable[[], Sequence[Group]]) -> Sequence[Group]:
            groups = committed_groups(context.home, context.key, part, sample)
            context.replies.drop()
            return groups

        return cls(context.progress, context.stop_requested, keep)


def sample_in_parts(
    settings: SampledSettings,
    tasks: Mapping[str, NamedTask],
    parts: Iterable[tuple[Sequence[Problem], tuple[Part, ...]]],
    sampler: Draws,
    renderer: Renderer,
    around: Surroundings,
    rewards: RewardWeights = ACCURACY_ALONE,
) -> list[Group]:
    """The graded samples of all problems, part by part: what is kept of a part is not sampled again.

    Args:
        parts: problems, and what names their draw.
        rewards: what samples are graded with.

    Raises:
        Interrupted: the user asked to stop; what is kept are the parts that are finished.
        TooManyUngraded: more samples of a part could not be graded than the settings allow.
    """

    def sample(problems: Sequence[Problem], noise: tuple[Part, ...], before: int) -> list[Group]:
        drawn = collect(
            sampler,
            renderer,
            tasks,
            problems,
            rewards=rewards,
            num_samples=settings.samples,
            params=settings.sampling.params(),
            noise=noise,
            on_completion=lambda finished: around.progress.advance(before + finished, {}),
        )
        refuse_ungraded(drawn, settings.max_ungraded)
        return drawn

    num_problems = sum(settings.tasks.values())
    around.progress.begin(settings.name, num_problems * settings.samples, "completions")
    groups: list[Group] = []
    for number, (problems, noise) in enumerate(parts):
        if around.stop_requested():
            raise Interrupted(f"{settings.name} stopped after {len(groups)} of {num_problems} problems")
        groups += around.keep(number, partial(sample, problems, noise, len(groups) * settings.samples))
        around.progress.advance(len(groups) * settings.samples, {})
    return groups


def num_sampled(groups: Sequence[Group]) -> int:
    """The tokens that were drawn for the groups."""
    return sum(rollout.completion.num_sampled for group in groups for rollout in group.rollouts)
