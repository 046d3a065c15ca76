"""What tasks measure besides pass@1: written beside an evaluation's groups, and read by the gate that compares two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reasonmill.errors import RecipeError
from reasonmill.protocols import Measure
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Group, Problem, Rollout

MEASURES_FILE = "measures.json"


@dataclass(frozen=True)
class TaskMeasure:
    """A measure by its name, and the tasks that have it; no task means all of them."""

    name: str
    measure: Measure
    tasks: tuple[str, ...] = ()


# What every evaluation measures of every rollout.
ON_ALL_TASKS = (
    TaskMeasure("language", Measure("language", "language consistency")),
    TaskMeasure("format", Measure("format", "format")),
)


# A figure of a rollout, or None where it does not have the property.
Figure = Callable[[Problem, Rollout], float | None]


def graded_part(part: str) -> Figure:
    """The part of a grade; None where the rollout was not graded, or its grade has no such part."""
    return lambda _, rollout: None if rollout.grade.reward is None else rollout.grade.parts.get(part)


def values_of(groups: Sequence[Group], figure: Figure) -> tuple[list[float], list[tuple[str, str]]]:
    """(the figures of the rollouts that have the property, the cluster of each one's problem)."""
    figures = [
        (group.problem.cluster, figure(group.problem, rollout)) for group in groups for rollout in group.rollouts
    ]
    kept = [(value, cluster) for cluster, value in figures if value is not None]
    return [value for value, _ in kept], [cluster for _, cluster in kept]


def measure_of(measure: Measure, rollout: Rollout) -> float | None:
    """A rollout's value; None where it was not graded, or its grade has no such part."""
    value = None if rollout.grade.reward is None else rollout.grade.parts.get(measure.part)
    return 1.0 - value if value is not None and measure.complement else value


def measures_of(tasks: Iterable[NamedTask]) -> list[TaskMeasure]:
    """What the tasks measure besides pass@1: each measure once, with all tasks that have it.

    Raises:
        RecipeError: two tasks mean other things by one name.
    """
    found: dict[str, TaskMeasure] = {}
    for task in tasks:
        for name, measure in task.measures.items():
            earlier = found.get(name, TaskMeasure(name, measure))
            if earlier.measure != measure:
                raise RecipeError(
                    f"tasks {earlier.tasks[0]!r} and {task.name!r} both have a measure {name!r}, and mean other "
                    "things by it",
                    fix="evaluate them in stages of their own, or rename one of the measures",
                )
            found[name] = replace(earlier, tasks=(*earlier.tasks, task.name))
    return list(found.values())


@dataclass(frozen=True)
class Measured:
    """What the gate has to know of an evaluation.

    Attributes:
        reasoning: the tasks whose domain is reasoning.
        measures: what the tasks measure besides pass@1, by name, and what every evaluation does.
    """

    reasoning: tuple[str, ...]
    measures: Mapping[str, TaskMeasure]


def write_measures(path: Path, reasoning: Sequence[str], measures: Sequence[TaskMeasure]) -> None:
    """Writes the names of the reasoning tasks, and what all tasks measure, as JSON."""
    content = {"reasoning": list(reasoning), "measures": [asdict(measure) for measure in measures]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_measures(path: Path) -> Measured:
    """What `write_measures` wrote.

    Raises:
        RecipeError: an earlier version of reasonmill made the evaluation, and did not write all of it down.
    """
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(content, dict):
        raise RecipeError(
            "the evaluation does not say what its tasks measure: an earlier version of reasonmill made it",
            where=str(path.parent),
            fix="run its evaluate stage again",
        )
    found = [
        TaskMeasure(entry["name"], Measure(**entry["measure"]), tuple(entry["tasks"])) for entry in content["measures"]
    ]
    return Measured(tuple(content["reasoning"]), {measure.name: measure for measure in (*ON_ALL_TASKS, *found)})
