"""The page that says what a run did: before and after, the curves, rollouts early and late."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reasonmill.mill.display import format_duration
from reasonmill.mill.results import read_results, read_stages
from reasonmill.store.commit import replace_file
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.store.views import PAGE
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN
from reasonmill.types import Group, Rollout

PROBLEMS_SHOWN = 3
SMOOTH_FROM = 40  # curves with fewer steps are drawn as they are

# Charts of a stage: (title, values that the axis shows in any case, curves as (metric, label)). A curve that its title
# says all of has no label.
CHARTS = (
    ("Reward", (0.0,), (("reward/mean", "total"), ("reward/accuracy", "accuracy"), ("reward/format", "format"))),
    ("Preference rewards", (0.0, 1.0), (("reward/helpfulness", "helpfulness"), ("reward/safety", "safety"))),
    ("Length in tokens", (0.0,), (("length/response", "response"), ("length/thinking", "thinking"))),
    ("Share of flat groups", (0.0, 1.0), (("groups/flat", ""),)),
    ("KL to the reference", (0.0,), (("policy/kl", ""),)),
    ("KL to the teacher", (0.0,), (("loss/kl", ""),)),
    ("Loss", (), (("loss/ce", "cross-entropy"), ("loss/pairwise", "of pairs"), ("loss/pointwise", "of responses"))),
)

# Colours that matplotlib writes into the figure and that the page replaces by its own, which follow light and dark.
CURVE_COLOURS = {f"#fe000{i}": f"var(--curve-{i})" for i in (1, 2, 3)}
INK_COLOURS = {"#fe0010": "var(--dim)", "#fe0011": "var(--rule)"}


@dataclass(frozen=True)
class Chart:
    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]  # (colour, label)
    window: int  # steps that a point of the bold curve is the mean of


Spans = tuple[tuple[bool, str], ...]  # (is thinking, text)


@dataclass(frozen=True)
class Attempt:
    verdict: str
    turns: tuple[tuple[Spans, tuple[tuple[str, str], ...]], ...]  # (what the policy wrote, the (role, text) behind it)
    reward: str
    parts: tuple[tuple[str, str], ...]
    length: int
    finish: str


@dataclass(frozen=True)
class Example:
    task: str
    messages: tuple[tuple[str, str], ...]  # (role, text)
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class StageSection:
    """What the page shows of a stage that trained."""

    name: str
    kind: str
    charts: tuple[Chart, ...]
    examples: tuple[tuple[int, tuple[Example, ...]], ...]  # (step, its examples), early and late


def write_report(run_dir: Path, home: Home, summary: Mapping[str, Any], stage_keys: Mapping[str, str]) -> None:
    """Writes `report.html` into `run_dir`: one page that needs nothing from outside; same data, same bytes.

    Args:
        summary: what the run recorded of itself and of each stage, as in `summary.json`.
        stage_keys: the ledger's key of each stage's steps, by the stage's name.
    """
    template = files("reasonmill.mill").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        name=summary["name"],
        facts=_facts(summary),
        unrepeatable=[stage["name"] for stage in summary["stages"] if not stage["repeatable"]],
        overview=read_stages(summary),
        results=read_results(summary),
        sections=[_section(home, stage, stage_keys[stage["name"]], summary["name"]) for stage in summary["stages"]],
        adopted=_adopted(summary),
        stages=[
            {**stage, "time": format_duration(stage["seconds"]), "standing": _standing(stage)}
            for stage in summary["stages"]
        ],
    )
    replace_file(run_dir / PAGE, page.encode())


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    stages = summary["stages"]
    return [
        ("seed", str(summary["seed"])),
        ("time", format_duration(sum(stage["seconds"] for stage in stages))),
        ("tokens", f"{sum(stage['tokens'] for stage in stages):,}"),
        ("machine", str(summary["machine"])),
        ("threads", str(summary["threads"])),
        *((library, str(summary[library])) for library in ("reasonmill", "torch", "transformers")),
    ]


def _adopted(summary: Mapping[str, Any]) -> list[str]:
    """A line for each stage whose result was adopted from other code, or made from one that was."""
    lines = []
    for stage in summary["stages"]:
        origin = stage["adopted"]
        if origin:
            version = f"reasonmill {origin['reasonmill']}" if origin["reasonmill"] else "a version that is not recorded"
            lines.append(
                f"{stage['name']}: made by {version} under the key {origin['key'][:12]}, adopted at "
                f"{origin['adopted_at']} by {origin['adopted_by']}"
            )
        if stage["made_from_adopted"]:
            lines.append(f"{stage['name']}: made from adopted {', '.join(stage['made_from_adopted'])}")
    return lines


def _standing(stage: Mapping[str, Any]) -> str:
    if stage["adopted"]:
        return "adopted"
    return "cached" if stage["cached"] else ""


def _section(home: Home, stage: Mapping[str, Any], key: str, salt: str) -> StageSection:
    steps = home.ledger.metrics(key)
    charts = (
        _chart(title, anchors, curves, steps, salt=f"{salt}/{stage['name']}/{title}")
        for title, anchors, curves in CHARTS
    )
    return StageSection(
        name=stage["name"],
        kind=stage["kind"],
        charts=tuple(chart for chart in charts if chart is not None),
        examples=tuple(_early_and_late(home, key, [row["step"] for row in steps])),
    )


def _chart(
    title: str,
    anchors: Sequence[float],
    curves: Iterable[tuple[str, str]],
    rows: Sequence[Mapping[str, Any]],
    *,
    salt: str,
) -> Chart | None:
    """A chart of the curves that the stage reported; None where it reported none of them."""
    drawn = []
    for (metric, label), colour in zip(curves, CURVE_COLOURS, strict=False):
        points = [(row["step"], float(row[metric])) for row in rows if row.get(metric) is not None]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if points:
            drawn.append((label, colour, points))
    if not drawn:
        return None
    longest = max(len(points) for _, _, points in drawn)
    window = 2 * (longest // SMOOTH_FROM) + 1 if longest >= SMOOTH_FROM else 1
    legend = tuple((CURVE_COLOURS[colour], label) for label, colour, _ in drawn)
    svg = _draw([(colour, points) for _, colour, points in drawn], anchors, window, salt)
    return Chart(title, _inline(svg, title), legend, window)


def _draw(
    curves: Iterable[tuple[str, list[tuple[int, float]]]],
    anchors: Sequence[float],
    window: int,
    salt: str,
) -> str:
    ink, rule = INK_COLOURS
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user must not change the page
        matplotlib.rc("svg", fonttype="none", hashsalt=salt)
        matplotlib.rc("font", size=8)
        matplotlib.rc("xtick", color=ink)
        matplotlib.rc("ytick", color=ink)
        matplotlib.rc("axes", labelcolor=ink)
        figure = Figure(figsize=(3.2, 1.9))
        axes = figure.add_axes((0.12, 0.2, 0.86, 0.76))
        for colour, points in curves:
            steps, values = zip(*points, strict=True)
            means, edge = _moving_mean(values, window), window // 2
            if window > 1:
                axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.45)
            marker = "o" if len(points) == 1 else ""
            middle = steps[edge : len(steps) - edge]
            axes.plot(middle, means, color=colour, linewidth=1.6, marker=marker, markersize=3)
        bottom, top = axes.get_ylim()
        axes.set_ylim(min([bottom, *anchors]), max([top, *anchors]))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(rule)
        axes.grid(axis="y", color=rule, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("step", loc="right", labelpad=2)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
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


def _early_and_late(home: Home, key: str, steps: Sequence[int]) -> Iterable[tuple[int, tuple[Example, ...]]]:
    """Examples of the first and of the last step whose groups are there and whole."""
    for step, path in dict.fromkeys([*_first_sound(home, key, steps), *_first_sound(home, key, steps[::-1])]):
        yield step, tuple(_example(group) for group in _telling_groups(read_groups(path / GROUPS_FILE)))


def _first_sound(home: Home, key: str, steps: Iterable[int]) -> list[tuple[int, Path]]:
    """The first of the steps whose groups can be read, and where they are; an empty list if there is none."""
    for step in steps:
        digest = home.ledger.step_groups(key, step)
        if digest is not None:
            path = home.objects.sound_path(
                digest, instead="the report shows another step until the recipe is run again"
            )
            if path is not None:
                return [(step, path)]
    return []


def _telling_groups(groups: Sequence[Group]) -> list[Group]:
    """A few groups to show: first those with right and wrong attempts, and each task before a task's second."""
    verdicts = [{_verdict(rollout) for rollout in group.rollouts} for group in groups]
    contrasted = [group for group, seen in zip(groups, verdicts, strict=True) if {"correct", "wrong"} <= seen]
    others = [group for group, seen in zip(groups, verdicts, strict=True) if not {"correct", "wrong"} <= seen]
    turns: dict[str, int] = {}
    ranked = []
    for group in [*contrasted, *others]:
        turn = turns.get(group.problem.task, 0)
        turns[group.problem.task] = turn + 1
        ranked.append((turn, group))
    return [group for _, group in sorted(ranked, key=lambda pair: pair[0])[:PROBLEMS_SHOWN]]


def _example(group: Group) -> Example:
    """One typical right attempt and one typical wrong one, as far as the group has them."""
    by_verdict: dict[str, list[Rollout]] = {}
    for rollout in group.rollouts:
        by_verdict.setdefault(_verdict(rollout), []).append(rollout)
    attempts = [_attempt(v, _typical(by_verdict[v])) for v in ("correct", "wrong", "not graded") if v in by_verdict]
    messages = tuple((message.role, message.content) for message in group.problem.messages)
    return Example(group.problem.task, messages, tuple(attempts[:2]))


def _verdict(rollout: Rollout) -> str:
    if rollout.grade.reward is None:
        return "not graded"
    return "correct" if rollout.grade.parts.get("accuracy", 0.0) >= 1.0 else "wrong"


def _typical(rollouts: Sequence[Rollout]) -> Rollout:
    """The rollout of median length."""
    return sorted(rollouts, key=lambda rollout: rollout.completion.num_sampled)[(len(rollouts) - 1) // 2]


def _attempt(verdict: str, rollout: Rollout) -> Attempt:
    grade, completion = rollout.grade, rollout.completion
    answers = [tuple((message.role, message.content) for message in reply.messages) for reply in rollout.replies]
    return Attempt(
        verdict=verdict,
        turns=tuple(
            (tuple(thinking_spans(text)), answer) for text, answer in zip(rollout.texts, [*answers, ()], strict=True)
        ),
        reward=grade.error if grade.reward is None else f"{grade.reward:.2f}",
        parts=tuple((name, f"{value:.2f}") for name, value in sorted(grade.parts.items())),
        length=completion.num_sampled,
        finish=completion.finish,
    )


def thinking_spans(text: str) -> list[tuple[bool, str]]:
    """The text in order as (is thinking, span), tags with the thinking; unclosed thinking reaches to the end."""
    before, opened, after = text.partition(THINK_OPEN)
    if not opened and THINK_CLOSE in text:
        before, after = "", text  # the opening tag was part of the prompt
    thinking, closed, rest = after.partition(THINK_CLOSE)
    spans = [(False, before), (True, opened + thinking + closed), (False, rest)]
    return [(is_thinking, span) for is_thinking, span in spans if span]
