"""What evaluations measured, as tables: one task by task, and the paper's table of stages in miniature.

Which figures have a row, and under which label, stands in results.toml.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reasonmill.mill.display import UNBOUNDED_WIDTH

Place = tuple[str, tuple[str, ...], bool]  # label, place in the metrics, whether it is a share

_TABLES: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
# Figures of attempts at a problem, one and several, which stand first.
_OF_ONE, _OF_ATTEMPTS = ("pass@1",), ("pass@", "cons@")
# Rows of the table of stages behind those of the reasoning tasks.
STAGE_ROWS: tuple[Place, ...] = tuple((label, tuple(place), share) for label, place, share in _TABLES["stages"]["rows"])


@dataclass(frozen=True)
class Cell:
    """A figure as the table shows it; `interval` is empty where there is none."""

    value: str
    interval: str


Row = tuple[str, tuple[Cell | None, ...]]  # label, a cell for each column


@dataclass(frozen=True)
class TaskResults:
    """One task's rows; `setting` says how it was measured."""

    task: str
    setting: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Results:
    """The table before and after: a column for each evaluation, in the order of the recipe."""

    columns: tuple[tuple[str, str], ...]  # (model, evaluate stage)
    tasks: tuple[TaskResults, ...]


def read_stages(summary: Mapping[str, Any]) -> Results:
    """The table of stages: a row for each reasoning task and for what the others come to; a column for each model."""
    evaluations, columns = _evaluations(summary)
    figures = {name: figures for metrics in evaluations for name, figures in metrics["tasks"].items()}
    reasoning = [name for name in figures if figures[name]["domain"] == "reasoning"]
    *before, last = STAGE_ROWS
    places = [(name, ("tasks", name, "pass@1"), True) for name in reasoning]
    rows = _rows([*places, *before, *_measures(evaluations), last], evaluations)
    return Results(columns, (TaskResults("", "", rows),) if rows else ())


def read_results(summary: Mapping[str, Any]) -> Results:
    """The table before and after, of all stages that evaluated a model."""
    evaluations, columns = _evaluations(summary)
    names = dict.fromkeys(name for metrics in evaluations for name in metrics["tasks"])
    tasks = [_task_results(name, [metrics["tasks"].get(name, {}) for metrics in evaluations]) for name in names]
    return Results(columns, tuple(tasks))


def _task_results(task: str, evaluations: Sequence[Mapping[str, Any]]) -> TaskResults:
    """A task's results; an evaluation without the task is empty."""
    found = dict.fromkeys(name for metrics in evaluations for name, value in metrics.items() if _is_figure(value))
    known = {name: label for name, label in _TABLES["metrics"].items() if name in found}
    others = {name: (name, name.startswith(_OF_ATTEMPTS)) for name in found if name not in known}
    # What several attempts say stands beside what one says.
    beside = {name: label for name, label in others.items() if label[1]}
    first = {name: label for name, label in known.items() if name in _OF_ONE}
    labels = {**first, **beside, **known, **others}
    places: list[Place] = [(label, (name,), is_share) for name, (label, is_share) in labels.items()]
    places[1:1] = reversed(_measures(evaluations))
    settings = dict.fromkeys(_setting(metrics) for metrics in evaluations if metrics)
    return TaskResults(task, "; ".join(settings), _rows(places, evaluations))


def _rows(places: Iterable[Place], evaluations: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """A row for each of the places at which some evaluation has a figure."""
    rows = [
        (label, tuple(_cell(_at(metrics, place), is_share) for metrics in evaluations))
        for label, place, is_share in places
    ]
    return tuple((label, cells) for label, cells in rows if any(cells))


def _measures(evaluations: Sequence[Mapping[str, Any]]) -> list[Place]:
    """The places of all that tasks measure besides pass@1, in the order in which they come."""
    found = {name: figure["label"] for each in evaluations for name, figure in each.get("measures", {}).items()}
    return [(label, ("measures", name), True) for name, label in found.items()]


def _at(metrics: Mapping[str, Any], place: Sequence[str]) -> Mapping[str, Any] | None:
    found: Any = metrics
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if _is_figure(found) else None


def _evaluations(summary: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], tuple[tuple[str, str], ...]]:
    """What the evaluations measured, and (model, stage) of each, in the order in which their models were made.

    A model that no stage made comes before those that are evaluated after it, which are made from it as a rule.
    """
    made = {stage["name"]: float(place) for place, stage in enumerate(summary["stages"])}
    evaluations = [stage for stage in summary["stages"] if stage["kind"] == "evaluate"]
    # A model behind a server is none that the stage reads: its column has the stage's name.
    models = [stage["reads"].get("from", stage["name"]) for stage in evaluations]
    # A model that a stage kept on its way comes right before what the stage made.
    made |= {m: made[m.partition("@")[0]] - 0.25 for m in models if m not in made and m.partition("@")[0] in made}
    places = [
        made.get(model, min((made[later] for later in models[number:] if later in made), default=0.0) - 0.5)
        for number, model in enumerate(models)
    ]
    ordered = [stage for _, stage in sorted(zip(places, evaluations, strict=True), key=lambda pair: pair[0])]
    columns = tuple((stage["reads"].get("from", stage["name"]), stage["name"]) for stage in ordered)
    return [stage["metrics"] for stage in ordered], columns


def _is_figure(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def _setting(evaluation: Mapping[str, Any]) -> str:
    problems, samples = evaluation["problems"], evaluation["samples"]
    return f"{problems:,} problems × {samples} {'sample' if samples == 1 else 'samples'}, seed {evaluation['seed']}"


def _cell(figure: Mapping[str, Any] | None, is_share: bool) -> Cell | None:
    if figure is None:
        return None
    scale = 100 if is_share else 1
    value, low, high = scale * figure["value"], figure["low"], figure["high"]
    digits = 1 if is_share or abs(value) < 100 else 0
    # A single problem leaves the interval of an amount open.
    interval = "" if low is None or high is None else f"{scale * low:.{digits}f}–{scale * high:.{digits}f}"
    return Cell(f"{value:.{digits}f}{'%' if is_share else ''}", interval)


def print_table(console: Console, results: Results) -> None:
    """Prints a table; prints nothing where nothing was evaluated.

    A figure and its interval stand in one line where the console is wide enough, else below each other; what even then
    is too wide is printed as several tables, some of the models in each.
    """
    if not results.tasks:
        return
    in_one_line = _terminal_table(results, slice(None), stacked=False)
    parts = [in_one_line] if _fits(console, in_one_line) else _stacked_tables(console, results)
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)
    console.print(Text("after each figure: its 95% interval", style="dim"))


def _stacked_tables(console: Console, results: Results) -> list[Table]:
    """The table with intervals below figures, or as few such tables of neighbouring columns as fit."""
    tables = []
    first = 0
    while first < len(results.columns):
        for stop in range(len(results.columns), first, -1):
            table = _terminal_table(results, slice(first, stop), stacked=True)
            if _fits(console, table):
                break  # and a single column that does not fit is left to the console
        tables.append(table)
        first = stop
    return tables


def _fits(console: Console, table: Table) -> bool:
    unbounded = console.options.update(width=UNBOUNDED_WIDTH)  # a measurement is never wider than its options
    return console.measure(table, options=unbounded).maximum <= console.width


def _terminal_table(results: Results, columns: slice, *, stacked: bool) -> Table:
    """Some columns of the table for a terminal, and the rows that have a figure in them.

    Args:
        stacked: whether intervals stand below their figures, and a label may take a line for each of its words.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown = [
        (task.task, [(label, cells[columns]) for label, cells in task.rows if any(cells[columns])])
        for task in results.tasks
    ]
    shown = [(task, rows) for task, rows in shown if rows]
    words = [word for task, rows in shown for label, _ in rows for word in (*label.split(), task)]
    indent = "  " if any(task for task, _ in shown) else ""
    longest = max(map(len, words)) + len(indent)
    table.add_column("", no_wrap=not stacked, max_width=longest if stacked else None)
    for model, _ in results.columns[columns]:
        table.add_column(Text(model))
    for number, (task, rows) in enumerate(shown):
        if number:
            table.add_row()
        if task:
            table.add_row(Text(task, style="bold"))
        for label, cells in rows:
            shown_cells = (_terminal_cell(cell, "\n" if stacked else " ") for cell in cells)
            table.add_row(Text(f"{indent}{label}"), *shown_cells)
    return table


def _terminal_cell(cell: Cell | None, separator: str) -> Text:
    if cell is None:
        return Text("-", style="dim")
    if not cell.interval:
        return Text(cell.value)
    return Text.assemble(cell.value, separator, (cell.interval.replace("–", "-"), "dim"))
