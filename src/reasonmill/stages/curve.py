"""The held-out curve: a few held-out problems every few steps, drawn while a policy is trained.

It draws its own problems and noise, so that it moves no bit of the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from reasonmill.algo.early_end import has_stalled
from reasonmill.algo.intervals import clustered_share
from reasonmill.plugins.catalogue import ProblemCounts, known, require_split
from reasonmill.protocols import Renderer, Sampler
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rewards.grades import ACCURACY
from reasonmill.rollouts import collect, stage_seed
from reasonmill.stages.sampling import num_sampled
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Group, Problem, SamplingParams

# The point of the metrics that the curve is known by, and the one before the first step.
POINT, START = "held_out/accuracy", "held_out_start/accuracy"


class CurveSettings(BaseModel):
    """What is asked how often, and whether the stage ends when it stops rising."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(ge=1, description="steps between two points; there is one before the first step, too")
    tasks: ProblemCounts = Field(
        min_length=1, description="tasks and the number of problems of each, the same each time"
    )
    samples: int = Field(default=1, ge=1, description="answers to each problem, drawn as the stage's rollouts are")
    split: Literal["dev", "test"] = "dev"
    patience: int | None = Field(
        default=None, ge=1, description="the stage ends when none of so many points in a row is a new best"
    )

    @field_validator("split")
    @classmethod
    def _tasks_have_the_split(cls, split: str, info: ValidationInfo) -> str:
        require_split(info.data.get("tasks", {}), split, known(info))
        return split

    def num_points(self, steps: int) -> int:
        """How many points there are at most."""
        return steps // self.every + 1

    @property
    def answers(self) -> int:
        """How many answers a point takes."""
        return sum(self.tasks.values()) * self.samples

    def has_ended(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a stage whose steps have these metrics ends.

        Args:
            rows: of all steps so far, in their order.
        """
        if self.patience is None:
            return False
        points = [row[name] for row in rows for name in (START, POINT) if name in row]
        return has_stalled(points, self.patience)


def curve_problems(
    settings: CurveSettings, seed: int, stage: str, task: Callable[[str], NamedTask]
) -> Iterator[Problem]:
    """The problems of a curve, the same at all its points.

    Args:
        seed: the recipe's.
        task: finds the task of a name.
    """
    own = stage_seed(seed, f"{stage}/held-out")
    for name, count in settings.tasks.items():
        yield from (task(name).problem(settings.split, own, index) for index in range(count))


class Curve:
    """Asks held-out problems.

    Args:
        stage: its name, of which problems and noise depend.
        tasks: by name, those of the settings.
        params: how answers are drawn.
    """

    def __init__(
        self, settings: CurveSettings, seed: int, stage: str, tasks: Mapping[str, NamedTask], params: SamplingParams
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._params = params
        self._noise = (seed, f"{stage}/held-out")
        self._problems = list(curve_problems(settings, seed, stage, tasks.__getitem__))

    def is_due(self, taken: int) -> bool:
        """Whether there is a point after so many steps."""
        return taken % self._settings.every == 0

    def point(self, taken: int, sampler: Sampler, renderer: Renderer) -> dict[str, float]:
        """The metrics of a point: the share of right answers with its 95 % interval, and what it took."""
        began = time.monotonic()
        groups = collect(
            sampler,
            renderer,
            self._tasks,
            self._problems,
            rewards=ACCURACY_ALONE,
            num_samples=self._settings.samples,
            params=self._params,
            noise=(*self._noise, taken),
        )
        area = POINT.partition("/")[0] if taken else START.partition("/")[0]
        metrics = {f"{area}/tokens": float(num_sampled(groups)), f"{area}/ungraded": _num_ungraded(groups)}
        values, clusters = [], []
        by_task: dict[str, list[float]] = {}
        for group in groups:
            for rollout in group.rollouts:
                if rollout.grade.reward is not None:
                    values.append(rollout.grade.parts[ACCURACY])
                    clusters.append(group.problem.cluster)
                    by_task.setdefault(group.problem.task, []).append(values[-1])
        if values:
            share = clustered_share(values, clusters)
            metrics |= {f"{area}/accuracy": share.value, f"{area}/low": share.low, f"{area}/high": share.high}
            if len(self._settings.tasks) > 1:
                metrics |= {f"{area}/{name}": sum(found) / len(found) for name, found in by_task.items()}
        return {**metrics, f"speed/{area}_s": time.monotonic() - began}


def _num_ungraded(groups: Sequence[Group]) -> float:
    return float(sum(rollout.grade.reward is None for group in groups for rollout in group.rollouts))
