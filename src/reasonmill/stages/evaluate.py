"""Evaluation: pass@1 as the mean over several samples of each held-out problem (R1 paper, section on evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reasonmill.algo.comparison import win_rate
from reasonmill.algo.intervals import Estimate, clustered_mean, clustered_share
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.placement import SLOTS, Backend
from reasonmill.protocols import Progress, Renderer, Sampler
from reasonmill.recipe.reference import EvaluationRef, ModelRef
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rollouts import collect, thinking_tokens
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.steps import committed_groups
from reasonmill.tasks import registry
from reasonmill.transcript import read_transcript
from reasonmill.types import Group, Problem, Rollout, SamplingParams
from reasonmill.world.lexicon import language_share

KIND = "evaluate"
MAKES: ArtifactKind = "evaluation"
# Problems that are sampled and kept together: enough to fill the sampler, few enough to lose little when interrupted.
CHUNK = 256

# Makes the groups of a chunk from its number and from what samples it, or has them already.
Keep = Callable[[int, Callable[[], Sequence[Group]]], Sequence[Group]]


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
    sampling_seed: int | None = Field(default=None, description="seed of the samples, not of the problems")
    against: EvaluationRef | None = Field(
        default=None, description="an evaluation of the same prompts, for the share of them answered more helpfully"
    )
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

    @model_validator(mode="after")
    def _known_split(self) -> Self:
        for name in self.tasks:
            registry.get(name).problem(self.split, 0, 0)  # a task that lacks the split says so
        return self


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Evaluates the model `from` refers to; the outcome holds every transcript and the figures."""
    model = inputs["from"].path
    evaluation = Evaluation(
        context.sampler(model),
        context.renderer(model),
        settings.tasks,
        settings.samples,
        context.seed,
        settings.sampling.params(),
        settings.split,
        sampling_seed=settings.sampling_seed,
    )
    metrics, groups, tokens = evaluation.run(
        context.progress,
        settings.name,
        stop_requested=context.stop_requested,
        keep=partial(committed_groups, context.home, context.key),
    )
    if settings.against is not None:
        others = read_groups(inputs["against"].path / GROUPS_FILE)
        metrics["win_rate"] = {"against": settings.against, **helpfulness_win_rate(groups, others).as_metric()}
    return Outcome(
        lambda target: write_groups(target / GROUPS_FILE, groups),
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
    backend: Backend,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluates a model directory outside of a recipe, where nothing is kept; {"tasks": {task: figures}}."""
    sampler = backend.sampler(model_dir, slots=SLOTS, precision="auto")
    evaluation = Evaluation(sampler, backend.renderer(model_dir), tasks, samples, seed, params, split)
    metrics, _, _ = evaluation.run(
        progress, model_dir.name, stop_requested=lambda: False, keep=lambda chunk, sample: sample()
    )
    return metrics


class Evaluation:
    """What to ask a model, and how often.

    Args:
        seed: that of the problems.
        sampling_seed: that of the samples; None for the same.
    """

    def __init__(
        self,
        sampler: Sampler,
        renderer: Renderer,
        tasks: Mapping[str, int],
        samples: int,
        seed: int,
        params: SamplingParams,
        split: str,
        *,
        sampling_seed: int | None = None,
    ) -> None:
        self._sampling_seed = seed if sampling_seed is None else sampling_seed
        self._sampler = sampler
        self._renderer = renderer
        self._tasks = tasks
        self._samples = samples
        self._seed = seed
        self._params = params
        self._split = split

    def run(
        self, progress: Progress, name: str, *, stop_requested: Callable[[], bool], keep: Keep
    ) -> tuple[dict[str, Any], list[Group], int]:
        """(figures by task, all groups, tokens sampled).

        Raises:
            Interrupted: the user asked to stop; `keep` has the chunks that are finished.
        """
        problems = sum(self._tasks.values())
        progress.begin(name, problems * self._samples, "completions")
        groups: list[Group] = []
        for number, (task, first) in enumerate(self._chunks()):
            if stop_requested():
                raise Interrupted(f"stopped evaluation {name} after {len(groups)} of {problems} problems")
            before = len(groups) * self._samples
            groups += keep(number, partial(self._ask, task, first, _report_from(before, progress)))
            progress.advance(len(groups) * self._samples, {})
        figures = {task: self._figures([g for g in groups if g.problem.task == task]) for task in self._tasks}
        tokens = sum(len(rollout.completion.tokens) for group in groups for rollout in group.rollouts)
        progress.end({task: figure["pass@1"] for task, figure in figures.items() if "pass@1" in figure})
        return {"tasks": figures, "pooled": self._pooled(groups)}, groups, tokens

    def _pooled(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Figures over all tasks of a domain, by the domain."""
        domains = {group.problem.task: registry.get(group.problem.task).domain for group in groups}
        return {
            domain: task_figures([g for g in groups if domains[g.problem.task] == domain], self._renderer)
            for domain in sorted(set(domains.values()))
        }

    def _chunks(self) -> list[tuple[str, int]]:
        """Task and first problem of each chunk.

        Tasks are sorted, because the order in which a recipe lists them is no part of the key that chunks are kept
        under.
        """
        return [(task, first) for task in sorted(self._tasks) for first in range(0, self._tasks[task], CHUNK)]

    def _ask(self, name: str, first: int, on_completion: Callable[[int], None]) -> list[Group]:
        task = registry.get(name)
        last = min(first + CHUNK, self._tasks[name])
        return collect(
            self._sampler,
            self._renderer,
            {name: task},
            [task.problem(self._split, self._seed, index) for index in range(first, last)],
            rewards=ACCURACY_ALONE,
            num_samples=self._samples,
            params=self._params,
            noise=(self._sampling_seed, "evaluate", name, first),
            on_completion=on_completion,
        )

    def _figures(self, groups: Sequence[Group]) -> dict[str, Any]:
        return {
            **task_figures(groups, self._renderer),
            "domain": registry.get(groups[0].problem.task).domain,
            "problems": len(groups),
            "samples": self._samples,
            "seed": self._seed,
            "split": self._split,
        }


def _report_from(before: int, progress: Progress) -> Callable[[int], None]:
    return lambda finished: progress.advance(before + finished, {})


# What is told of a rollout, or None where it does not have the property.
Measure = Callable[[Problem, Rollout], float | None]


def _graded(part: str) -> Measure:
    return lambda _, rollout: None if rollout.grade.reward is None else rollout.grade.parts.get(part)


def _unsafe(problem: Problem, rollout: Rollout) -> float | None:
    safe = _graded("safe")(problem, rollout)
    return None if safe is None else 1.0 - safe


def thinking_language(problem: Problem, rollout: Rollout) -> float | None:
    """Share of the problem's language in the thinking; None where the thinking has no word, or the problem names none.

    Unlike the reward of this name, it makes no judgement of thinking that it can't measure.
    """
    language = problem.meta.get("language")
    if language is None:
        return None
    return language_share(read_transcript(rollout.completion.text).thinking, language)


_SHARES: dict[str, Measure] = {
    "pass@1": _graded("accuracy"),
    "helpful": _graded("helpful"),
    "unsafe": _unsafe,
    "refused": _graded("refused"),
    "format": lambda _, rollout: rollout.grade.parts["format"],
    "language": thinking_language,
    "thinking_share": lambda _, rollout: float(bool(read_transcript(rollout.completion.text).thinking)),
    "truncated": lambda _, rollout: float(rollout.completion.finish == "length"),
}


def task_figures(groups: Sequence[Group], renderer: Renderer) -> dict[str, Any]:
    """Figures of one task's groups, each with a 95 % interval clustered by problem.

    Ungraded rollouts leave `pass@1`, and `helpful`, `unsafe` and `refused` where the task's grader tells them; they
    are counted as `ungraded`. `language` is the mean over the `language_rollouts` whose thinking has words. A figure
    of no rollout at all is left out.
    """
    amounts: dict[str, Measure] = {
        "thinking_tokens": lambda _, rollout: float(thinking_tokens(rollout, renderer)),
        "response_tokens": lambda _, rollout: float(len(rollout.completion.tokens)),
    }
    # By id: a task with few problems asks some of them again.
    clusters = {group.problem.id: place for place, group in enumerate(groups)}
    asked = [(clusters[group.problem.id], group.problem, rollout) for group in groups for rollout in group.rollouts]
    figures: dict[str, Any] = {"ungraded": sum(rollout.grade.reward is None for _, _, rollout in asked)}
    for name, measure in {**_SHARES, **amounts}.items():
        told = [(cluster, measure(problem, rollout)) for cluster, problem, rollout in asked]
        values = [value for _, value in told if value is not None]
        places = [cluster for cluster, value in told if value is not None]
        if name == "language":
            figures["language_rollouts"] = len(values)
        if values:
            interval = clustered_share if name in _SHARES else clustered_mean
            figures[name] = interval(values, places).as_metric()
    return figures


def helpfulness_win_rate(ours: Sequence[Group], theirs: Sequence[Group]) -> Estimate:
    """Share of the prompts of facts and small talk that `ours` answers more helpfully, by the world's judge.

    Raises:
        RecipeError: the two asked different prompts, or none of this kind.
    """
    mine, others = _helpful(ours), _helpful(theirs)
    if not mine or mine.keys() != others.keys():
        raise RecipeError(
            f"a win rate needs the same prompts of facts and small talk; there are {len(mine)} and {len(others)}, "
            f"{len(mine.keys() & others.keys())} of them shared",
            fix="evaluate both models on the same general tasks, or leave `against` out",
        )
    return win_rate(list(mine.values()), [others[problem] for problem in mine])


def _helpful(groups: Sequence[Group]) -> dict[str, list[float]]:
    """How helpful the samples of each prompt are, by the problem's id; prompts without such a sample are left out."""
    found: dict[str, list[float]] = {}
    for group in groups:
        values = [_graded("helpful")(group.problem, rollout) for rollout in group.rollouts]
        told = [value for value in values if value is not None]
        if told:
            found.setdefault(group.problem.id, []).extend(told)
    return found
