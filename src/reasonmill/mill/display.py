"""How far a run is: a live panel on a terminal, plain lines anywhere else; and where its outcome is printed.

Which metrics are shown, and how, stands in display.toml.
"""

import itertools
import math
import sys
import time
import tomllib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

PACE_WINDOW = 10  # advances that the time left is estimated from
LINE_INTERVAL_S = 1.0
TREND_WIDTH = 40
UNBOUNDED_WIDTH = 10_000
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Reading:
    """How a metric is shown, as display.toml describes it."""

    metric: str
    format: str
    where: Sequence[str]
    label: str = ""
    unit: str = ""
    hide_zero: bool = False

    @property
    def title(self) -> str:
        """What stands before the number."""
        return f"{self.label} " if self.label else ""


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
READINGS = [Reading(**described) for described in _TABLES["readings"]]


def readings(metrics: Mapping[str, float], where: str) -> Iterator[tuple[Reading, str]]:
    """The readings of this place that the stage reported, with their formatted numbers."""
    for reading in READINGS:
        number = metrics.get(reading.metric)
        if where in reading.where and number is not None and not (reading.hide_zero and number == 0):
            yield reading, f"{number:{reading.format}}"


def format_duration(seconds: float) -> str:
    """`42s`, `1m12s`, `3h05m` or `2d04h`."""
    whole = max(0, round(seconds))
    for size, unit, part, parts in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{parts}"
    return f"{whole}s"


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
        self.courses: defaultdict[str, list[float]] = defaultdict(list)
        self._clock = clock
        self._started = clock()
        # The start is not part of the pace: the first step warms up, and a resumed stage starts in the middle.
        self._marks: deque[tuple[float, int]] = deque(maxlen=PACE_WINDOW + 1)

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        self.done = done
        self.metrics = dict(metrics)
        self._marks.append((self._clock(), done))
        for name, number in metrics.items():
            self.courses[name].append(number)

    def elapsed_s(self) -> float:
        return self._clock() - self._started

    def left(self) -> str | None:
        """How long the rest takes at the pace of the recent advances; None while that is not known."""
        if len(self._marks) < 2:
            return None
        (first_time, first_done), (last_time, last_done) = self._marks[0], self._marks[-1]
        if last_done <= first_done or last_done >= self.total:
            return None
        rest = (self.total - last_done) * (last_time - first_time) / (last_done - first_done)
        return f"{format_duration(rest - (self._clock() - last_time))} left"

    def line(self, last: str | None) -> str:
        """Stage, count, the most important metrics and then `last`, in one line."""
        shown = [f"{reading.title}{value}{reading.unit}" for reading, value in readings(self.metrics, "line")]
        return "  ".join([self.stage, f"{self.done:,}/{self.total:,}", *shown, *([last] if last else [])])


class Display(AbstractContextManager["Display"]):
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
        """Prints a line as it is."""
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self, meter: Meter, outcome: str) -> None:
        raise NotImplementedError

    def _current(self) -> Meter:
        if self._meter is None:
            raise RuntimeError("no stage has begun")
        return self._meter


class LineDisplay(Display):
    """One line for an advance, at most one each LINE_INTERVAL_S, and always one for the last."""

    _printed_at: float
    _pending: bool  # whether an advance has not been printed yet

    def begin(self, stage: str, total: int, unit: str) -> None:
        super().begin(stage, total, unit)
        self._printed_at, self._pending = -math.inf, False
        self.note(f"{stage}  {total:,} {unit}")

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        super().advance(done, metrics)
        self._pending = True
        if done >= self._current().total or self._clock() - self._printed_at >= LINE_INTERVAL_S:
            self._flush(self._current())

    def _flush(self, meter: Meter) -> None:
        self.note(meter.line(meter.left()))
        self._printed_at = self._clock()
        self._pending = False

    def _finish(self, meter: Meter, outcome: str) -> None:
        if self._pending:
            self._flush(meter)
        self.note(f"{meter.stage}  {outcome}")


class LiveDisplay(Display):
    """A panel that is redrawn in place; a finished stage leaves one line behind."""

    _live: Live

    def begin(self, stage: str, total: int, unit: str) -> None:
        super().begin(stage, total, unit)
        self._live = Live(console=self._console, get_renderable=self.panel, refresh_per_second=4, transient=True)
        self._live.start(refresh=True)

    def _finish(self, meter: Meter, outcome: str) -> None:
        self._live.stop()
        self.note(meter.line(outcome))

    def panel(self) -> Panel:
        """The panel as it is now."""
        meter = self._current()
        parts: list[RenderableType] = [_bar_row(meter)]
        courses = Table.grid(
            Column(style="dim", no_wrap=True),
            Column(justify="right", style="bold", no_wrap=True),
            Column(style="cyan", no_wrap=True),
            padding=(0, 2),
        )
        for reading, value in readings(meter.metrics, "course"):
            ascii_only = self._console.options.ascii_only
            course = "" if ascii_only else sparkline(meter.courses[reading.metric], TREND_WIDTH)
            courses.add_row(reading.label, value, course)
        if courses.row_count:
            parts += [Text(), courses]
        numbers = [
            Text.assemble((reading.title, "dim"), value, (reading.unit, "dim"))
            for reading, value in readings(meter.metrics, "panel")
        ]
        if numbers:
            parts += [Text(), Columns(numbers, padding=(0, 3))]
        return Panel(Group(*parts), title=Text(meter.stage, style="bold"), title_align="left", border_style="dim")


def _bar_row(meter: Meter) -> Table:
    count, times = Column(justify="right", no_wrap=True), Column(justify="right", no_wrap=True, style="dim")
    row = Table.grid(Column(ratio=1), count, times, padding=(0, 2), expand=True)
    bar = ProgressBar(total=max(1, meter.total), completed=meter.done, complete_style="cyan", finished_style="cyan")
    timing = filter(None, (format_duration(meter.elapsed_s()), meter.left()))
    row.add_row(bar, f"{meter.done:,}/{meter.total:,} {meter.unit}", "  ".join(timing))
    return row


def output_console() -> Console:
    """Standard output; in a file or a pipe a row is one line, however many columns that is said to have."""
    return Console() if sys.stdout.isatty() else Console(width=UNBOUNDED_WIDTH)


def make_progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Display:
    """The display that suits the console. `clock` gives seconds; only differences are used."""
    return LiveDisplay(console, clock) if console.is_interactive else LineDisplay(console, clock)
