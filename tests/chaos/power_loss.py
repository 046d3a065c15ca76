"""Power cuts: every state in which a disk may be when the power goes, as far as fsyncs do not forbid it.

A recording layer over the store's operations. LazyFS, which drops pages that were never fsynced, needs FUSE, and
containers hardly ever have that; this needs nothing, and it can also reorder, which LazyFS does not.

The scenario runs once. For each moment between two operations `disk_model` gives the states that a power cut may leave:
all of them where few operations are pending, else none, all, each alone, all but each, and some that are drawn. Each is
looked at, and laid out in a directory where the run goes on from it.

    python -m chaos.power_loss [--long] [--every N] [--part K/N] [--controls]

prints one JSON object; `test_power_loss.py` reads it.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from chaos import condition, scenario
from chaos.crash_points import FAST, drawn, standing_in
from chaos.disk_model import Disk, Left, Moment, Tree, states
from chaos.recording import LEDGER_PATH, LOG_PATH, Recorder
from chaos.sabotage import REORDERED, Sabotage
from chaos.steady import groups_known
from reasonmill.store.commit import damaged_files
from reasonmill.store.home import OBJECTS
from reasonmill.store.ledger_backup import BACKUPS, LEDGER, SEAL
from reasonmill.store.objects import QUARANTINE
from reasonmill.store.plans import PLANS, KeptPlans, read_plans
from reasonmill.store.views import RUNS

NEVER = 1 << 60
CONTINUED_SHARE = 100  # the short form goes on from one state in so many
SECOND_CUT_SHARE = 16  # of the states from which the run goes on, the power goes once more after one in so many
SECOND_MOMENTS, SECOND_STATES = 3, 2  # moments when it goes, and states that are tried at each

Items = frozenset[tuple[str, bytes | None]]


class Judge:
    """Tells what is wrong with states, each only once; parts that states have in common are judged once, too."""

    def __init__(self, work: Path, recorder: Recorder, expected: list[condition.Contents]) -> None:
        self._base = work / "state"
        self._made = set(recorder.made)
        self._expected = expected
        self._judged: dict[object, list[str]] = {}
        self._ledgers: dict[tuple[bytes | None, bytes | None], tuple[condition.Rows, list[str]]] = {}
        self._objects: dict[tuple[str, Items], list[str]] = {}
        self._kept: dict[bytes, KeptPlans] = {}
        self.num_states = 0
        self.num_continued = 0
        self.num_second_cuts = 0

    def look(self, disk: Disk, moment: Moment, left: Left, *, continued_share: int) -> list[str]:
        """What is wrong with a state, and after the run went on from it, which it does from one in so many."""
        known = (moment.accepted, moment.ledger, moment.summaries, moment.put_aside, frozenset(left.tree.items()))
        if known not in self._judged:
            self.num_states += 1
            problems = condition.reported(partial(self._after_the_cut, disk, moment, left))
            if not problems and self.num_states % continued_share == 0:
                self.num_continued += 1
                problems = condition.reported(partial(self._continued, moment, left))
                if self.num_continued % SECOND_CUT_SHARE == 1:
                    problems = [*problems, *condition.reported(partial(self._cut_again, moment, left))]
            self._judged[known] = [f"power cut after {moment.after}: {problem}" for problem in problems]
        return self._judged[known]

    def _after_the_cut(self, disk: Disk, moment: Moment, left: Left) -> Iterator[str]:
        found = self._contents(left.tree)
        yield from condition.wrong(found)
        if found.rows not in [state.rows for state in disk.ledger[moment.accepted :]]:
            yield "the ledger lacks what it had accepted, or has what it had not"
        promised, newest = moment.summaries
        if found.views.get(f"{scenario.RUN}/{scenario.SUMMARY}") not in disk.summaries[promised : newest + 1]:
            yield "the summary is not the one that was promised, or a newer one"
        for name in sorted(moment.put_aside):
            if f"{scenario.PLACE}/{QUARANTINE}/{name}" not in left.tree:
                yield f"{name} is not in the quarantine any more"

    def _contents(self, tree: Tree) -> condition.Contents:
        rows, row_damage = self._ledger(tree.get(LEDGER_PATH), tree.get(LOG_PATH))
        places = _places(tree)
        quarantined = [data for data in places.get(QUARANTINE, {}).values() if data is not None]
        return condition.Contents(
            rows,
            tree.get(LEDGER_PATH),
            tree.get(LOG_PATH),
            tree.get(f"{scenario.PLACE}/{SEAL}"),
            row_damage,
            self._objects_of(places.get(OBJECTS, {})),
            self._objects_of(places.get(BACKUPS, {})),
            {
                name: data
                for name, data in places.get(RUNS, {}).items()
                if not name.startswith(".") and "/." not in name
            },
            self._plans(tree.get(f"{scenario.PLACE}/{PLANS}")),
            {scenario.content_digest(data) for data in quarantined},
            [mark for name, data in tree.items() if "/" not in name for mark in condition.marks_in(data)],
        )

    def _plans(self, plans: bytes | None) -> KeptPlans | None:
        if plans is None:
            return None
        if plans not in self._kept:
            with self._laid_out({PLANS: plans}) as directory:
                self._kept[plans] = read_plans(directory)
        return self._kept[plans]

    def _ledger(self, ledger: bytes | None, log: bytes | None) -> tuple[condition.Rows, list[str]]:
        if (ledger, log) not in self._ledgers:
            files = {name: data for name, data in ((LEDGER, ledger), (condition.LOG, log)) if data is not None}
            with self._laid_out(files) as directory:
                self._ledgers[ledger, log] = condition.look_at_ledger(directory)
        return self._ledgers[ledger, log]

    def _objects_of(self, files: Tree) -> dict[str, list[str]]:
        objects: dict[str, Tree] = {}
        for path, data in files.items():
            name, _, below = path.partition("/")
            objects.setdefault(name, {})
            if below:
                objects[name][below] = data
        return {name: self._damaged(name, below) for name, below in objects.items()}

    def _damaged(self, name: str, files: Tree) -> list[str]:
        known = (name, frozenset(files.items()))
        if known not in self._objects:
            with self._laid_out(files) as directory:
                self._objects[known] = damaged_files(directory, name)
        return self._objects[known]

    def _continued(self, moment: Moment, left: Left) -> Iterator[str]:
        parts, expected = range(moment.part, moment.part + 1), self._expected[moment.part]
        with self._laid_out(left.tree) as base:
            yield from condition.continued(base / scenario.PLACE, parts, expected, frozenset(self._made))

    def _cut_again(self, moment: Moment, left: Left) -> Iterator[str]:
        """What is wrong if the power goes once more while the run goes on from a state, at some moments of that."""
        with self._laid_out(left.tree) as base:
            recorder = Recorder(base, moment.part)
            for name in left.tree:
                recorder.rot(base / name)  # by now it is certain
            with standing_in(recorder):
                scenario.carry_out(base / scenario.PLACE, range(moment.part, moment.part + 1), recorder.rot)
        self._made |= recorder.made
        disk = Disk(recorder.events, recorder.ledger)
        for number in drawn(f"{moment.after} {moment.num_changes}", len(disk.moments), SECOND_MOMENTS):
            second = disk.moments[number]
            possible = list(states(disk, second))
            for place in drawn(f"{second.after} {second.num_changes}", len(possible), SECOND_STATES):
                self.num_second_cuts += 1
                problems = list(self._after_the_cut(disk, second, possible[place]))
                problems = problems or list(self._continued(second, possible[place]))
                yield from (f"and again after {second.after}: {problem}" for problem in problems)

    @contextmanager
    def _laid_out(self, tree: Tree) -> Iterator[Path]:
        self._base.mkdir()
        try:
            for name, data in tree.items():
                if data is None:
                    (self._base / name).mkdir()
                else:
                    (self._base / name).write_bytes(data)
            laid_out_s = time.time()
            for age, name in enumerate(reversed(tree)):  # by which the store tells old backups from new ones
                os.utime(self._base / name, (laid_out_s - age / 1000, laid_out_s - age / 1000))
            yield self._base
        finally:
            shutil.rmtree(self._base)


def _places(tree: Tree) -> dict[str, Tree]:
    """What is below each directory of the home."""
    prefix = f"{scenario.PLACE}/"
    places: dict[str, Tree] = {}
    for path, data in tree.items():
        if path.startswith(prefix):
            place, _, below = path[len(prefix) :].partition("/")
            if below:
                places.setdefault(place, {})[below] = data
    return places


def record(
    work: Path, sabotage: Sabotage | None = None, parts: range = scenario.ALL
) -> tuple[Recorder, list[condition.Contents]]:
    """Carries out the scenario, or its first parts, under the recording layer; also returns what its home holds after
    each part."""
    base = work / "recorded"
    home = base / scenario.PLACE
    base.mkdir(parents=True)
    recorder = Recorder(base)
    expected = []
    for part in parts:
        recorder.part = part
        with standing_in(sabotage(recorder) if sabotage else recorder):
            scenario.carry_out(home, range(part, part + 1), recorder.rot)
        expected.append(condition.contents(home, range(part + 1)))
    shutil.rmtree(base)
    return recorder, expected


def problems_of(judge: Judge, wrong: Disk, first: int) -> Iterator[str]:
    """What is wrong after power cuts with a wrong store, from the operation on that is not right."""
    for moment in wrong.moments[first:]:
        for left in states(wrong, moment):
            yield from judge.look(wrong, moment, left, continued_share=NEVER)


def main() -> int:
    options_parser = argparse.ArgumentParser(description=__doc__)
    options_parser.add_argument("--long", action="store_true", help="go on with the run from every state")
    options_parser.add_argument("--every", type=int, default=1, help="one moment in so many")
    options_parser.add_argument("--part", default="1/1", help="which part of the moments, for example 2/3")
    options_parser.add_argument("--controls", action="store_true", help="wrong stores, until each is noticed")
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory(dir=FAST) as work, groups_known():
        if options.controls:
            found: dict[str, Any] = _controls(Path(work))
        else:
            found = _survey(Path(work), options.part, options.every, long=options.long)
    json.dump(found, sys.stdout, indent=1)
    return 0


def _survey(work: Path, part: str, every: int, *, long: bool) -> dict[str, Any]:
    number, parts = map(int, part.split("/"))
    recorder, expected = record(work)
    judge = Judge(work, recorder, expected)
    disk = Disk(recorder.events, recorder.ledger)
    problems = []
    moments = disk.moments[::every][number - 1 :: parts]
    for moment in moments:
        for left in states(disk, moment):
            problems += judge.look(disk, moment, left, continued_share=1 if long else CONTINUED_SHARE)
    return {
        "moments": len(moments),
        "states": judge.num_states,
        "continued": judge.num_continued,
        "second cuts": judge.num_second_cuts,
        "problems": problems,
    }


def _controls(work: Path) -> dict[str, str | None]:
    """The first problem that each wrong store shows: without one fsync, or with its operations in another order.

    Most show it in the part of the scenario in which they are wrong first: only then is more looked at.
    """
    recorder, expected = record(work)
    judge = Judge(work, recorder, expected)
    moments = Disk(recorder.events, recorder.ledger).moments
    right = [moment.after for moment in moments]
    found = {}
    for label in dict.fromkeys(right):
        if label.startswith(("fsync", "commit ")) and not label.startswith("commit unsynced"):
            first = right.index(label)
            soon = [event for event in recorder.events if event.part <= moments[first].part]
            wrong = (Disk(events, recorder.ledger, label) for events in (soon, recorder.events))
            problems = (problem for disk in wrong for problem in problems_of(judge, disk, first))
            found[f"without: {label}"] = next(problems, None)
    for name, sabotage in REORDERED.items():
        problems = (
            problem
            for stop in range(1, len(scenario.ALL) + 1)
            for problem in _problems_reordered(work / f"{name} {stop}", sabotage, range(stop), right)
        )
        found[name] = next(problems, None)
    return found


def _problems_reordered(work: Path, sabotage: Sabotage, parts: range, right: list[str]) -> Iterator[str]:
    """What is wrong after power cuts in some parts, from the first operation on that is not the right store's."""
    recorder, expected = record(work, sabotage, parts)
    wrong = Disk(recorder.events, recorder.ledger)
    done = [moment.after for moment in wrong.moments]
    first = next((n for n, (ours, theirs) in enumerate(zip(right, done, strict=False)) if ours != theirs), len(done))
    yield from problems_of(Judge(work, recorder, expected), wrong, first)


if __name__ == "__main__":
    sys.exit(main())
