"""Power cuts: every state in which a disk may be when the power goes, as far as fsyncs do not forbid it.

A recording layer over the store's operations. LazyFS, which drops pages that were never fsynced, needs FUSE, and
containers hardly ever have that; this needs nothing, and it can also reorder, which LazyFS does not.

The scenario runs once. For each moment between two operations `disk_model` gives the states that a power cut may leave:
all of them where few operations are pending, else none, all, each alone, all but each, and some that are drawn. Each is
looked at, and laid out in a directory where the run goes on from it.

    python -m chaos.power_loss [--long] [--part K/N] [--controls]

prints one JSON object; `test_power_loss.py` reads it.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from chaos import scenario
from chaos.crash_points import FAST, standing_in
from chaos.disk_model import LEDGER_FILES, Left, Moment, Recorder, Tree, states
from chaos.sabotage import REORDERED, Sabotage
from reasonmill.store.commit import damaged_files

NEVER = 1 << 60
CONTINUED_SHARE = 32  # the short form goes on from one state in so many

Items = tuple[tuple[str, bytes | None], ...]


class Judge:
    """Tells what is wrong with states, each only once; parts that states have in common are judged once, too."""

    def __init__(self, work: Path, recorder: Recorder, expected: scenario.Contents) -> None:
        self._base = work / "state"
        self._recorder = recorder
        self._expected = expected
        self._seen: set[object] = set()
        self._rows: dict[tuple[int, ...], scenario.Rows] = {}
        self._objects: dict[tuple[str, Items], str | None] = {}
        self.num_states = 0
        self.num_continued = 0

    def look(self, moment: Moment, left: Left, *, continued_share: int) -> list[str]:
        """What is wrong with a state, and after the run went on from it, which it does from one in so many."""
        known = (moment.accepted, moment.ledger, moment.summaries, left.ledger, _items(left.tree))
        if known in self._seen:
            return []
        self._seen.add(known)
        self.num_states += 1
        problems = scenario.reported(partial(self._after_the_cut, moment, left))
        if not problems and self.num_states % continued_share == 0:
            self.num_continued += 1
            problems = scenario.reported(partial(self._continued, left))
        return [f"power cut after {moment.after}: {problem}" for problem in problems]

    def _after_the_cut(self, moment: Moment, left: Left) -> Iterator[str]:
        tree = left.tree
        has_ledger = f"{scenario.PLACE}/{LEDGER_FILES[0]}" in tree
        found = scenario.Contents(
            self._ledger_rows(left) if has_ledger else {},
            {name: self._damaged(name, _below(tree, f"objects/{name}")) for name in _children(tree, "objects")},
            {
                name: data
                for name, data in _below(tree, "runs").items()
                if not name.startswith(".") and "/." not in name
            },
        )
        yield from scenario.damage(found)
        recorder = self._recorder
        if found.rows not in [state.rows for state in recorder.ledger[moment.accepted :]]:
            yield "the ledger lacks what it had accepted, or has what it had not"
        promised, newest = moment.summaries
        if found.views.get(f"{scenario.RUN}/{scenario.SUMMARY}") not in recorder.summaries[promised : newest + 1]:
            yield "the summary is not the one that was promised, or a newer one"

    def _ledger_rows(self, left: Left) -> scenario.Rows:
        if left.ledger not in self._rows:
            files = {name: left.tree.get(f"{scenario.PLACE}/{name}") for name in LEDGER_FILES}
            with self._laid_out({name: data for name, data in files.items() if data is not None}) as directory:
                self._rows[left.ledger] = scenario.ledger_rows(directory)
        return self._rows[left.ledger]

    def _damaged(self, name: str, files: Tree) -> str | None:
        known = (name, _items(files))
        if known not in self._objects:
            with self._laid_out(files) as directory:
                self._objects[known] = next(iter(damaged_files(directory, name)), None)
        return self._objects[known]

    def _continued(self, left: Left) -> Iterator[str]:
        with self._laid_out(left.tree) as base:
            yield from scenario.continued(base / scenario.PLACE, self._expected, frozenset(self._recorder.made))

    @contextmanager
    def _laid_out(self, tree: Tree) -> Iterator[Path]:
        self._base.mkdir()
        try:
            for name, data in tree.items():
                if data is None:
                    (self._base / name).mkdir()
                else:
                    (self._base / name).write_bytes(data)
            yield self._base
        finally:
            shutil.rmtree(self._base)


def _items(tree: Tree) -> Items:
    return tuple(tree.items())  # they are laid out in the order of their names


def _below(tree: Tree, directory: str) -> Tree:
    """What is below a directory of the home."""
    prefix = f"{scenario.PLACE}/{directory}/"
    return {path.removeprefix(prefix): data for path, data in tree.items() if path.startswith(prefix)}


def _children(tree: Tree, directory: str) -> list[str]:
    return [path for path in _below(tree, directory) if "/" not in path]


def record(
    work: Path, *, forgotten: str | None = None, sabotage: Sabotage | None = None
) -> tuple[Recorder, scenario.Contents]:
    """Runs the scenario under the recording layer; also returns what its home holds in the end."""
    base = work / "recorded"
    home = base / scenario.PLACE
    base.mkdir(parents=True)
    recorder = Recorder(base, home, forgotten)
    with standing_in(sabotage(recorder) if sabotage else recorder):
        scenario.carry_out(home)
    expected = scenario.contents(home)
    shutil.rmtree(base)
    return recorder, expected


def problems_of(
    work: Path, wrong: Recorder, expected: scenario.Contents, is_right: Callable[[int], bool]
) -> Iterator[str]:
    """What is wrong after power cuts with a wrong store, from the operation on that is not right."""
    judge = Judge(work, wrong, expected)
    first = next(number for number in range(len(wrong.moments)) if not is_right(number))
    for moment in wrong.moments[first:]:
        for left in states(wrong, moment):
            yield from judge.look(moment, left, continued_share=NEVER)


def main() -> int:
    options_parser = argparse.ArgumentParser(description=__doc__)
    options_parser.add_argument("--long", action="store_true", help="go on with the run from every state")
    options_parser.add_argument("--part", default="1/1", help="which part of the moments, for example 2/3")
    options_parser.add_argument("--controls", action="store_true", help="wrong stores, until each is noticed")
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory(dir=FAST) as work:
        found = _controls(Path(work)) if options.controls else _survey(Path(work), options.part, long=options.long)
    json.dump(found, sys.stdout, indent=1)
    return 0


def _survey(work: Path, part: str, *, long: bool) -> dict[str, object]:
    number, parts = map(int, part.split("/"))
    recorder, expected = record(work)
    judge = Judge(work, recorder, expected)
    problems = []
    for moment in recorder.moments[number - 1 :: parts]:
        for left in states(recorder, moment):
            problems += judge.look(moment, left, continued_share=1 if long else CONTINUED_SHARE)
    return {"states": judge.num_states, "continued": judge.num_continued, "problems": problems}


def _controls(work: Path) -> dict[str, str | None]:
    """The first problem that each wrong store shows: without one fsync, or with its operations in another order."""
    right = [moment.after for moment in record(work / "right")[0].moments]
    names = [name for name in dict.fromkeys(right) if name.startswith(("fsync", "commit "))]
    found = {}
    for name in names:
        if not name.startswith("commit unsynced"):
            wrong, expected = record(work / name, forgotten=name)
            problems = problems_of(work / name, wrong, expected, lambda number, name=name: right[number] != name)
            found[f"without: {name}"] = next(problems, None)
    for name, sabotage in REORDERED.items():
        wrong, expected = record(work / name, sabotage=sabotage)
        done = [moment.after for moment in wrong.moments]
        problems = problems_of(work / name, wrong, expected, lambda number, done=done: right[number] == done[number])
        found[name] = next(problems, None)
    return found


if __name__ == "__main__":
    sys.exit(main())
