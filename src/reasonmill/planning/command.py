"""What the command `plan` does and shows, once the command line has put the parts together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reasonmill.errors import StoreError
from reasonmill.history import note_on, table_of
from reasonmill.mill.display import format_duration, output_console
from reasonmill.mill.planning import PlannedStage
from reasonmill.mill.planning import plan as what_would_run
from reasonmill.peak_memory import used_bytes
from reasonmill.placement import Backend
from reasonmill.planning.costs import Cost, total
from reasonmill.planning.forecast import Forecast, Machine, forecast
from reasonmill.planning.measuring import Measurements
from reasonmill.planning.past import past_errors
from reasonmill.recipe.graph import Recipe
from reasonmill.store.home import Home, is_new
from reasonmill.store.plans import KeptPlans, read_plans, write_plans


def plan_recipe(
    recipe: Recipe,
    home: Path,
    until: str | None,
    backend: Backend,
    *,
    price_per_hour: float | None,
    as_json: bool,
    note: Callable[[str], None],
) -> None:
    """Plans a recipe on this machine, keeps the plan in the home, and prints it.

    Args:
        price_per_hour: of one device; None leaves the money out.
        note: reports what is being measured.
    """
    nodes = recipe.up_to(until)
    device, devices = backend.placement.device, backend.placement.count
    with _home_to_plan_in(home, note) as opened:
        planned = what_would_run(recipe, opened, until)
        kept = read_plans(opened.path) if opened else KeptPlans()
        artifacts = {stage.name: stage.artifact for stage in planned if stage.artifact is not None}
        process = used_bytes("cpu") or 0
        measurements = Measurements(recipe, backend, opened, artifacts, dict(kept.measured), note, process)
        try:
            found = forecast(nodes, planned, measurements, Machine.here(device, devices, price_per_hour))
        finally:
            measurements.close()
        if opened is not None and opened.is_writable:
            after = replace(kept, measured=measurements.kept)
            for made in found.plans:
                after = after.with_plan(made)
            if after != kept:
                write_plans(opened.path, after)
    shown = {stage.name: stage for stage in planned}
    if as_json:
        print(json.dumps(_as_json(shown, found, kept), indent=2, ensure_ascii=False))
    else:
        _print(recipe, shown, found, kept, has_price=price_per_hour is not None)


@contextmanager
def _home_to_plan_in(path: Path, note: Callable[[str], None]) -> Iterator[Home | None]:
    """The home, for writing if it can be: a plan is made beside a run, too, and is not kept then."""
    try:
        home = Home.open(path)
    except StoreError as error:
        note(f"the plan is not kept: {error.what}")
        if is_new(path):
            yield None
            return
        home = Home.open(path, write=False)
    with home:
        yield home


def _as_json(stages: Mapping[str, PlannedStage], found: Forecast, kept: KeptPlans) -> dict[str, Any]:
    return {
        "stages": [
            {
                "name": name,
                "kind": stage.kind,
                "would_be": stage.status,
                "likely": asdict(found.likely[name]) if name in found.likely else None,
                "at_most": asdict(found.most[name]) if name in found.most else None,
                "response_tokens": found.lengths[name].mean if name in found.lengths else None,
                "lengths_from": found.lengths[name].source if name in found.lengths else None,
            }
            for name, stage in stages.items()
        ],
        "total": {"likely": asdict(total(found.likely.values())), "at_most": asdict(total(found.most.values()))},
        "past_plans": past_errors(kept.plans),
    }


def _print(
    recipe: Recipe, stages: Mapping[str, PlannedStage], found: Forecast, kept: KeptPlans, *, has_price: bool
) -> None:
    columns = ["stage", "kind", "would be", "tokens (at most)", "time (at most)", "memory (at most)", "disk"]
    table = table_of(f"{recipe.name}, seed {recipe.seed}", *columns, *(["money (at most)"] if has_price else []))
    for name, stage in stages.items():
        cells: tuple[str, ...] = ()
        if name in found.likely:
            cells = _cells(found.likely[name], found.most[name], has_price=has_price)
        table.add_row(name, stage.kind, would_be(stage), *cells)
    whole = _cells(total(found.likely.values()), total(found.most.values()), has_price=has_price)
    table.add_row("total", "", "", *whole)
    console = output_console()
    console.print(table)
    for line in _notes(recipe, stages, found):
        note_on(console, line)
    note_on(console, past_errors(kept.plans))
    for name, cost in found.likely.items():
        if cost.fix:
            note_on(console, f"does not fit into the memory: {name}\n  fix:   {cost.fix}", style="yellow")
        elif fix := found.most[name].fix:
            said = f"does not fit into the memory where texts are as long as they may be: {name}\n  fix:   {fix}"
            note_on(console, said, style="yellow")


def _notes(recipe: Recipe, stages: Mapping[str, PlannedStage], found: Forecast) -> Iterator[str]:
    yield from (stage.note for stage in stages.values() if stage.note)
    sources: dict[str, list[str]] = {}
    for name, lengths in found.lengths.items():
        sources.setdefault(lengths.source, []).append(f"{name} {lengths.mean:.0f}")
    for source, listed in sources.items():
        yield f"tokens of a response, from {source}: {', '.join(listed)}"
    unknown: dict[str, list[str]] = {}
    for name, cost in found.likely.items():
        for what in cost.unknown:
            unknown.setdefault(what, []).append(name)
    for what, named in unknown.items():
        yield f"not known: {what} ({', '.join(named)})"
    outside = [name for name, cost in found.likely.items() if cost.seconds is None]
    if outside:
        yield f"not in the total: {', '.join(outside)}"
    absent = not_downloaded(recipe)
    if absent:
        yield f"still to be downloaded: {', '.join(absent)}"


def not_downloaded(recipe: Recipe) -> list[str]:
    """The recipe's models of the hub that are not on this machine."""
    return [model.hub for model in recipe.models.values() if model.hub and not model.directory.is_dir()]


def would_be(stage: PlannedStage) -> str:
    """What a run would do with a stage, in words."""
    if stage.waits_for:
        return f"{stage.status} until {', '.join(stage.waits_for)} exists"
    return stage.status if stage.resumes_at is None else f"{stage.status}, resumes at step {stage.resumes_at}"


def show_what_would_run(recipe: Recipe, home: Path, until: str | None) -> None:
    """What a run would do; nothing is written, and a home that does not exist is not made."""
    if is_new(home):
        planned = what_would_run(recipe, None, until)
    else:
        with Home.open(home, write=False) as opened:
            planned = what_would_run(recipe, opened, until)
    table = table_of(f"{recipe.name}, seed {recipe.seed}", "stage", "kind", "would be")
    for stage in planned:
        table.add_row(stage.name, stage.kind, would_be(stage))
    console: Console = output_console()
    console.print(table)
    for stage in planned:
        if stage.note:
            note_on(console, stage.note)
    absent = not_downloaded(recipe)
    if absent:
        note_on(console, f"still to be downloaded: {', '.join(absent)}")


def _cells(likely: Cost, most: Cost, *, has_price: bool) -> tuple[str, ...]:
    """A row's figures; a question mark for what is not known."""
    cells = [
        _range(_count, likely.tokens, most.tokens),
        _range(format_duration, likely.seconds, most.seconds),
        _range(_size, likely.memory_bytes, most.memory_bytes),
        "?" if likely.disk_bytes is None else _size(likely.disk_bytes),
    ]
    if has_price:
        cells.append(_range(_money, likely.money, most.money))
    return tuple(cells)


def _range(shown: Callable[[float], str], likely: float | None, most: float | None) -> str:
    return "?" if likely is None or most is None else f"{shown(likely)} ({shown(most)})"


def _count(number: float) -> str:
    """1234567 as "1.2M"."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{unit}" if number < 10 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}"


def _money(amount: float) -> str:
    return f"{amount:,.2f}"


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
