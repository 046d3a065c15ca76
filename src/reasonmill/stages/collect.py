"""Collection: many samples of each problem from one model, graded (R1 paper: cold start, rejection sampling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from reasonmill.algo.intervals import clustered_share
from reasonmill.recipe.reference import ModelRef
from reasonmill.rollouts import stage_seed
from reasonmill.servers.settings import TeacherSettings
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.measures import graded_part, values_of
from reasonmill.stages.sampling import (
    CollectSampling,
    SampledSettings,
    Surroundings,
    num_sampled,
    refuse_of_server,
    sample_in_parts,
)
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Group, Problem

MAKES: ArtifactKind = "rollouts"
NEEDS = ("sampler",)


class Settings(SampledSettings):
    """Settings of a `collect` stage."""

    kind: Literal["collect"]
    from_: ModelRef | None = Field(
        default=None, alias="from", description="the model that is sampled, or else `teacher`"
    )
    teacher: TeacherSettings | None = Field(default=None, description="a model behind an OpenAI-compatible server")
    split: Literal["train", "dev"] = Field(
        default="train", description="samples of dev are for looking at: nothing that was held out is trained on"
    )
    sampling: CollectSampling = CollectSampling()
    problems_per_commit: int = Field(default=256, ge=1, description="problems that are committed together")
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @model_validator(mode="after")
    def _samples_one_model(self, info: ValidationInfo) -> Settings:
        if (self.from_ is None) == (self.teacher is None):
            raise ValueError("name exactly one of from (a model of this recipe or a directory) and teacher (a server)")
        if self.teacher is not None:
            if "slots" in self.sampling.model_fields_set or "precision" in self.model_fields_set:
                raise ValueError("slots and precision are decided by the teacher's server: leave them out")
            refuse_of_server(self, self.teacher, "teacher", info)
        return self


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Samples the model `from` refers to, or the teacher; the outcome is every graded rollout."""
    model = settings.teacher or inputs["from"].path
    # Sorted: the order in which a recipe lists its tasks is no part of the stage's key.
    tasks = {name: context.task(name) for name in sorted(settings.tasks)}
    problems = problems_of(settings, tasks, context.seed)
    if settings.split == "train":
        context.asked().refuse(settings.name, problems)
    together = settings.problems_per_commit
    parts = (
        (problems[first : first + together], (context.seed, settings.name, commit))
        for commit, first in enumerate(range(0, len(problems), together))
    )
    sampler = context.sampler(
        model, slots=settings.sampling.slots, precision=settings.precision, replies=context.replies
    )
    around = Surroundings.of(context)
    groups = sample_in_parts(settings, tasks, parts, sampler, context.renderer(model), around)
    figures = {task: task_metrics(groups, task) for task in tasks}
    context.progress.end({task: each["pass@1"] for task, each in figures.items() if "pass@1" in each})
    tokens = num_sampled(groups)
    metrics = {"collected": figures, "tokens": tokens}
    return Outcome(lambda target: write_groups(target / GROUPS_FILE, groups), metrics, tokens)


def problems_of(settings: Settings, tasks: Mapping[str, NamedTask], seed: int) -> list[Problem]:
    """The stage's own problems, task by task.

    Args:
        seed: the recipe's.
    """
    own_seed = stage_seed(seed, settings.name)
    return [
        task.problem(settings.split, own_seed, index)
        for name, task in tasks.items()
        for index in range(settings.tasks[name])
    ]


def task_metrics(groups: Sequence[Group], task: str) -> dict[str, Any]:
    """Figures of one task's groups; pass@1 has a 95 % interval clustered by problem, and is left out if nothing was
    graded."""
    asked = [group for group in groups if group.problem.task == task]
    accuracies, clusters = values_of(asked, graded_part("accuracy"))
    num_rollouts = sum(len(group.rollouts) for group in asked)
    figures: dict[str, Any] = {
        "problems": len(asked),
        "samples": num_rollouts,
        "ungraded": num_rollouts - len(accuracies),
        "tokens": num_sampled(asked),
    }
    return {**figures, "pass@1": clustered_share(accuracies, clusters).as_metric()} if accuracies else figures
