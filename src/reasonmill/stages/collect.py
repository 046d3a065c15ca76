"""Collection: many samples of each problem from one model, graded (R1 paper: cold start, rejection sampling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from reasonmill.algo.intervals import clustered_share
from reasonmill.errors import Interrupted
from reasonmill.plugins.catalogue import ProblemCounts, known, require_split
from reasonmill.recipe.reference import ModelRef
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rollouts import collect, refuse_ungraded, stage_seed
from reasonmill.servers.client import TeacherSettings
from reasonmill.settings import INCIDENTAL
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.store.steps import committed_groups
from reasonmill.types import Group, Problem, SamplingParams

MAKES: ArtifactKind = "rollouts"
NEEDS = ("sampler",)


class CollectSampling(BaseModel):
    """How samples are drawn; R1's cold start drew at temperature 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=256, ge=1)
    slots: int = Field(default=512, ge=1, description="sequences that run at the same time")

    def params(self) -> SamplingParams:
        return SamplingParams(**self.model_dump(exclude={"slots"}))


class Settings(StageSettings):
    """Settings of a `collect` stage."""

    kind: Literal["collect"]
    from_: ModelRef | None = Field(
        default=None, alias="from", description="the model that is sampled, or else `teacher`"
    )
    teacher: TeacherSettings | None = Field(default=None, description="a model behind an OpenAI-compatible server")
    tasks: ProblemCounts = Field(min_length=1, description="tasks and the number of problems of each")
    samples: int = Field(default=4, ge=1, description="samples of each problem")
    split: Literal["train", "dev"] = "train"
    sampling: CollectSampling = CollectSampling()
    problems_per_commit: int = Field(default=256, ge=1, description="problems that are committed together")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_ungraded: Annotated[float, INCIDENTAL] = Field(
        default=0.05, ge=0, le=1, description="share of ungraded samples that ends the stage"
    )

    @model_validator(mode="after")
    def _tasks_have_the_split(self, info: ValidationInfo) -> Settings:
        require_split(self.tasks, self.split, known(info))
        return self

    @model_validator(mode="after")
    def _samples_one_model(self, info: ValidationInfo) -> Settings:
        if (self.from_ is None) == (self.teacher is None):
            raise ValueError("name exactly one of from (a model of this recipe or a directory) and teacher (a server)")
        if self.teacher is not None:
            if self.sampling.top_k > 0:
                raise ValueError("an OpenAI-compatible server takes no top_k: leave it at 0, or use top_p")
            if "slots" in self.sampling.model_fields_set or "precision" in self.model_fields_set:
                raise ValueError("slots and precision are matters of the teacher's server: leave them out")
            for name in self.tasks:
                if known(info).task(name).environment is not None:
                    raise ValueError(
                        f"task {name!r} has an environment, whose episodes need tokens, which a server does not give: "
                        "sample it from a model (from), or leave the environment out"
                    )
        return self


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Samples the model `from` refers to, or the teacher; the outcome is every graded rollout."""
    groups = Collection(settings, inputs, context).run()
    tokens = sum(rollout.completion.num_sampled for group in groups for rollout in group.rollouts)
    figures = {task: task_metrics(groups, task) for task in sorted(settings.tasks)}
    context.progress.end({task: each["pass@1"] for task, each in figures.items() if "pass@1" in each})
    metrics = {"collected": figures, "tokens": tokens}
    return Outcome(lambda target: write_groups(target / GROUPS_FILE, groups), metrics, tokens)


class Collection:
    """The problems of a stage, sampled commit by commit: what is committed is never sampled again."""

    def __init__(self, settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> None:
        self._settings = settings
        self._context = context
        model = settings.teacher or inputs["from"].path
        self._sampler = context.sampler(model, slots=settings.sampling.slots, precision=settings.precision)
        self._renderer = context.renderer(model)
        # Sorted: the order in which a recipe lists its tasks is no part of the stage's key.
        self._tasks = {name: context.task(name) for name in sorted(settings.tasks)}

    def run(self) -> list[Group]:
        """All groups, task by task.

        Raises:
            Interrupted: the user asked to stop; what was committed stays, and the same command goes on behind it.
            TooManyUngraded: more samples of a commit than `max_ungraded` could not be graded.
        """
        settings, context = self._settings, self._context
        problems = self.problems()
        context.progress.begin(settings.name, len(problems) * settings.samples, "completions")
        groups: list[Group] = []
        for commit, first in enumerate(range(0, len(problems), settings.problems_per_commit)):
            if context.stop_requested():
                raise Interrupted(f"stopped after {first} of {len(problems)} problems")
            asked = problems[first : first + settings.problems_per_commit]
            groups += committed_groups(context.home, context.key, commit, partial(self._sample, commit, asked, first))
            context.progress.advance(len(groups) * settings.samples, {})
        return groups

    def problems(self) -> list[Problem]:
        """The stage's own problems."""
        seed = stage_seed(self._context.seed, self._settings.name)
        counts = self._settings.tasks
        return [
            task.problem(self._settings.split, seed, index)
            for name, task in self._tasks.items()
            for index in range(counts[name])
        ]

    def _sample(self, commit: int, problems: Sequence[Problem], first: int) -> list[Group]:
        before = first * self._settings.samples
        groups = collect(
            self._sampler,
            self._renderer,
            self._tasks,
            problems,
            rewards=ACCURACY_ALONE,
            num_samples=self._settings.samples,
            params=self._settings.sampling.params(),
            noise=(self._context.seed, self._settings.name, commit),
            on_completion=lambda finished: self._context.progress.advance(before + finished, {}),
        )
        refuse_ungraded(groups, self._settings.max_ungraded)
        return groups


def task_metrics(groups: Sequence[Group], task: str) -> dict[str, Any]:
    """Figures of one task's groups; pass@1 has a 95 % interval clustered by problem, and is left out if nothing was
    graded."""
    asked = [group for group in groups if group.problem.task == task]
    # By id: a task with few problems asks some of them again.
    numbers = {group.problem.id: number for number, group in enumerate(asked)}
    rollouts = [(numbers[group.problem.id], rollout) for group in asked for rollout in group.rollouts]
    graded = [(cluster, rollout.grade) for cluster, rollout in rollouts if rollout.grade.reward is not None]
    figures: dict[str, Any] = {
        "problems": len(asked),
        "samples": len(rollouts),
        "ungraded": len(rollouts) - len(graded),
        "tokens": sum(rollout.completion.num_sampled for _, rollout in rollouts),
    }
    if graded:
        accuracies = [grade.parts["accuracy"] for _, grade in graded]
        figures["pass@1"] = clustered_share(accuracies, [cluster for cluster, _ in graded]).as_metric()
    return figures
