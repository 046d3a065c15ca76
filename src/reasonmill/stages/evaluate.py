"""Evaluation: pass@1 as the mean over several samples of each held-out problem (R1 paper, section on evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationInfo, model_validator

from reasonmill.algo.comparison import win_rate
from reasonmill.algo.intervals import Estimate, clustered_mean, clustered_share
from reasonmill.errors import RecipeError
from reasonmill.kept_samples import KeptSampler
from reasonmill.protocols import Draws, Measure, Renderer
from reasonmill.recipe.reference import EvaluationRef, ModelRef
from reasonmill.rewards.grades import reasons
from reasonmill.rollouts import thinking_tokens
from reasonmill.servers.settings import TeacherSettings
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.attempts import attempt_figures
from reasonmill.stages.measures import (
    MEASURES_FILE,
    Figure,
    graded_part,
    measure_of,
    measures_of,
    values_of,
    write_measures,
)
from reasonmill.stages.sampling import (
    EvaluationSampling,
    Keep,
    SampledSettings,
    Surroundings,
    num_sampled,
    refuse_of_server,
    sample_in_parts,
)
from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import read_transcript
from reasonmill.types import Group, Problem, Rollout

MAKES: ArtifactKind = "evaluation"
NEEDS = ("sampler",)
# Problems that are sampled and kept together: enough to fill the sampler, few enough to lose little when interrupted.
CHUNK = 256


class Settings(SampledSettings):
    """Settings of an `evaluate` stage."""

    kind: Literal["evaluate"]
    from_: ModelRef | None = Field(default=None, alias="from", description="the model, or else `server`")
    server: TeacherSettings | None = Field(default=None, description="a model behind an OpenAI-compatible server")
    sampling_seed: int | None = Field(default=None, description="seed of the samples, not of the problems")
    against: EvaluationRef | None = Field(
        default=None, description="an evaluation of the same prompts, for the share of them answered more helpfully"
    )
    split: Literal["dev", "test"] = "test"
    sampling: EvaluationSampling = EvaluationSampling()
    up_to_context: bool = Field(
        default=False, description="whether answers are shorter than max_tokens where the model's context is too short"
    )
    resume: Literal["parts", "samples"] = Field(
        default="parts",
        description="what of an interrupted evaluation is not drawn again: parts of 256 problems, or single samples, "
        "of which the last bit of a log-probability then depends on where it was interrupted",
    )

    @model_validator(mode="after")
    def _asks_one_model(self, info: ValidationInfo) -> Self:
        if (self.from_ is None) == (self.server is None):
            raise ValueError("name exactly one of from (a model of this recipe or a directory) and server")
        if self.server is not None:
            if self.resume == "samples" or self.up_to_context:
                raise ValueError(
                    "what a server says is kept reply by reply, and it knows its context: leave resume and "
                    "up_to_context out"
                )
            refuse_of_server(self, self.server, "server", info)
        return self


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Evaluates the model `from` refers to; the outcome holds every transcript and the figures."""
    model = settings.server or inputs["from"].path
    tasks = {name: context.task(name) for name in settings.tasks}
    measures = measures_of(tasks.values())
    reasoning = [name for name, task in tasks.items() if task.domain == "reasoning"]
    renderer, around = context.renderer(model), Surroundings.of(context)
    settings = _fitting(settings, tasks, context.seed, renderer, context.positions(model))
    sampler: Draws = context.sampler(model, replies=context.replies)
    if settings.resume == "samples":
        sampler = kept = KeptSampler(sampler, context.home, context.key, context.stop_requested)
        around = replace(around, keep=_and_then(around.keep, kept.drop))
    metrics, groups = _evaluate(settings, tasks, context.seed, sampler, renderer, around)
    if settings.against is not None:
        others = read_groups(inputs["against"].path / GROUPS_FILE)
        metrics["win_rate"] = helpfulness_win_rate(groups, others).as_metric()

    def write(target: Path) -> None:
        write_groups(target / GROUPS_FILE, groups)
        write_measures(target / MEASURES_FILE, reasoning, measures)

    return Outcome(write, metrics, num_sampled(groups))


def _and_then(keep: Keep, drop: Callable[[], None]) -> Keep:
    """Keeps a part's groups, and then forgets the samples that they were made of."""

    def kept(part: int, sample: Callable[[], Sequence[Group]]) -> Sequence[Group]:
        groups = keep(part, sample)
        drop()
        return groups

    return kept


def _fitting(
    settings: Settings, tasks: Mapping[str, NamedTask], seed: int, renderer: Renderer, positions: int | None
) -> Settings:
    """The settings with shorter answers, where they ask for that and the longest prompt leaves no room for more."""
    if not settings.up_to_context or positions is None:
        return settings
    asked = (
        tasks[name].problem(settings.split, seed, i) for name, count in settings.tasks.items() for i in range(count)
    )
    prompts = renderer.render_all(list(dict.fromkeys(problem.messages for problem in asked)))
    room = max(1, positions - max(map(len, prompts)))
    sampling = settings.sampling.model_copy(update={"max_tokens": min(settings.sampling.max_tokens, room)})
    return settings.model_copy(update={"sampling": sampling})


def _evaluate(
    settings: Settings,
    tasks: Mapping[str, NamedTask],
    seed: int,
    sampler: Draws,
    renderer: Renderer,
    around: Surroundings,
) -> tuple[dict[str, Any], list[Group]]:
    """(figures, all groups)."""
    counts, split = settings.tasks, settings.split
    sampling_seed = seed if settings.sampling_seed is None else settings.sampling_seed
    chunks = (
        (
            [tasks[name].problem(split, seed, index) for index in range(first, min(first + CHUNK, counts[name]))],
            (sampling_seed, "evaluate", name, first),
        )
        # Sorted: the order in which a recipe lists tasks is no part of the key that chunks are kept under.
        for name in sorted(counts)
        for first in range(0, counts[name], CHUNK)
    )
    groups = sample_in_parts(settings, tasks, chunks, sampler, renderer, around)
    rows = _rows(groups, tasks, renderer)

    def figures_of(chosen: Collection[str]) -> dict[str, Any]:
        return _figures([row for row in rows if row.problem.task in chosen])

    def of(chosen: Collection[str]) -> list[Group]:
        return [group for group in groups if group.problem.task in chosen]

    def measured(found: Mapping[str, Measure], chosen: Collection[str]) -> dict[str, Any]:
        figures = {name: measure_figure(of(chosen), measure) for name, measure in found.items()}
        return {name: figure for name, figure in figures.items() if figure is not None}

    by_task = {
        name: {
            **figures_of([name]),
            **attempt_figures(of([name]), task),
            # The accuracy is pass@1 already.
            "measures": measured({n: m for n, m in task.measures.items() if m.part != "accuracy"}, [name]),
            **_could_not_tell(of([name])),
            "domain": task.domain,
            "problems": counts[name],
            "samples": settings.samples,
            "sampling": settings.sampling.model_dump(),
            "seed": seed,
            "split": split,
        }
        for name, task in tasks.items()
    }
    around.progress.end({name: figures["pass@1"] for name, figures in by_task.items() if "pass@1" in figures})
    domains = {task.domain: [t.name for t in tasks.values() if t.domain == task.domain] for task in tasks.values()}
    pooled = {domain: figures_of(domains[domain]) for domain in sorted(domains)}
    measures: dict[str, Any] = {}
    for each in measures_of(tasks.values()):
        measures |= measured({each.name: each.measure}, each.tasks)
    return {"tasks": by_task, "pooled": pooled, "measures": measures}, groups


_SHARES: dict[str, Figure] = {
    "pass@1": graded_part("accuracy"),
    "format": lambda _, rollout: rollout.grade.parts["format"],
    "thinking_share": lambda _, rollout: float(bool(read_transcript(rollout.completion.text).thinking)),
    "truncated": lambda _, rollout: float(rollout.completion.finish == "length"),
}


# How each figure's mean and interval are found.
_MEANS: Mapping[str, Callable[[Sequence[float], Sequence[Hashable]], Estimate]] = {
    **dict.fromkeys([*_SHARES, "language"], clustered_share),
    "thinking_tokens": clustered_mean,
    "response_tokens": clustered_mean,
}


class _Row(NamedTuple):
    """A rollout's figures by name; None where it does not have the property."""

    problem: Problem
    is_graded: bool
    values: Mapping[str, float | None]


def task_figures(groups: Sequence[Group], tasks: Mapping[str, NamedTask], renderer: Renderer) -> dict[str, Any]:
    """Figures of groups, each with a 95 % interval clustered by problem.

    Ungraded rollouts leave `pass@1`; they are counted as `ungraded`. `language` is the mean over the
    `language_rollouts` whose thinking has words. A figure of no rollout at all is left out.

    Args:
        tasks: those of the groups, by name.
    """
    return _figures(_rows(groups, tasks, renderer))


def _rows(groups: Sequence[Group], tasks: Mapping[str, NamedTask], renderer: Renderer) -> list[_Row]:
    """What is looked at once, for the figures of a task and for those of its domain."""
    drawn = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    thinking = thinking_tokens([rollout for _, rollout in drawn], renderer)
    return [
        _Row(
            problem,
            rollout.grade.reward is not None,
            {
                **{name: of_rollout(problem, rollout) for name, of_rollout in _SHARES.items()},
                "language": thinking_language(tasks[problem.task], problem, rollout),
                "thinking_tokens": _if_known(rollout, tokens),
                "response_tokens": _if_known(rollout, rollout.completion.num_sampled),
            },
        )
        for (problem, rollout), tokens in zip(drawn, thinking, strict=True)
    ]


def _figures(rows: Sequence[_Row]) -> dict[str, Any]:
    """`task_figures` of rows."""
    figures: dict[str, Any] = {"ungraded": sum(not row.is_graded for row in rows)}
    for name, mean_of in _MEANS.items():
        known = [(value, row.problem.cluster) for row in rows if (value := row.values[name]) is not None]
        if name == "language":
            figures["language_rollouts"] = len(known)
        if known:
            figure = mean_of([value for value, _ in known], [cluster for _, cluster in known])
            figures[name] = replace(figure, low=max(0.0, figure.low)).as_metric()  # no amount here is below 0
    return figures


def _if_known(rollout: Rollout, tokens: int) -> float | None:
    """A number of tokens; None of a reply from a server, whose tokens are not known here."""
    return None if rollout.completion.logprobs is None else float(tokens)


def _could_not_tell(groups: Sequence[Group]) -> dict[str, Any]:
    """Why rollouts could not be graded, with counts, as the figure `could_not_tell`; nothing where all could."""
    found = reasons(rollout.grade for group in groups for rollout in group.rollouts)
    return {"could_not_tell": found} if found else {}


def thinking_language(task: NamedTask, problem: Problem, rollout: Rollout) -> float | None:
    """Share of the problem's language in the thinking; None where the thinking has no word, or it is not known which
    language the problem is asked in.

    Unlike the reward of this name, it makes no judgement of thinking that it can't measure.
    """
    language = task.language_of(problem)
    if language is None:
        return None
    return task.language_share(read_transcript(rollout.completion.text).thinking, language)


def measure_figure(groups: Sequence[Group], measure: Measure) -> dict[str, Any] | None:
    """A measure's mean over the groups with a 95 % interval, and its label; None where nothing was graded."""
    values, clusters = values_of(groups, lambda _, rollout: measure_of(measure, rollout))
    return {"label": measure.label, **clustered_share(values, clusters).as_metric()} if values else None


def helpfulness_win_rate(ours: Sequence[Group], theirs: Sequence[Group]) -> Estimate:
    """Share of the prompts of facts and small talk that `ours` answers more helpfully, by the world's judge.

    Raises:
        RecipeError: the two asked different prompts, or none of this kind.
    """
    mine, others = _helpful(ours), _helpful(theirs)
    clusters = {group.problem.id: group.problem.cluster for group in ours}
    if not mine or mine.keys() != others.keys():
        raise RecipeError(
            f"a win rate needs the same prompts of facts and small talk; there are {len(mine)} and {len(others)}, "
            f"{len(mine.keys() & others.keys())} of them shared",
            fix="evaluate both models on the same general tasks, or leave `against` out",
        )
    return win_rate(list(mine.values()), [others[problem] for problem in mine], [clusters[problem] for problem in mine])


def _helpful(groups: Sequence[Group]) -> dict[str, list[float]]:
    """How helpful the samples of each prompt are, by the problem's id; prompts without such a sample are left out."""
    found: dict[str, list[float]] = {}
    for group in groups:
        values, _ = values_of([group], graded_part("helpful"))
        if values:
            found.setdefault(group.problem.id, []).extend(values)
    return found
