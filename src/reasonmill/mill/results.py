"""What evaluations measured, as tables: one task by task, and the paper's table of stages in miniature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Metrics of an evaluation: (name, label, whether it is a share). Others with an interval follow as they come.
EVALUATION_METRICS = (
    ("pass@1", "pass@1", True),
    ("helpful", "helpful", True),
    ("unsafe", "unsafe", True),
    ("refused", "refused", True),
    ("language", "language", True),
    ("format", "format", True),
    ("thinking_share", "with thinking", True),
    ("thinking_tokens", "thinking tokens", False),
    ("response_tokens", "response tokens", False),
    ("truncated", "truncated", True),
)

# Rows of the table of stages that follow those of the reasoning tasks: (label, place in the metrics, is a share).
STAGE_ROWS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("language consistency", ("pooled", "reasoning", "language"), True),
    ("format", ("pooled", "reasoning", "format"), True),
    ("general answers", ("pooled", "helpfulness", "pass@1"), True),
    ("helpfulness (win rate)", ("win_rate",), True),
    ("unsafe", ("tasks", "harmful-requests", "unsafe"), True),
    ("over-refusal", ("tasks", "harmless-requests", "refused"), True),
    ("thinking tokens", ("pooled", "reasoning", "thinking_tokens"), False),
)


@dataclass(frozen=True)
class Cell:
    """A figure as the table shows it; `interval` is empty where there is none."""

    value: str
    interval: str


@dataclass(frozen=True)
class Row:
    label: str
    cells: tuple[Cell | None, ...]


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
    evaluations = _evaluations(summary)
    pooled = {task for stage in evaluations for task in _reasoning_tasks(stage["metrics"])}
    names = [task for task in _task_names(evaluations) if task in pooled]
    places = [(name, ("tasks", name, "pass@1"), True) for name in names]
    rows = [
        Row(label, tuple(_cell(_at(stage["metrics"], place), is_share) for stage in evaluations))
        for label, place, is_share in (*places, *STAGE_ROWS)
    ]
    told = tuple(row for row in rows if any(row.cells))
    return Results(_columns(evaluations), (TaskResults("", "", told),) if told else ())


def _reasoning_tasks(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name, figures in metrics["tasks"].items() if figures["domain"] == "reasoning"]


def _at(metrics: Mapping[str, Any], place: tuple[str, ...]) -> Mapping[str, Any] | None:
    found: Any = metrics
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if _is_figure(found) else None


def _evaluations(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The evaluations in the order in which their models were made; what no stage made comes first."""
    made = {stage["name"]: place for place, stage in enumerate(summary["stages"])}
    evaluations = [stage for stage in summary["stages"] if stage["kind"] == "evaluate"]
    return sorted(evaluations, key=lambda stage: made.get(stage["metrics"]["model"], -1))


def _columns(evaluations: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((stage["metrics"]["model"], stage["name"]) for stage in evaluations)


def _task_names(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(task for stage in evaluations for task in stage["metrics"]["tasks"]))


def read_results(summary: Mapping[str, Any]) -> Results:
    """The table before and after, of all stages that evaluated a model."""
    evaluations = _evaluations(summary)
    tasks = [
        _task_results(name, [stage["metrics"]["tasks"].get(name) for stage in evaluations])
        for name in _task_names(evaluations)
    ]
    return Results(_columns(evaluations), tuple(tasks))


def _task_results(task: str, evaluations: Sequence[Mapping[str, Any] | None]) -> TaskResults:
    measured = [evaluation for evaluation in evaluations if evaluation is not None]
    known = [name for name, _, _ in EVALUATION_METRICS]
    found = dict.fromkeys(name for evaluation in measured for name, value in evaluation.items() if _is_figure(value))
    shares = {name for name, _, is_share in EVALUATION_METRICS if is_share}
    labels = {name: label for name, label, _ in EVALUATION_METRICS}
    rows = []
    for name in sorted(found, key=lambda name: known.index(name) if name in known else len(known)):
        is_share = name in shares or name.startswith("pass@")
        cells = (_cell((evaluation or {}).get(name), is_share) for evaluation in evaluations)
        rows.append(Row(labels.get(name, name), tuple(cells)))
    settings = dict.fromkeys(_setting(evaluation) for evaluation in measured)
    return TaskResults(task, "; ".join(settings), tuple(rows))


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
    # A single problem leaves the interval open.
    interval = "" if low is None or high is None else f"{scale * low:.{digits}f}–{scale * high:.{digits}f}"
    return Cell(f"{value:.{digits}f}{'%' if is_share else ''}", interval)


def print_table(console: Console, results: Results) -> None:
    """Prints a table; prints nothing where nothing was evaluated."""
    if not results.tasks:
        return
    table = _terminal_table(results, separator=" ")
    unbounded = console.options.update(width=10_000)  # a measurement is never wider than its options
    if console.measure(table, options=unbounded).maximum > console.width:
        table = _terminal_table(results, separator="\n")
    console.print(table)
    console.print(Text("after each figure: its 95% interval", style="dim"))


def _terminal_table(results: Results, separator: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for model, _ in results.columns:
        table.add_column(Text(model))
    for number, task in enumerate(results.tasks):
        if number:
            table.add_row()
        if task.task:
            table.add_row(Text(task.task, style="bold"))
        for row in task.rows:
            table.add_row(
                Text(f"  {row.label}" if task.task else row.label),
                *(_terminal_cell(cell, separator) for cell in row.cells),
            )
    return table


def _terminal_cell(cell: Cell | None, separator: str) -> Text:
    if cell is None:
        return Text("-", style="dim")
    if not cell.interval:
        return Text(cell.value)
    return Text.assemble(cell.value, separator, (cell.interval.replace("–", "-"), "dim"))
