"""What a soak showed: whether memory and open files stayed flat, and the picture of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# The most that a flat line may rise in an hour: two hundredths of what the worker holds, and one file.
MOST_MB_PER_HOUR = 10.0
MOST_FILES_PER_HOUR = 1.0
# The beginning of a session, in which allocators and caches fill, does not count: a tenth, ten minutes at most.
WARM_UP_SHARE, WARM_UP_MINUTES = 0.1, 10.0


@dataclass(frozen=True)
class Sample:
    """A run of the soak, and what the processes held after it.

    `session` counts the calls that wrote to the same file; `minutes` go on from one to the next. `worker` is the
    process that runs recipes in itself all the time, and `tree` the sum over all processes.
    """

    session: int
    run: int
    minutes: float
    recipe: str
    faults: str
    differences: int
    worker_mb: float
    worker_files: int
    tree_mb: float
    tree_files: int

    @classmethod
    def read(cls, row: dict[str, str]) -> Sample:
        kinds = {"int": int, "float": float, "str": str}
        return cls(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class Slope:
    """A rise per hour with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} an hour [{self.low:+.2f}, {self.high:+.2f}]"


def slope(samples: Sequence[Sample], quantity: str) -> Slope:
    """The common rise of all sessions, each from a level of its own.

    Neighbouring samples are alike, which makes them fewer than they look: the interval is widened by the correlation
    of a residual with the next (Bartlett's factor for a first-order process).
    """
    hours, values = [], []
    for session in sorted({sample.session for sample in samples}):
        own = [sample for sample in samples if sample.session == session]
        start, end = own[0].minutes, own[-1].minutes
        warm = start + min(WARM_UP_MINUTES, WARM_UP_SHARE * (end - start))
        kept = [sample for sample in own if sample.minutes >= warm]
        x = np.array([sample.minutes for sample in kept]) / 60
        y = np.array([float(getattr(sample, quantity)) for sample in kept])
        hours.append(x - x.mean())
        values.append(y - y.mean())
    x, y = np.concatenate(hours), np.concatenate(values)
    degrees = len(x) - len(hours) - 1
    spread = float(x @ x)
    if degrees < 1 or spread == 0:
        return Slope(0.0, -math.inf, math.inf)
    value = float(x @ y) / spread
    residuals = [own_y - value * own_x for own_x, own_y in zip(hours, values, strict=True)]
    squares = sum(float(own @ own) for own in residuals)
    alike = sum(float(own[1:] @ own[:-1]) for own in residuals) / squares if squares else 0.0
    alike = min(max(alike, 0.0), 0.99)
    half = 1.96 * math.sqrt(squares / degrees / spread * (1 + alike) / (1 - alike))
    return Slope(value, value - half, value + half)


@dataclass(frozen=True)
class Verdict:
    """The figures of a soak."""

    samples: Sequence[Sample]

    @property
    def differences(self) -> int:
        return sum(sample.differences for sample in self.samples)

    def lines(self) -> list[str]:
        """A line for each bar, with what is missed."""
        found = []
        for quantity, what, most in (
            ("worker_mb", "MB of the worker", MOST_MB_PER_HOUR),
            ("tree_mb", "MB of all processes", MOST_MB_PER_HOUR),
            ("worker_files", "open files of the worker", MOST_FILES_PER_HOUR),
            ("tree_files", "open files of all processes", MOST_FILES_PER_HOUR),
        ):
            rise = slope(self.samples, quantity)
            mean = float(np.mean([getattr(sample, quantity) for sample in self.samples]))
            held = "flat" if rise.high < most else "MISSED"
            found.append(f"{held}: {what}: {mean:.0f} on average, {rise}; at most {most:+g} allowed")
        held = "MISSED" if self.differences else "the same"
        found.append(f"{held}: {len(self.samples)} runs, {self.differences} differences from uninterrupted ones")
        return found

    @property
    def holds(self) -> bool:
        return not any(line.startswith("MISSED") for line in self.lines())


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Draws memory and open files over time."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    memory, files = figure.subplots(2, 1, sharex=True)
    for session in sorted({sample.session for sample in samples}):
        own = [sample for sample in samples if sample.session == session]
        minutes = [sample.minutes for sample in own]
        for axes, unit in ((memory, "mb"), (files, "files")):
            for part, colour, label in (("worker", "#1b6ca8", "the worker"), ("tree", "#c46210", "all processes")):
                values = [getattr(sample, f"{part}_{unit}") for sample in own]
                axes.plot(minutes, values, color=colour, linewidth=0.8, label=label if session == 1 else None)
    memory.set_ylabel("resident memory, MB")
    files.set_ylabel("open files")
    files.set_xlabel("minutes of back-to-back runs with random faults")
    for axes in (memory, files):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    memory.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
