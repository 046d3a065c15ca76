"""What the command `fitness` does and shows, once the command line has put the parts together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from reasonmill.algo.intervals import Estimate
from reasonmill.errors import RecipeError
from reasonmill.fitness.figures import Figures, figures_of
from reasonmill.fitness.probing import probe
from reasonmill.fitness.verdict import Verdict, judge
from reasonmill.history import note_on, table_of
from reasonmill.mill.display import output_console
from reasonmill.placement import SLOTS, Backend
from reasonmill.plugins.catalogue import Catalogue
from reasonmill.protocols import Progress
from reasonmill.rewards.combination import BY_MODEL, NOT_RULES, RewardWeights, check_rewards
from reasonmill.stages.sampling import SampledSettings, SamplingSettings, Surroundings, sample_in_parts
from reasonmill.tasks.named import NamedTask

# Problems that are sampled together: enough to fill the sampler.
CHUNK = 256
_OUTCOMES = {
    "signal": ("reinforcement learning finds a signal", "bold green"),
    "guesses": ("reinforcement learning would learn to guess", "bold yellow"),
    "cold-start": ("a cold start is needed", "bold yellow"),
    "saturated": ("the model is done with this task", "bold green"),
    "unclear": ("not enough problems to tell", "bold"),
    "limit": ("answers are cut off", "bold red"),
    "grader": ("the grader can't tell", "bold red"),
}
_SHARES = {
    "signal": "groups with right and wrong",
    "reward_signal": "groups whose rewards differ",
    "reach": "problems solved in any way",
    "format": "format",
    "answered": "with an answer",
    "thinks": "with thinking",
    "truncated": "truncated",
    "could_not_tell": "could not tell",
    "with_thinking": "right with thinking",
    "at_once": "right at once",
    "gain": "gain of thinking",
}
_AMOUNTS = {"tokens": "tokens", "thinking_tokens": "tokens of thinking", "entropy": "entropy of a token, nats"}


def rewards_of(told: Sequence[str], tasks: Sequence[NamedTask], catalogue: Catalogue) -> RewardWeights:
    """The rewards that an RL stage would have.

    Args:
        told: NAME, or NAME=WEIGHT.

    Raises:
        RecipeError: a weight is no number, a name is unknown, or a task would have no reward.
    """
    weights: dict[str, float] = {}
    for text in told:
        name, has_weight, weight = text.partition("=")
        try:
            weights[name] = float(weight) if has_weight else 1.0
        except ValueError as error:
            raise RecipeError(f"{weight!r} is no weight", where=f"--reward {text}", fix="write NAME=1.0") from error
        if name in BY_MODEL:
            raise RecipeError(
                f"the reward {name!r} needs a reward model, and here is none",
                where=f"--reward {text}",
                fix="ask for rewards that rules decide",
            )
    check_rewards(weights, tasks, catalogue.reward)
    rules = {name: catalogue.reward(name) for name in weights if name not in NOT_RULES}
    return RewardWeights(weights, rules)


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        problems: of each task.
        samples: attempts at each problem, which are the groups of RL.
        seed: that of problems and draws.
    """

    problems: int
    samples: int
    sampling: SamplingSettings
    split: str
    seed: int


def fitness_of(
    model: Path,
    tasks: Sequence[NamedTask],
    rewards: RewardWeights,
    asking: Asking,
    backend: Backend,
    progress: Progress,
) -> dict[str, tuple[Figures, Verdict]]:
    """Samples a model directory on each task as an RL stage would; what it is fit for, by task."""
    problems, samples, seed = asking.problems, asking.samples, asking.seed
    slots = min(SLOTS, problems * samples)
    sampler, renderer = backend.sampler(model, slots=slots, precision="auto"), backend.renderer(model)
    found = {}
    for task in tasks:
        settings = SampledSettings.model_construct(
            name=task.name, tasks={task.name: problems}, samples=samples, max_ungraded=1.0, sampling=asking.sampling
        )
        parts = (
            (
                [task.problem(asking.split, seed, index) for index in range(first, min(first + CHUNK, problems))],
                (seed, "fitness", task.name, first),
            )
            for first in range(0, problems, CHUNK)
        )
        around = Surroundings(progress)
        groups = sample_in_parts(settings, {task.name: task}, parts, sampler, renderer, around, rewards)
        progress.end({})
        noise = (seed, "fitness", task.name)
        probed = probe(sampler, renderer, task, groups, params=asking.sampling.params(), noise=noise, progress=progress)
        figures = figures_of(probed, renderer)
        found[task.name] = (figures, judge(figures))
    return found


def _as_json(found: Mapping[str, tuple[Figures, Verdict]]) -> dict[str, Any]:
    return {
        name: {
            "verdict": verdict.outcome,
            "cold_start_brings": list(verdict.needs),
            "says": list(verdict.says),
            **figures.as_metrics(),
        }
        for name, (figures, verdict) in found.items()
    }


def print_fitness(model: str, found: Mapping[str, tuple[Figures, Verdict]], *, as_json: bool) -> None:
    """Prints the figures of each task, and the verdict below them; or all of it as JSON.

    Args:
        model: as it was asked for.
    """
    if as_json:
        print(json.dumps({"model": model, "tasks": _as_json(found)}, indent=2, ensure_ascii=False))
        return
    console = output_console()
    for name, (figures, verdict) in found.items():
        table = table_of(f"{name}, {figures.problems:,} problems × {figures.samples}", "figure", "value", "95 %")
        for k, share in figures.pass_at.items():
            table.add_row(f"pass@{k}", *_cells(share, is_share=True))
        for label, (value, is_share) in _rows(figures).items():
            table.add_row(label, *_cells(value, is_share=is_share))
        console.print(table)
        word, style = _OUTCOMES[verdict.outcome]
        brings = f" ({', '.join(verdict.needs)})" if verdict.needs else ""
        note_on(console, Text.assemble((name, "bold"), ": ", (f"{word}{brings}", style)))
        for sentence in verdict.says:
            note_on(console, f"  {sentence}")


def _rows(figures: Figures) -> dict[str, tuple[Estimate, bool]]:
    """By label, what was measured, and whether it is a share."""
    shares = {label: (getattr(figures, name), True) for name, label in _SHARES.items()}
    amounts = {label: (getattr(figures, name), False) for name, label in _AMOUNTS.items()}
    return {label: shown for label, shown in {**shares, **amounts}.items() if shown[0] is not None}


def _cells(figure: Estimate, *, is_share: bool) -> tuple[str, str]:
    scale, unit = (100, "%") if is_share else (1, "")
    digits = 1 if is_share or abs(figure.value) >= 10 else 2
    value, low, high = (f"{scale * bound:.{digits}f}" for bound in (figure.value, figure.low, figure.high))
    return f"{value}{unit}", f"{low} to {high}"
