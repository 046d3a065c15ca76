"""What tasks measure besides pass@1: written beside an evaluation's groups, and read by the gate that compares two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reasonmill.errors import RecipeError
from reasonmill.protocols import Measure
from reasonmill.types import Rollout

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


def measure_of(measure: Measure, rollout: Rollout) -> float | None:
    """A rollout's value; None where it was not graded, or its grade has no such part."""
    value = None if rollout.grade.reward is None else rollout.grade.parts.get(measure.part)
    return 1.0 - value if value is not None and measure.complement else value


def write_measures(path: Path, measures: Sequence[TaskMeasure]) -> None:
    """Writes what tasks measure as JSON."""
    path.write_text(json.dumps([asdict(measure) for measure in measures], indent=1) + "\n", encoding="utf-8")


def read_measures(path: Path) -> dict[str, TaskMeasure]:
    """What the tasks of an evaluation measure, and what every evaluation does, by name.

    Raises:
        RecipeError: an earlier version of reasonmill made the evaluation, and did not write it down.
    """
    if not path.is_file():
        raise RecipeError(
            "the evaluation does not say what its tasks measure: an earlier version of reasonmill made it",
            where=str(path.parent),
            fix="run its evaluate stage again",
        )
    found = [
        TaskMeasure(entry["name"], Measure(**entry["measure"]), tuple(entry["tasks"]))
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]
    return {measure.name: measure for measure in (*ON_ALL_TASKS, *found)}
