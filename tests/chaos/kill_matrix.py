"""The kill matrix: runs that are killed again and again must end like a run that never was.

    PYTHONPATH=tests python -m chaos.kill_matrix --seed 17     # one run again, with what it says
    PYTHONPATH=tests python -m chaos.kill_matrix --runs 200
    PYTHONPATH=tests python -m chaos.kill_matrix --runs 40 --device cuda --jobs 8

The seed of a run decides its recipe and, as shares of what is left to do, the times of its kills.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from chaos.nursery import TIMED_OUT_S, Nursery, Order
from chaos.outcome import Committed, Outcome, differences, read_committed, read_outcome
from reasonmill.randomness import generator
from reasonmill.store.home import Home
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_backup import LEDGER

RECIPES = Path(__file__).parent / "recipes"
NAMES = ("grown", "reasoned", "taught")
# On a GPU without "grown", whose workers can't be forked there and take most of the time to start; and longer texts.
NAMES_ON = {"cpu": NAMES, "cuda": ("reasoned", "taught", "drawn_out")}
KILLS = (2, 3)  # fewest and most kills that a run is in for


@dataclass(frozen=True)
class Place:
    """Where a run lives: its home, the digests of its states, and what its starts said; and what it computes on."""

    directory: Path
    device: str = "cpu"

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def states(self) -> Path:
        return self.directory / "states"

    def order(self, recipe: str, *more: str, sabotage: str | None = None, dies_after: int | None = None) -> Order:
        """An order to run a recipe here."""
        self.states.mkdir(parents=True, exist_ok=True)
        path = str(RECIPES / f"{recipe}.toml")
        arguments = ("run", path, "--home", str(self.home), "--device", self.device, *more)
        return Order(arguments, str(self.states), str(self.directory / "log"), sabotage, dies_after)

    def said(self) -> str:
        """The last of what the starts said."""
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def outcome(self) -> Outcome:
        return read_outcome(self.home, self.states)


@dataclass
class Reference:
    """An uninterrupted run: its end, how long it took, and how long each of its stages.

    `pace` is how much of the expected time the last run took: the machine may be busier than before, or less.
    """

    outcome: Outcome
    seconds: float
    stage_seconds: Mapping[str, float]
    pace: float = 1.0

    def remaining_s(self, done_s: float) -> float:
        """Seconds that a run of the same recipe is expected to need for all but what took the reference `done_s`."""
        return self.pace * (self.seconds - done_s)

    def done_s(self, home_path: Path) -> float:
        """Seconds that the reference needed for what a run has done."""
        done = 0.0
        if has_ledger(home_path):
            with Home.open(home_path, write=False) as home:
                for stage in (stage for run in home.ledger.runs() for stage in run.stages):
                    if home.ledger.stage(stage.key) is not None:
                        done += self.stage_seconds[stage.name]
                    elif steps := len(self.outcome.steps[stage.name]):
                        done += self.stage_seconds[stage.name] * len(home.ledger.metrics(stage.key)) / steps
        return done

    def keep_pace(self, seconds: float, done_s: float) -> None:
        """Takes the pace of a run that did all but `done_s` in so many seconds; too little of a run tells nothing."""
        if self.seconds - done_s > self.seconds / 10:
            self.pace = seconds / (self.seconds - done_s)


@dataclass
class Report:
    """What came of one run: its kills (seconds after each start), and in what it differs from the reference."""

    seed: int
    recipe: str
    device: str = "cpu"
    kills: list[float] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    said: str = ""

    def __str__(self) -> str:
        times = ", ".join(f"{seconds:.3f}" for seconds in self.kills)
        lines = [f"seed {self.seed}: {self.recipe}, killed {len(self.kills)} times, {times} s after its starts"]
        if self.differences:
            lines += [f"  {line}" for line in self.differences]
            again = f"python -m chaos.kill_matrix --seed {self.seed} --device {self.device} --recipes {self.recipe}"
            lines += [f"  again: PYTHONPATH=tests {again}", self.said]
        return "\n".join(lines)


def has_ledger(home_path: Path) -> bool:
    """Whether a home was made; before its ledger has tables, there is nothing that could be read or lost."""
    return not Ledger.is_blank(home_path / LEDGER)


def recipe_of(seed: int, names: Sequence[str]) -> str:
    """The recipe of a run: each in turn."""
    return names[seed % len(names)]


def run_uninterrupted(
    nursery: Nursery, place: Place, recipe: str, *more: str, sabotage: str | None = None
) -> Reference:
    """The run that all others are compared with."""
    began = time.monotonic()
    code = nursery.run(place.order(recipe, *more, sabotage=sabotage))
    seconds = time.monotonic() - began
    assert code == 0, place.said()
    with Home.open(place.home, write=False) as home:
        stages = [stage for run in home.ledger.runs() for stage in run.stages]
        records = {stage.name: home.ledger.stage(stage.key) for stage in stages}
    stage_seconds = {name: record.seconds for name, record in records.items() if record is not None}
    return Reference(place.outcome(), seconds, stage_seconds)


def run_killed(nursery: Nursery, place: Place, seed: int, recipe: str, reference: Reference) -> Report:
    """Runs a recipe, kills its process group at random times, and starts it again until it is done."""
    report = Report(seed, recipe, place.device)
    planned = generator("kills", seed).randint(*KILLS)
    accepted = Committed()
    for start in itertools.count():
        done_s = reference.done_s(place.home)
        at = generator("kill", seed, start).random()
        after_s = at * reference.remaining_s(done_s) if start < planned else TIMED_OUT_S
        began = time.monotonic()
        child = nursery.start(place.order(report.recipe))
        code = child.wait(after_s)
        if code is None:
            code = child.kill()
            report.kills.append(after_s)
        elif code == 0:
            reference.keep_pace(time.monotonic() - began, done_s)
        if has_ledger(place.home):
            now = read_committed(place.home, accepted.keys)
            report.differences += (f"start {start + 1} lost the {what}" for what in accepted.missing_from(now))
            accepted = now
        if code == 0:
            report.differences += differences(reference.outcome, place.outcome())
            break
        if code != -signal.SIGKILL or start >= planned:
            report.differences.append(f"start {start + 1} ended with exit code {code} after {after_s:.1f} s at most")
            break
    if report.differences:
        report.said = place.said()
    return report


class Matrix:
    """Runs of all recipes, as many at a time as there are nurseries, and what they are compared with."""

    def __init__(
        self, directory: Path, nurseries: Sequence[Nursery], device: str = "cpu", names: Sequence[str] | None = None
    ) -> None:
        self._directory = directory
        self._nurseries = nurseries
        self._device = device
        self._names = names or NAMES_ON[device]
        self._references = {
            name: run_uninterrupted(nurseries[0], Place(directory / "references" / name, device), name)
            for name in self._names
        }

    def runs(self, seeds: Iterable[int]) -> Iterator[Report]:
        """The reports of the runs, as they come; what a run wrote is removed unless it differs."""
        free: SimpleQueue[Nursery] = SimpleQueue()
        for nursery in self._nurseries:
            free.put(nursery)

        def run(seed: int) -> Report:
            nursery, place = free.get(), Place(self._directory / f"run-{seed}", self._device)
            recipe = recipe_of(seed, self._names)
            try:
                report = run_killed(nursery, place, seed, recipe, self._references[recipe])
            finally:
                free.put(nursery)
            if not report.differences:
                shutil.rmtree(place.directory)
            return report

        with ThreadPoolExecutor(len(self._nurseries)) as pool:
            yield from pool.map(run, seeds)

    def machines(self) -> list[str]:
        """The classes of machines on which the references ran, as the product recorded them."""
        outcomes = [reference.outcome for reference in self._references.values()]
        return sorted({machine for each in outcomes for ran_on in each.machines.values() for machine in ran_on})


@contextmanager
def nurseries(jobs: int) -> Iterator[list[Nursery]]:
    """A nursery for each job."""
    with ExitStack() as stack, ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(Nursery) for _ in range(jobs)]  # each imports for seconds
        yield [stack.enter_context(nursery.result()) for nursery in started]


def main() -> int:
    """Runs the matrix, prints a line for each run and the sum; returns 1 if a run differs."""
    parser = argparse.ArgumentParser(description="Kills runs at random times and compares their ends.")
    parser.add_argument("--runs", type=int, default=200, help="how many, with the seeds 0, 1, 2, ...")
    parser.add_argument("--seed", type=int, help="this one run only")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--device", choices=NAMES_ON, default="cpu")
    parser.add_argument("--recipes", nargs="+", help="these only, without .toml; a seed means another run then")
    options = parser.parse_args()
    seeds = range(options.runs) if options.seed is None else [options.seed]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, nurseries(options.jobs) as started:
        matrix = Matrix(Path(directory), started, options.device, options.recipes)
        print("\n".join(matrix.machines()))
        reports = []
        for report in matrix.runs(seeds):
            reports.append(report)
            print(report, flush=True)
    print(summary(reports), f"{time.monotonic() - began:.0f} s")
    return int(any(report.differences for report in reports))


def summary(reports: Sequence[Report]) -> str:
    """The figures of the whole matrix in one line."""
    kills = sum(len(report.kills) for report in reports)
    bad = [report.seed for report in reports if report.differences]
    return f"{len(reports)} runs, {kills} kills, {len(bad)} runs that differ{f': seeds {bad}' if bad else ''}"


if __name__ == "__main__":
    sys.exit(main())
