"""The soak: hours of back-to-back tiny runs with random faults, while memory and open files must stay flat.

    PYTHONPATH=tests python -m chaos.soak --minutes 120 --csv soak.csv --plot docs/images/soak.svg

Every run gets one to three faults, and then the chance to end: a kill (a child of the nursery dies at a random time),
a termination, a full disk, writes that are cut short, or the loss of a finished stage's object. All but the kill happen
in one process, the worker, which runs the product's code from the first run to the last. A second call with the same
file goes on where the first one stopped. Linux only: what processes hold is read from /proc.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from chaos.kill_matrix import NAMES, Place, has_ledger, nurseries, run_uninterrupted
from chaos.nursery import Nursery
from chaos.outcome import differences
from chaos.soak_verdict import Sample, Verdict, plot
from chaos.soak_worker import FAULTS, Worker
from reasonmill.randomness import generator
from reasonmill.store.home import Home

KINDS = ("kill", "term", "full", "short", "lost")
MOST_FAULTS = 3


@dataclass(frozen=True)
class Soaked:
    """What came of one run."""

    faults: list[str]
    differences: list[str]


class Soak:
    """The processes of a soak, and what its runs are compared with."""

    def __init__(self, directory: Path, nursery: Nursery) -> None:
        self._place = Place(directory / "run")
        self._nursery = nursery
        references = {name: Place(directory / "references" / name) for name in NAMES}
        self._references = {name: run_uninterrupted(nursery, place, name) for name, place in references.items()}
        self.worker = Worker(self._place.states)

    def run(self, number: int) -> Soaked:
        """One run with its faults; what it wrote is removed afterwards."""
        chance = generator("soak", number)
        recipe = NAMES[number % len(NAMES)]
        faults = chance.choices(KINDS, k=chance.randint(1, MOST_FAULTS))
        found: list[str] = []
        for fault in faults:
            found += self._start(recipe, fault, chance.random())
        found += self._start(recipe, "none", 0.0)
        found += differences(self._references[recipe].outcome, self._place.outcome()) if not found else []
        if found:
            print(f"run {number} ({recipe}, {', '.join(faults)}):", *found, self._place.said(), sep="\n  ", flush=True)
        shutil.rmtree(self._place.directory)
        return Soaked(faults, found)

    def _start(self, recipe: str, fault: str, place: float) -> list[str]:
        """One start with one fault; returns what went otherwise than the fault allows."""
        order = self._place.order(recipe)
        reference = self._references[recipe]
        expected_s = reference.remaining_s(reference.done_s(self._place.home))
        if fault == "kill":
            child = self._nursery.start(order)
            if child.wait(place * expected_s) is None:
                child.kill()
            return []
        if fault == "lost":
            self._lose_an_object(place)
            fault = "none"
        code = self.worker.run(order, fault, place, expected_s)
        _, allowed = FAULTS[fault]
        return [] if code in allowed else [f"a start with the fault {fault!r} ended with exit code {code}"]

    def _lose_an_object(self, place: float) -> None:
        """Removes the object of a finished stage, if there is one."""
        if not has_ledger(self._place.home):
            return
        with Home.open(self._place.home, write=False) as home:
            stages = [home.ledger.stage(stage.key) for run in home.ledger.runs() for stage in run.stages]
            made = sorted({record.artifact.digest for record in stages if record is not None})
        if made:
            shutil.rmtree(self._place.home / "objects" / made[int(place * len(made))], ignore_errors=True)

    def close(self) -> None:
        self.worker.close()


# What processes hold


def held(pid: int) -> tuple[float, int]:
    """Resident memory in MB and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold anything; the parent is the second word after it.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended this moment
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def held_by_all(pids: list[int]) -> tuple[float, int]:
    """The sums over processes; one that ends meanwhile holds nothing."""
    megabytes, files = 0.0, 0
    for pid in pids:
        try:
            own = held(pid)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue
        megabytes, files = megabytes + own[0], files + own[1]
    return megabytes, files


# The record


def read_samples(path: Path) -> list[Sample]:
    """What earlier calls wrote; nothing where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [Sample.read(row) for row in csv.DictReader(file)]


def append_sample(path: Path, sample: Sample) -> None:
    """Adds a row to the file, and the header where it is new."""
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)])
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(sample))


def soak(minutes: float, path: Path) -> Iterator[Sample]:
    """Runs until the file has samples of so many minutes; yields them as they are written."""
    earlier = read_samples(path)
    session = earlier[-1].session + 1 if earlier else 1
    number = earlier[-1].run + 1 if earlier else 0
    before = earlier[-1].minutes if earlier else 0.0
    with tempfile.TemporaryDirectory() as directory, nurseries(1) as (nursery,):
        running = Soak(Path(directory), nursery)
        try:
            began, now = time.monotonic(), before
            while now < minutes:
                soaked = running.run(number)
                now = before + (time.monotonic() - began) / 60
                worker_mb, worker_files = held(running.worker.pid)
                tree_mb, tree_files = held_by_all(tree(os.getpid()))
                sample = Sample(
                    session=session,
                    run=number,
                    minutes=round(now, 4),
                    recipe=NAMES[number % len(NAMES)],
                    faults=" ".join(soaked.faults),
                    differences=len(soaked.differences),
                    worker_mb=round(worker_mb, 2),
                    worker_files=worker_files,
                    tree_mb=round(tree_mb, 2),
                    tree_files=tree_files,
                )
                append_sample(path, sample)
                yield sample
                number += 1
        finally:
            running.close()


def main() -> int:
    """Soaks, says once a minute how it goes, and gives the verdict; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Back-to-back runs with random faults; memory must stay flat.")
    parser.add_argument("--minutes", type=float, default=120, help="of all calls with this file together")
    parser.add_argument("--csv", type=Path, required=True, help="one row a run; goes on where it stops")
    parser.add_argument("--plot", type=Path, help="the picture that is drawn at the end")
    options = parser.parse_args()
    samples = read_samples(options.csv)
    said = int(samples[-1].minutes) if samples else 0
    for sample in soak(options.minutes, options.csv):
        samples.append(sample)
        if int(sample.minutes) > said:
            said = int(sample.minutes)
            print(progress(samples), flush=True)
    verdict = Verdict(samples)
    print(progress(samples), *verdict.lines(), sep="\n")
    if options.plot is not None:
        plot(samples, options.plot)
    return int(not verdict.holds)


def progress(samples: list[Sample]) -> str:
    """The figures so far in one line."""
    last = samples[-1]
    counts: Mapping[str, int] = Counter(fault for sample in samples for fault in sample.faults.split())
    faults = ", ".join(f"{kind} {counts[kind]}" for kind in KINDS if kind in counts)
    return (
        f"{last.minutes:.1f} min: {len(samples)} runs, faults: {faults}; "
        f"{sum(sample.differences for sample in samples)} differences; "
        f"worker {last.worker_mb:.0f} MB, {last.worker_files} files; "
        f"all {last.tree_mb:.0f} MB, {last.tree_files} files"
    )


if __name__ == "__main__":
    sys.exit(main())
