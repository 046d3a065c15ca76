"""The command `compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from reasonmill.algo.differences import POWER
from reasonmill.errors import RecipeError
from reasonmill.evaluation.comparing import GAINS, Compared, compare_sources
from reasonmill.evaluation.sources import read_source
from reasonmill.history import note_on, note_to_user, table_of
from reasonmill.options import DEFAULT_HOME, HomeOption, JsonOption

_STYLES = {"better": "bold green", "worse": "bold red"}
_SHOWN_CHARACTERS = 70


def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help="Evaluations: a run's name, run/stage, a digest, groups.parquet, or a log of another program.",
        ),
    ],
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="What of a log counts as right; its first.")
    ] = None,
    every_pair: Annotated[bool, typer.Option("--all", help="Compare all with each other, not only with A.")] = False,
    alpha: Annotated[float, typer.Option("--alpha", min=1e-6, max=0.5, help="Level of the tests.")] = 0.05,
    gain: Annotated[
        list[float] | None,
        typer.Option("--gain", min=0.001, max=1, help="A true difference for which the power is said; repeatable."),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Problems that changed most, of each comparison.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws of tests and bootstrap.")] = 0,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Says whether models differ, from evaluations of the same problems; logs of lm-evaluation-harness and inspect_ai
    are read, too."""
    if len(evaluations) < 2:
        raise RecipeError("one evaluation is compared with nothing", fix="name two, or more")
    twice = [text for text in dict.fromkeys(evaluations) if evaluations.count(text) > 1]
    if twice:
        raise RecipeError(f"{twice[0]} is named twice", fix="name each evaluation once")
    sources = [read_source(text, home, metric, note_to_user) for text in evaluations]
    found = compare_sources(sources, alpha=alpha, seed=seed, gains=gain or GAINS, every_pair=every_pair)
    if as_json:
        told = {"alpha": alpha, "seed": seed, "comparisons": [one.as_json(alpha) for one in found]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    _print(found, alpha, show)


def _print(found: Sequence[Compared], alpha: float, show: int) -> None:
    from reasonmill.mill.display import output_console

    console = output_console()
    for first, second in dict.fromkeys((one.first, one.second) for one in found):
        rows = [one for one in found if (one.first, one.second) == (first, second)]
        table = table_of(
            f"{second} against {first}", "task", "problems", "first", "second", "difference", "95 %", "p", ""
        )
        for one in rows:
            table.add_row(*_row(one, alpha))
        console.print(table)
        for one in rows:
            for line in _lines(one, len(found) > 1):
                note_on(console, line)
        _show_changed(console, rows, show)
    if len(found) > 1:
        note_on(console, f"p: of the sign-flip test, raised for {len(found)} tests by Holm's method")


def _row(one: Compared, alpha: float) -> tuple[str | Text, ...]:
    found, says = one.difference.found, one.says(alpha)
    change = found.difference
    return (
        one.task,
        f"{found.problems:,}",
        f"{100 * found.parent:.1f}%",
        f"{100 * found.candidate:.1f}%",
        f"{100 * change.value:+.1f}",
        f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
        _p(one.p_holm),
        Text(says, style=_STYLES.get(says, "dim")),
    )


def _lines(one: Compared, is_raised: bool) -> list[str]:
    """What else is to be said of a comparison."""
    mcnemar = one.difference.mcnemar
    tests = [f"sign-flip p = {_p(one.difference.p_value)}"] if is_raised else []
    if mcnemar is not None:
        tests.append(f"McNemar +{mcnemar.gained} -{mcnemar.lost}, p = {_p(mcnemar.p_value)}")
    low, high = one.difference.bootstrap.low, one.difference.bootstrap.high
    tests.append(f"bootstrap {100 * low:+.1f} to {100 * high:+.1f}")
    told = [f"{one.task}: {'; '.join(tests)}"]
    powers = [f"{100 * gain:g} points {100 * power:.0f} %" for gain, power in one.power.items() if power is not None]
    if powers:
        told.append(f"  a true gain would be seen: {', '.join(powers)}{_needed(one)}")
    else:
        told.append("  no problem differs, so that nothing is known of what would be seen")
    if one.alone:
        told.append(f"  left out: {one.alone:,} problems that only one was asked, or without a graded answer of one")
    if any(one.ungraded):
        told.append(f"  not graded, and left out: {100 * one.ungraded[0]:.1f} % and {100 * one.ungraded[1]:.1f} %")
    return told


def _needed(one: Compared) -> str:
    if one.needed is None:
        return ""
    seen = 100 * one.difference.found.difference.value
    return f"; to see {seen:+.1f} points with {100 * POWER:.0f} %: {one.needed:,} problems"


def _show_changed(console: Console, rows: Sequence[Compared], show: int) -> None:
    for one in rows if len(rows) == 1 else rows[:-1]:  # and not all tasks together
        better = sum(changed.second > changed.first for changed in one.changed)
        same = one.difference.found.problems - len(one.changed)
        note_on(console, f"{one.task}: better on {better}, worse on {len(one.changed) - better}, the same on {same}")
        for changed in one.changed[:show]:
            prompt = " ".join(changed.prompt.split())
            shown = prompt if len(prompt) <= _SHOWN_CHARACTERS else f"{prompt[:_SHOWN_CHARACTERS]} ..."
            note_on(
                console, f"  {100 * changed.first:3.0f}% -> {100 * changed.second:3.0f}%  {changed.problem}  {shown}"
            )


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"
