"""Evaluation: pass@1 as the mean over several samples of each held-out problem (R1 paper, section on evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from reasonmill.algo.intervals import clustered_mean
from reasonmill.errors import Interrupted
from reasonmill.model.decoder import load_decoder, working_dtype
from reasonmill.protocols import Progress, Renderer
from reasonmill.recipe.reference import ModelRef
from reasonmill.render import renderer_for
from reasonmill.rewards.combination import RewardWeights
from reasonmill.rollouts import collect, thinking_tokens
from reasonmill.sample.native import NativeSampler
from reasonmill.stages.context import Input, Outcome, StageContext, StageSettings
from reasonmill.store.groups import write_groups
from reasonmill.tasks import registry
from reasonmill.transcript import read_transcript
from reasonmill.types import Group, SamplingParams

KIND = "evaluate"
# Problems that are in flight together: enough to fill the sampler, few enough to show progress.
_PROBLEMS_AT_ONCE = 256


class EvaluationSampling(BaseModel):
    """How answers are drawn; the published protocol is temperature 0.6 and top-p 0.95."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=256, ge=1)

    def params(self) -> SamplingParams:
        return SamplingParams(**self.model_dump())


class Settings(StageSettings):
    """Settings of an `evaluate` stage."""

    kind: Literal["evaluate"]
    from_: ModelRef = Field(alias="from")
    tasks: dict[str, int] = Field(min_length=1, description="tasks and the number of problems of each")
    samples: int = Field(default=4, ge=1, description="samples of each problem")
    split: Literal["dev", "test"] = "test"
    sampling: EvaluationSampling = EvaluationSampling()

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: dict[str, int]) -> dict[str, int]:
        for name, problems in value.items():
            if name not in registry.names():
                raise ValueError(f"unknown task {name!r}; use one of {', '.join(registry.names())}")
            if problems < 1:
                raise ValueError(f"task {name!r} needs at least one problem, got {problems}")
        return value


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Evaluates the model `from` refers to; the outcome holds every transcript and the figures."""
    evaluation = Evaluation(
        inputs["from"].path, settings.tasks, settings.samples, context.seed, settings.sampling.params(), settings.split
    )
    metrics, groups, tokens = evaluation.run(context.device, context.progress, settings.name, context.stop_requested)
    return Outcome(
        "evaluation",
        lambda target: write_groups(target / "groups.parquet", groups),
        {"model": settings.from_, **metrics},
        tokens,
    )


def evaluate_model(
    model_dir: Path,
    tasks: Mapping[str, int],
    samples: int,
    seed: int,
    params: SamplingParams,
    split: str,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluates a model directory outside of a recipe; {"tasks": {task: figures}}."""
    evaluation = Evaluation(model_dir, tasks, samples, seed, params, split)
    return evaluation.run(device, progress, model_dir.name, stop_requested=lambda: False)[0]


class Evaluation:
    """What to ask a model, and how often."""

    def __init__(
        self,
        model_dir: Path,
        tasks: Mapping[str, int],
        samples: int,
        seed: int,
        params: SamplingParams,
        split: str,
    ) -> None:
        self._model_dir = model_dir
        self._tasks = tasks
        self._samples = samples
        self._seed = seed
        self._params = params
        self._split = split

    def run(
        self, device: str, progress: Progress, name: str, stop_requested: Callable[[], bool]
    ) -> tuple[dict[str, Any], list[Group], int]:
        """(figures by task, all groups, tokens sampled).

        Raises:
            Interrupted: the user asked to stop; an evaluation starts from its beginning when it is resumed.
        """
        decoder = load_decoder(self._model_dir, device=device, dtype=working_dtype("auto", device))
        renderer = renderer_for(self._model_dir)
        sampler = NativeSampler(decoder, renderer)
        progress.begin(name, sum(self._tasks.values()) * self._samples, "completions")
        figures: dict[str, Any] = {}
        transcripts: list[Group] = []
        for task in self._tasks:
            if stop_requested():
                raise Interrupted(f"stopped evaluation {name} before {task}", fix="run the same command again")
            groups = self._ask(task, sampler, renderer, progress, done=len(transcripts) * self._samples)
            transcripts += groups
            figures[task] = {
                **task_figures(groups, renderer),
                "problems": len(groups),
                "samples": self._samples,
                "seed": self._seed,
                "split": self._split,
            }
        tokens = sum(len(rollout.completion.tokens) for group in transcripts for rollout in group.rollouts)
        progress.end({task: figure["pass@1"] for task, figure in figures.items()})
        return {"tasks": figures}, transcripts, tokens

    def _ask(self, name: str, sampler: NativeSampler, renderer: Renderer, progress: Progress, done: int) -> list[Group]:
        task = registry.get(name)
        problems = [task.problem(self._split, self._seed, index) for index in range(self._tasks[name])]
        groups: list[Group] = []
        for first in range(0, len(problems), _PROBLEMS_AT_ONCE):
            before = done + len(groups) * self._samples
            groups += collect(
                sampler,
                renderer,
                {name: task},
                problems[first : first + _PROBLEMS_AT_ONCE],
                rewards=RewardWeights({"accuracy": 1.0}),
                num_samples=self._samples,
                params=self._params,
                noise=(self._seed, "evaluate", name, first),
                on_completion=_report_from(before, progress),
            )
        return groups


def _report_from(before: int, progress: Progress) -> Callable[[int], None]:
    return lambda finished: progress.advance(before + finished, {})


def task_figures(groups: Sequence[Group], renderer: Renderer) -> dict[str, Any]:
    """Figures of one task's groups, each with a 95 % interval clustered by problem.

    Ungraded rollouts leave pass@1 and are counted as `ungraded`.
    """
    rollouts = [(cluster, rollout) for cluster, group in enumerate(groups) for rollout in group.rollouts]
    graded = [(cluster, rollout) for cluster, rollout in rollouts if rollout.grade.reward is not None]
    figures: dict[str, Any] = {"ungraded": len(rollouts) - len(graded)}
    if graded:
        figures["pass@1"] = clustered_mean(
            [rollout.grade.parts["accuracy"] for _, rollout in graded], [cluster for cluster, _ in graded]
        ).as_metric()
    clusters = [cluster for cluster, _ in rollouts]
    measures = {
        "format": [rollout.grade.parts["format"] for _, rollout in rollouts],
        "thinking_tokens": [float(thinking_tokens(rollout, renderer)) for _, rollout in rollouts],
        "thinking_share": [float(bool(read_transcript(r.completion.text).thinking)) for _, r in rollouts],
        "response_tokens": [float(len(rollout.completion.tokens)) for _, rollout in rollouts],
        "truncated": [float(rollout.completion.finish == "length") for _, rollout in rollouts],
    }
    for name, values in measures.items():
        figures[name] = clustered_mean(values, clusters).as_metric()
    return figures
