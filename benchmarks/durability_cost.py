"""What it costs to never lose work: a tiny RL run with the store's fsyncs and without them, in one process.

A run is the RL stage of a recipe alone, in a new home. The runs come in pairs, one of each kind right after the other,
with fsyncs first and without first in turn. What counts is the time that runs with fsyncs spend in them and in the
ledger's commits, as a share of their wall time: that is measured operation by operation. The difference of a pair's
wall times holds costs that no operation shows, but also all that the machine does meanwhile, so it is printed beside.
Exit code 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sqlite3
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from seeds import Verdict, conclude, interval, number, print_json, say, write_recipe
from transformers.utils import logging

from reasonmill.algo.intervals import Estimate, clustered_mean
from reasonmill.backends.native import NativeBackend
from reasonmill.errors import ReasonmillError
from reasonmill.mill.pipeline import run_recipe
from reasonmill.placement import Placement
from reasonmill.recipe.load import load_recipe, shipped_recipes
from reasonmill.store import disk
from reasonmill.store.disk import Operation
from reasonmill.store.home import Home

COST_BAR = 0.03  # share of the wall time
# What waits for the disk; SQLite's waits are in the last five.
WAITING = ("fsync", "fsync directory", "start log", "commit", "commit unsynced", "empty log", "close")


@dataclass(frozen=True)
class Timed:
    """One run: seconds in all, seconds and number of each operation that waits, and the digest of what it made."""

    wall_s: float
    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    made: str | None

    @property
    def share(self) -> float:
        return math.fsum(self.seconds.values()) / self.wall_s


class _Silent:
    """Shows nothing of a run."""

    def begin(self, stage: str, total: int, unit: str) -> None: ...
    def advance(self, done: int, metrics: Mapping[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self, metrics: Mapping[str, object]) -> None: ...


def main() -> int:
    options = _parser().parse_args()
    logging.disable_progress_bar()  # transformers' own, for each model that is loaded
    options.home.mkdir(parents=True, exist_ok=True)
    stage = _stage(options.recipe, options.stage) | {"steps": options.steps, "state_every": options.state_every}
    recipe = options.home / "recipe.toml"
    write_recipe(recipe, "durability-cost", 0, [stage])
    say(f"{options.pairs} pairs of {options.steps} steps on {torch.get_num_threads()} threads; homes in {options.home}")
    say("warming up")
    _run(recipe, [*options.overrides, f"{options.stage}.steps=1"], durable=True)
    with_fsyncs: list[Timed] = []
    without: list[Timed] = []
    for pair in range(options.pairs):
        for durable in (True, False) if pair % 2 == 0 else (False, True):
            timed = _run(recipe, options.overrides, durable=durable)
            (with_fsyncs if durable else without).append(timed)
            kind = "with" if durable else "without"
            say(f"pair {pair + 1}, {kind:7}  {timed.wall_s:7.2f} s, {number(timed.share)} % in fsyncs and commits")
    if len({timed.made for timed in with_fsyncs + without}) != 1:
        raise SystemExit("the runs did not end in the same weights, so they did not do the same work")
    return _tell(with_fsyncs, without, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--home", type=Path, default=Path("mill/durability-cost"), help="directory of the homes")
    options.add_argument("--recipe", default="r1-zero-tiny", choices=shipped_recipes(), help="a shipped recipe")
    options.add_argument("--stage", default="zero", help="the RL stage of it that is run")
    options.add_argument("--steps", type=int, default=6, help="steps of the stage")
    options.add_argument("--state-every", type=int, default=3, help="steps between saved states")
    options.add_argument("--pairs", type=_two_or_more, default=5, help="runs of each kind, 2 at least")
    options.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="STAGE.KEY=VALUE", help="changes a setting"
    )
    options.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return options


def _two_or_more(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError("an interval needs two pairs at least")
    return int(text)


def _stage(recipe: str, name: str) -> dict[str, Any]:
    """The stage's settings as the recipe has them; it must read no other stage."""
    stages: list[dict[str, Any]] = tomllib.loads(shipped_recipes()[recipe].read_text(encoding="utf-8"))["stage"]
    for stage in stages:
        if stage["name"] == name:
            return stage
    raise SystemExit(f"recipe {recipe} has no stage {name!r}")


def _run(recipe_file: Path, settings: Sequence[str], *, durable: bool) -> Timed:
    """Times a run in a new home, which is removed."""
    recipe = load_recipe(str(recipe_file), settings)
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    home = Path(tempfile.mkdtemp(dir=recipe_file.parent))
    try:
        with _measured(seconds, counts, durable=durable):
            began = time.perf_counter()
            with Home.open(home / "home") as opened:
                backend = NativeBackend(Placement("cpu"))
                result = run_recipe(
                    recipe, opened, _Silent(), until=None, backend=backend, stop_requested=lambda: False
                )
            wall_s = time.perf_counter() - began
    finally:
        shutil.rmtree(home)
    return Timed(wall_s, seconds, counts, result.summary["model"])


@contextmanager
def _measured(seconds: dict[str, float], counts: dict[str, int], *, durable: bool) -> Iterator[None]:
    """Adds up what waits for the disk; if not `durable`, fsyncs are left out, SQLite's too."""

    def around(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.verb not in WAITING:
            perform()
            return
        if not durable and operation.verb.startswith("fsync"):
            return
        began = time.perf_counter()
        perform()
        seconds[operation.name] += time.perf_counter() - began
        counts[operation.name] += 1

    def begin_without(database: sqlite3.Connection, *, synced: bool) -> None:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN IMMEDIATE")

    right = disk.around, disk.begin
    disk.around = around
    if not durable:
        disk.begin = begin_without
    try:
        yield
    finally:
        disk.around, disk.begin = right


def _tell(with_fsyncs: Sequence[Timed], without: Sequence[Timed], *, as_json: bool) -> int:
    share = _mean([timed.share for timed in with_fsyncs])
    pairs = list(zip(with_fsyncs, without, strict=True))
    difference = _mean([(one.wall_s - other.wall_s) / other.wall_s for one, other in pairs])
    walls = {"with": _mean([one.wall_s for one, _ in pairs]), "without": _mean([other.wall_s for _, other in pairs])}
    verdict = Verdict(
        f"fsyncs and commits take at most {number(COST_BAR)} % of the wall time",
        share.high <= COST_BAR,
        f"{interval(share)} % of it; the paired difference of wall times is {interval(difference)} %",
    )
    if as_json:
        content = {
            "share": share.as_metric(),
            "difference": difference.as_metric(),
            "wall_s": {kind: found.as_metric() for kind, found in walls.items()},
            "runs": [
                {"wall_s": [one.wall_s, other.wall_s], "seconds": dict(one.seconds), "counts": dict(one.counts)}
                for one, other in pairs
            ],
        }
        return print_json(content, [verdict])
    print(f"{len(pairs)} pairs; means with their 95 % intervals over pairs\n")
    for kind, found in walls.items():
        print(f"wall time {kind:8} {interval(found, is_share=False):>24} s")
    print(f"\n{'of a run with fsyncs':48}{'number':>8}{'ms':>10}")
    names = {name for timed in with_fsyncs for name in timed.seconds}
    totals = {name: sum(timed.seconds.get(name, 0.0) for timed in with_fsyncs) / len(pairs) for name in names}
    for name in sorted(totals, key=lambda name: -totals[name]):
        count = sum(timed.counts.get(name, 0) for timed in with_fsyncs) / len(pairs)
        print(f"  {name:46}{count:8.0f}{1000 * totals[name]:10.1f}")
    print()
    return conclude([verdict])


def _mean(values: Sequence[float]) -> Estimate:
    return clustered_mean(values, range(len(values)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ReasonmillError as error:
        sys.exit(str(error))
