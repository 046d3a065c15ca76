"""How far a run is: a live panel on a terminal, plain lines anywhere else; and where its outcome is printed."""

import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PACE_WINDOW = 10  # advances that the time left is estimated from
LINE_INTERVAL_S = 1.0
TREND_WIDTH = 40
UNBOUNDED_WIDTH = 10_000
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Reading:
    """How a metric is shown: `reward 0.61`, or with a unit `9,812 tok/s`."""

    metric: str
    label: str
    number_format: str
    unit: str = ""
    hide_zero: bool = False

    def value(self, metrics: Mapping[str, float]) -> str | None:
        """The formatted number, or None where the stage did not report it."""
        number = metrics.get(self.metric)
        if number is None or (self.hide_zero and number == 0):
            return None
        return f"{number:{self.number_format}}"


REWARD = Reading("reward/mean", "reward", ".2f")
ACCURACY = Reading("reward/accuracy", "accuracy", ".2f")
FORMAT = Reading("reward/format", "format", ".2f")
LENGTH = Reading("length/response", "length", ".1f")
THINKING = Reading("length/thinking", "thinking", ".1f")
FLAT = Reading("groups/flat", "flat", ".2f")
UNGRADED = Reading("groups/ungraded", "ungraded", ".3g", hide_zero=True)
LOSS = Reading("loss/ce", "loss", ".3f")
ENTROPY = Reading("policy/entropy", "entropy", ".2f")
KL = Reading("policy/kl", "kl", ".2g")
GRAD_NORM = Reading("optim/grad_norm", "gradient", ".2g")
LEARNING_RATE = Reading("optim/learning_rate", "lr", ".2g")
STEP_S = Reading("speed/step_s", "", ".2f", " s/step")
TOKENS_PER_S = Reading("speed/tokens_per_s", "", ",.0f", " tok/s")

LINE_READINGS = (REWARD, ACCURACY, LENGTH, FLAT, UNGRADED, LOSS, TOKENS_PER_S)
TREND_READINGS = (REWARD, LENGTH, LOSS)
PANEL_READINGS = (
    ACCURACY, FORMAT, THINKING, FLAT, UNGRADED, ENTROPY, KL, GRAD_NORM, LEARNING_RATE, STEP_S, TOKENS_PER_S,
)  # fmt: skip


def format_duration(seconds: float) -> str:
    """`42s`, `1m12s`, `3h05m` or `2d04h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` characters, from their minimum to their maximum.

    Longer series are averaged over equal stretches, so that the whole course stays in sight.
    """
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    edges = [len(finite) * i // count for i in range(count + 1)] if count else []
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    if span == 0:
        return BLOCKS[0] * len(means)
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)


class Meter:
    """The state of one stage, and the text that both displays show of it."""

    def __init__(self, stage: str, total: int, unit: str, clock: Callable[[], float]) -> None:
        self.stage = stage
        self.total = total
        self.unit = unit
        self.done = 0
        self.metrics: dict[str, float] = {}
        self.trends: dict[str, list[float]] = {reading.metric: [] for reading in TREND_READINGS}
        self._clock = clock
        self._started = clock()
        # The start is not part of the pace: the first step warms up, and a resumed stage starts in the middle.
        self._marks: deque[tuple[float, int]] = deque(maxlen=PACE_WINDOW + 1)

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        self.done = done
        self.metrics = dict(metrics)
        self._marks.append((self._clock(), done))
        for name, course in self.trends.items():
            if name in metrics:
                course.append(metrics[name])

    def elapsed_s(self) -> float:
        return self._clock() - self._started

    def left_s(self) -> float | None:
        """Seconds that the rest takes at the pace of the recent advances; None while that is not known."""
        if len(self._marks) < 2:
            return None
        (first_time, first_done), (last_time, last_done) = self._marks[0], self._marks[-1]
        if last_done <= first_done or last_done >= self.total:
            return None
        rest = (self.total - last_done) * (last_time - first_time) / (last_done - first_done)
        return max(0.0, rest - (self._clock() - last_time))

    def left(self) -> str | None:
        seconds = self.left_s()
        return None if seconds is None else f"{format_duration(seconds)} left"

    def line(self, last: str | None) -> str:
        """Stage, count, the most telling metrics and then `last`, in one line."""
        cells = [self.stage, f"{self.done:,}/{self.total:,}"]
        for reading in LINE_READINGS:
            value = reading.value(self.metrics)
            if value is not None:
                cells.append(f"{reading.label} {value}{reading.unit}".strip())
        return "  ".join([*cells, last] if last else cells)


class Display:
    """What both displays do alike; satisfies the Progress protocol.

    As a context manager it leaves the terminal in order when a stage fails half-way.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._meter: Meter | None = None

    def begin(self, stage: str, total: int, unit: str) -> None:
        self.close()
        self._meter = Meter(stage, total, unit, self._clock)

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        self._current().advance(done, metrics)

    def note(self, text: str) -> None:
        self._print(text)

    def end(self, metrics: Mapping[str, object]) -> None:
        meter = self._current()
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        meter.metrics = {**meter.metrics, **numbers}
        self._finish(meter, f"done in {format_duration(meter.elapsed_s())}")
        self._meter = None

    def close(self) -> None:
        """Takes the display of a stage that did not end off the screen, and says how far it came."""
        if self._meter is not None:
            self._finish(self._meter, f"stopped after {format_duration(self._meter.elapsed_s())}")
            self._meter = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _finish(self, meter: Meter, outcome: str) -> None:
        raise NotImplementedError

    def _current(self) -> Meter:
        if self._meter is None:
            raise RuntimeError("no stage has begun")
        return self._meter

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


class LineDisplay(Display):
    """One line for an advance, at most one each LINE_INTERVAL_S, and always one for the last."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._printed_at = -math.inf
        self._pending = False  # whether an advance has not been printed yet

    def begin(self, stage: str, total: int, unit: str) -> None:
        super().begin(stage, total, unit)
        self._printed_at = -math.inf
        self._print(f"{stage}  {total:,} {unit}")

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        super().advance(done, metrics)
        self._pending = True
        if done >= self._current().total or self._clock() - self._printed_at >= LINE_INTERVAL_S:
            self._flush(self._current())

    def _flush(self, meter: Meter) -> None:
        self._print(meter.line(meter.left()))
        self._printed_at = self._clock()
        self._pending = False

    def _finish(self, meter: Meter, outcome: str) -> None:
        if self._pending:
            self._flush(meter)
        self._print(f"{meter.stage}  {outcome}")


class LiveDisplay(Display):
    """A panel that is redrawn in place; a finished stage leaves one line behind."""

    _live: Live

    def begin(self, stage: str, total: int, unit: str) -> None:
        super().begin(stage, total, unit)
        self._live = Live(console=self._console, get_renderable=self.panel, refresh_per_second=4, transient=True)
        self._live.start(refresh=True)

    def _finish(self, meter: Meter, outcome: str) -> None:
        self._live.stop()
        self._print(meter.line(outcome))

    def panel(self) -> Panel:
        """The panel as it is now."""
        meter = self._current()
        parts: list[RenderableType] = [_bar_row(meter)]
        trends = _trend_rows(meter, ascii_only=self._console.options.ascii_only)
        if trends.row_count:
            parts += [Text(), trends]
        readings = _readings(meter)
        if readings:
            parts += [Text(), Columns(readings, padding=(0, 3))]
        return Panel(Group(*parts), title=Text(meter.stage, style="bold"), title_align="left", border_style="dim")


def _bar_row(meter: Meter) -> Table:
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    row.add_column(justify="right", no_wrap=True, style="dim")
    bar = ProgressBar(total=max(1, meter.total), completed=meter.done, complete_style="cyan", finished_style="cyan")
    times = [format_duration(meter.elapsed_s())]
    left = meter.left()
    if left is not None:
        times.append(left)
    row.add_row(bar, f"{meter.done:,}/{meter.total:,} {meter.unit}", "  ".join(times))
    return row


def _trend_rows(meter: Meter, *, ascii_only: bool) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(justify="right", style="bold", no_wrap=True)
    rows.add_column(style="cyan", no_wrap=True)
    for reading in TREND_READINGS:
        value = reading.value(meter.metrics)
        if value is not None:
            course = "" if ascii_only else sparkline(meter.trends[reading.metric], TREND_WIDTH)
            rows.add_row(reading.label, value, course)
    return rows


def _readings(meter: Meter) -> list[Text]:
    cells = []
    for reading in PANEL_READINGS:
        value = reading.value(meter.metrics)
        if value is not None:
            label = f"{reading.label} " if reading.label else ""
            cells.append(Text.assemble((label, "dim"), value, (reading.unit, "dim")))
    return cells


def output_console() -> Console:
    """Standard output; in a file or a pipe a row is one line, however many columns that is said to have."""
    return Console() if sys.stdout.isatty() else Console(width=UNBOUNDED_WIDTH)


def make_progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Display:
    """The display that suits the console. `clock` gives seconds; only differences are used."""
    return LiveDisplay(console, clock) if console.is_interactive else LineDisplay(console, clock)
