"""The page that says what a run did: before and after, the curves, rollouts early and late.

How it says that stands in report.html.jinja, which charts there are in report.toml, how they look in report.mplstyle.
"""

import io
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from html import escape
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib.style
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reasonmill.mill.display import format_duration
from reasonmill.mill.findings import FINDINGS
from reasonmill.mill.results import read_results, read_stages
from reasonmill.mill.thinking import split_thinking
from reasonmill.store.commit import replace_file
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.store.views import PAGE
from reasonmill.transcript import with_opening
from reasonmill.types import Group, Problem, Rollout

PROBLEMS_SHOWN = 3
SMOOTH_FROM = 40  # curves with fewer steps are drawn as they are

# Colours that matplotlib writes into the figure and that the page replaces by its own, which follow light and dark.
CURVE_COLOURS = {f"#fe000{i}": f"var(--curve-{i})" for i in (1, 2, 3)}
INK_COLOURS = {"#fe0010": "var(--dim)", "#fe0011": "var(--rule)"}


Example = tuple[Problem, list[tuple[str, Rollout]]]  # (problem, attempts with their verdicts)


def write_report(run_dir: Path, home: Home, summary: Mapping[str, Any], stage_keys: Mapping[str, str]) -> None:
    """Writes `report.html` into `run_dir`: one page that needs nothing from outside; same data, same bytes.

    Args:
        summary: what the run recorded of itself and of each stage, as in `summary.json`.
        stage_keys: the ledger's key of each stage's steps, by the stage's name.
    """
    charts = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["charts"]
    stages = []
    for stage in summary["stages"]:
        key, salt = stage_keys[stage["name"]], f"{summary['name']}/{stage['name']}"
        rows = home.ledger.metrics(key)
        drawn = [chart for described in charts if (chart := _chart(described, rows, salt)) is not None]
        examples = _early_and_late(home, key, [row["step"] for row in rows])
        stages.append({FINDINGS: [], **stage, "charts": drawn, "examples": examples})
    page = _template().render(
        {**summary, "stages": stages, "overview": read_stages(summary), "results": read_results(summary)}
    )
    replace_file(run_dir / PAGE, page.encode())


@cache  # to compile it takes longer than to fill it in
def _template() -> Template:
    beside = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=beside, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=format_duration, thinking_spans=thinking_spans)
    return environment.get_template("report.html.jinja")


def _chart(described: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], salt: str) -> dict[str, Any] | None:
    """A chart of the curves that the stage reported; None where it reported none of them.

    `legend` has (colour, label) of each, and `window` says of how many steps a point of the bold curves is the mean.
    """
    title, drawn = described["title"], []
    for (metric, label), colour in zip(described["curves"].items(), CURVE_COLOURS, strict=False):
        points = [(row["step"], float(row[metric])) for row in rows if row.get(metric) is not None]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if points:
            drawn.append((label, colour, points))
    if not drawn:
        return None
    longest = max(len(points) for _, _, points in drawn)
    window = 2 * (longest // SMOOTH_FROM) + 1 if longest >= SMOOTH_FROM else 1
    legend = [(CURVE_COLOURS[colour], label) for label, colour, _ in drawn]
    svg = _draw([(colour, points) for _, colour, points in drawn], described["shown"], window, f"{salt}/{title}")
    return {"title": title, "svg": _inline(svg, title), "legend": legend, "window": window}


def _draw(curves: Iterable[tuple[str, list[tuple[int, float]]]], shown: Sequence[float], window: int, salt: str) -> str:
    # Reset: a matplotlibrc of the user must not change the page.
    with matplotlib.style.context(["reasonmill.mill.report", {"svg.hashsalt": salt}], after_reset=True):
        figure = Figure()
        axes = figure.add_axes((0.12, 0.2, 0.86, 0.76))
        for colour, points in curves:
            steps, values = zip(*points, strict=True)
            means, edge = _moving_mean(values, window), window // 2
            if window > 1:
                axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.45)
            marker = "o" if len(points) == 1 else ""
            axes.plot(steps[edge : len(steps) - edge], means, color=colour, linewidth=1.6, marker=marker)
        bottom, top = axes.get_ylim()
        axes.set_ylim(min([bottom, *shown]), max([top, *shown]))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("step", loc="right", labelpad=2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each `window` neighbours; `window` - 1 values fewer than given."""
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]


def _inline(svg: str, title: str) -> Markup:
    """matplotlib's SVG as an element of the page: no prolog, no style sheet, no names that figures could share."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg role="img" aria-label="{escape(title)}" viewBox="\1">', body
    )
    for placeholder, colour in {**CURVE_COLOURS, **INK_COLOURS}.items():
        body = body.replace(placeholder, colour)
    return Markup(re.sub(r"\n\s*", "\n", body).strip())


def _early_and_late(home: Home, key: str, steps: Sequence[int]) -> list[tuple[int, list[Example]]]:
    """Examples of the first and of the last step whose groups are there and whole."""
    ends = [found for order in (steps, steps[::-1]) for found in islice(_sound_groups(home, key, order), 1)]
    return [
        (step, [_example(group) for group in _telling_groups(read_groups(path / GROUPS_FILE))])
        for step, path in dict.fromkeys(ends)
    ]


def _sound_groups(home: Home, key: str, steps: Iterable[int]) -> Iterator[tuple[int, Path]]:
    """The steps whose groups can be read, and where they are."""
    instead = "the report shows another step until the recipe is run again"
    for step in steps:
        digest = home.ledger.step_groups(key, step)
        if digest is not None and (path := home.objects.sound_path(digest, instead=instead)) is not None:
            yield step, path


def _telling_groups(groups: Sequence[Group]) -> list[Group]:
    """A few groups to show: first those with right and wrong attempts, and each task before a task's second."""
    turns: Counter[str] = Counter()
    ranked = []
    for group in sorted(groups, key=lambda group: not {"correct", "wrong"} <= set(map(_verdict, group.rollouts))):
        ranked.append((turns[group.problem.task], group))
        turns[group.problem.task] += 1
    return [group for _, group in sorted(ranked, key=itemgetter(0))[:PROBLEMS_SHOWN]]


def _example(group: Group) -> Example:
    """One typical right attempt and one typical wrong one, as far as the group has them: those of median length."""
    attempts = []
    for verdict in ("correct", "wrong", "not graded"):
        alike = [rollout for rollout in group.rollouts if _verdict(rollout) == verdict]
        if alike:
            by_length = sorted(alike, key=lambda rollout: rollout.completion.num_sampled)
            attempts.append((verdict, by_length[(len(alike) - 1) // 2]))
    return group.problem, attempts[:2]


def _verdict(rollout: Rollout) -> str:
    if rollout.grade.reward is None:
        return "not graded"
    return "correct" if rollout.grade.parts.get("accuracy", 0.0) >= 1.0 else "wrong"


def thinking_spans(text: str) -> list[tuple[bool, str]]:
    """The text in order as (is thinking, span), tags with the thinking; unclosed thinking reaches to the end."""
    pieces = groupby(split_thinking([with_opening(text)]), itemgetter(1))
    return [(is_thinking, "".join(span for span, _ in spans)) for is_thinking, spans in pieces]
