"""Evaluation: pass@1 as the mean over several samples of each held-out problem (R1 paper, section on evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from reasonmill.algo.comparison import win_rate
from reasonmill.algo.intervals import Estimate, clustered_mean, clustered_share
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.placement import SLOTS, Backend
from reasonmill.plugins.catalogue import ProblemCounts, known, require_split
from reasonmill.protocols import Measure, Progress, Renderer, Sampler
from reasonmill.recipe.reference import EvaluationRef, ModelRef
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rollouts import collect, thinking_tokens
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.stages.measures import MEASURES_FILE, TaskMeasure, measure_of, write_measures
from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.steps import committed_groups
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import read_transcript
from reasonmill.types import Group, Problem, Rollout, SamplingParams

MAKES: ArtifactKind = "evaluation"
NEEDS = ("sampler",)
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
    tasks: ProblemCounts = Field(min_length=1, description="tasks and the number of problems of each")
    samples: int = Field(default=4, ge=1, description="samples of each problem")
    sampling_seed: int | None = Field(default=None, description="seed of the samples, not of the problems")
    against: EvaluationRef | None = Field(
        default=None, description="an evaluation of the same prompts, for the share of them answered more helpfully"
    )
    split: Literal["dev", "test"] = "test"
    sampling: EvaluationSampling = EvaluationSampling()

    @model_validator(mode="after")
    def _tasks_have_the_split(self, info: ValidationInfo) -> Self:
        require_split(self.tasks, self.split, known(info))
        return self


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Evaluates the model `from` refers to; the outcome holds every transcript and the figures."""
    model = inputs["from"].path
    evaluation = Evaluation(
        context.sampler(model),
        context.renderer(model),
        [(context.task(name), count) for name, count in settings.tasks.items()],
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
        metrics["win_rate"] = helpfulness_win_rate(groups, others).as_metric()
    measures = evaluation.measures()

    def write(target: Path) -> None:
        write_groups(target / GROUPS_FILE, groups)
        write_measures(target / MEASURES_FILE, measures)

    return Outcome(write, metrics, tokens)


def evaluate_model(
    model_dir: Path,
    asked: Sequence[tuple[NamedTask, int]],
    samples: int,
    seed: int,
    params: SamplingParams,
    split: str,
    backend: Backend,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluates a model directory outside of a recipe, where nothing is kept; {"tasks": {task: figures}}."""
    sampler = backend.sampler(model_dir, slots=SLOTS, precision="auto")
    evaluation = Evaluation(sampler, backend.renderer(model_dir), asked, samples, seed, params, split)
    metrics, _, _ = evaluation.run(
        progress, model_dir.name, stop_requested=lambda: False, keep=lambda chunk, sample: sample()
    )
    return metrics


class Evaluation:
    """What to ask a model, and how often.

    Args:
        asked: tasks, and how many problems of each.
        seed: that of the problems.
        sampling_seed: that of the samples; None for the same.
    """

    def __init__(
        self,
        sampler: Sampler,
        renderer: Renderer,
        asked: Sequence[tuple[NamedTask, int]],
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
        self._tasks = {task.name: task for task, _ in asked}
        self._counts = {task.name: count for task, count in asked}
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
        problems = sum(self._counts.values())
        progress.begin(name, problems * self._samples, "completions")
        groups: list[Group] = []
        for number, (task, first) in enumerate(self._chunks()):
            if stop_requested():
                raise Interrupted(f"stopped evaluation {name} after {len(groups)} of {problems} problems")
            before = len(groups) * self._samples
            groups += keep(number, partial(self._ask, task, first, _report_from(before, progress)))
            progress.advance(len(groups) * self._samples, {})
        figures = {name: self._figures([g for g in groups if g.problem.task == name]) for name in self._tasks}
        tokens = sum(rollout.completion.num_sampled for group in groups for rollout in group.rollouts)
        progress.end({task: figure["pass@1"] for task, figure in figures.items() if "pass@1" in figure})
        metrics = {"tasks": figures, "pooled": self._pooled(groups), "measures": self._measured(groups)}
        return metrics, groups, tokens

    def measures(self) -> list[TaskMeasure]:
        """What the tasks measure besides pass@1: each measure once, with all tasks that have it."""
        found: dict[str, TaskMeasure] = {}
        for task in self._tasks.values():
            for name, measure in task.measures.items():
                earlier = found.get(name)
                if earlier is not None and earlier.measure != measure:
                    raise RecipeError(
                        f"tasks {earlier.tasks[0]!r} and {task.name!r} both have a measure {name!r}, and mean other "
                        "things by it",
                        fix="evaluate them in stages of their own, or rename one of the measures",
                    )
                found[name] = TaskMeasure(name, measure, (*(earlier.tasks if earlier else ()), task.name))
        return list(found.values())

    def _pooled(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Figures over all tasks of a domain, by the domain."""
        domains = {name: task.domain for name, task in self._tasks.items()}
        return {
            domain: task_figures([g for g in groups if domains[g.problem.task] == domain], self._tasks, self._renderer)
            for domain in sorted(set(domains.values()))
        }

    def _measured(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Each measure over all tasks that have it, by its name."""
        figures = {}
        for found in self.measures():
            figure = measure_figure([g for g in groups if g.problem.task in found.tasks], found.measure)
            if figure is not None:
                figures[found.name] = figure
        return figures

    def _chunks(self) -> list[tuple[str, int]]:
        """Task and first problem of each chunk.

        Tasks are sorted, because the order in which a recipe lists them is no part of the key that chunks are kept
        under.
        """
        return [(task, first) for task in sorted(self._counts) for first in range(0, self._counts[task], CHUNK)]

    def _ask(self, name: str, first: int, on_completion: Callable[[int], None]) -> list[Group]:
        task = self._tasks[name]
        last = min(first + CHUNK, self._counts[name])
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
        task = self._tasks[groups[0].problem.task]
        # The accuracy is pass@1 already.
        own = {name: measure for name, measure in task.measures.items() if measure.part != "accuracy"}
        measured = {name: measure_figure(groups, measure) for name, measure in own.items()}
        return {
            **task_figures(groups, self._tasks, self._renderer),
            "measures": {name: figure for name, figure in measured.items() if figure is not None},
            "domain": task.domain,
            "problems": len(groups),
            "samples": self._samples,
            "seed": self._seed,
            "split": self._split,
        }


def _report_from(before: int, progress: Progress) -> Callable[[int], None]:
    return lambda finished: progress.advance(before + finished, {})


# What is told of a rollout, or None where it does not have the property.
Figure = Callable[[Problem, Rollout], float | None]


def _graded(part: str) -> Figure:
    return lambda _, rollout: None if rollout.grade.reward is None else rollout.grade.parts.get(part)


_SHARES: dict[str, Figure] = {
    "pass@1": _graded("accuracy"),
    "format": lambda _, rollout: rollout.grade.parts["format"],
    "thinking_share": lambda _, rollout: float(bool(read_transcript(rollout.completion.text).thinking)),
    "truncated": lambda _, rollout: float(rollout.completion.finish == "length"),
}


def task_figures(groups: Sequence[Group], tasks: Mapping[str, NamedTask], renderer: Renderer) -> dict[str, Any]:
    """Figures of groups, each with a 95 % interval clustered by problem.

    Ungraded rollouts leave `pass@1`; they are counted as `ungraded`. `language` is the mean over the
    `language_rollouts` whose thinking has words. A figure of no rollout at all is left out.

    Args:
        tasks: those of the groups, by name.
    """

    def language(problem: Problem, rollout: Rollout) -> float | None:
        return thinking_language(tasks[problem.task], problem, rollout)

    shares = {**_SHARES, "language": language}
    amounts: dict[str, Figure] = {
        "thinking_tokens": lambda _, rollout: float(thinking_tokens(rollout, renderer)),
        "response_tokens": lambda _, rollout: float(rollout.completion.num_sampled),
    }
    figures: dict[str, Any] = {
        "ungraded": sum(rollout.grade.reward is None for group in groups for rollout in group.rollouts)
    }
    for name, figure in {**shares, **amounts}.items():
        values, places = _told(groups, figure)
        if name == "language":
            figures["language_rollouts"] = len(values)
        if values:
            interval = clustered_share if name in shares else clustered_mean
            figures[name] = interval(values, places).as_metric()
    return figures


def thinking_language(task: NamedTask, problem: Problem, rollout: Rollout) -> float | None:
    """Share of the problem's language in the thinking; None where the thinking has no word, or it can't be told which
    language the problem is asked in.

    Unlike the reward of this name, it makes no judgement of thinking that it can't measure.
    """
    language = task.language_of(problem)
    if language is None:
        return None
    return task.language_share(read_transcript(rollout.completion.text).thinking, language)


def measure_figure(groups: Sequence[Group], measure: Measure) -> dict[str, Any] | None:
    """A measure's mean over the groups with a 95 % interval, and its label; None where nothing was graded."""
    values, places = _told(groups, lambda _, rollout: measure_of(measure, rollout))
    return {"label": measure.label, **clustered_share(values, places).as_metric()} if values else None


def _told(groups: Sequence[Group], figure: Figure) -> tuple[list[float], list[int]]:
    """(what is told of the rollouts that have the property, the place of each one's problem)."""
    # By id: a task with few problems asks some of them again.
    clusters = {group.problem.id: place for place, group in enumerate(groups)}
    told = [
        (clusters[group.problem.id], figure(group.problem, rollout)) for group in groups for rollout in group.rollouts
    ]
    kept = [(value, cluster) for cluster, value in told if value is not None]
    return [value for value, _ in kept], [cluster for _, cluster in kept]


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
