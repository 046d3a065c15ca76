"""Every operation of the store, times every fault: run, crash, look at what is left, go on, compare.

The scenario runs once while its operations are recorded, so that nobody has to list them. A case is what happens to
one or more attempts in a row, each a process of its own; then the run goes on undisturbed. A process that is killed is
really killed, so that nothing of it is cleaned up. Fsyncs are left out here: a kill does not need them, and
`power_loss` looks after them.

    python -m chaos.crash_points [--long] [--part K/N] [--controls]

prints one JSON object; `test_crash_points.py` reads it.
"""

import argparse
import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from chaos import scenario
from chaos.sabotage import REORDERED, SEEN_BY_KILLS, Around, Sabotage
from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk
from reasonmill.store.disk import Operation

# A file system in memory, where there is one: nothing here has to survive a power cut.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
TIME_LIMIT_S = 60
BEFORE_IT_DIFFERS = 2  # operations, from which on a wrong store is tried
SECOND_CRASHES = 3  # crashes of the recovery, for each first one, in the long form
LEDGER_VERBS = ("start log", "commit", "commit unsynced", "empty log", "close")
WRITES = ("write", "copy", "fill")
# Operations whose failure the store may pass over: they only clean up, or SQLite itself passes over them.
TOLERANT = ("unlink unfinished object", "remove directory unfinished object", "write released lock", "close ledger")
FINISHED, REFUSED, OUT_OF_SPACE, BROKEN, KILLED = 0, 3, 4, 5, -signal.SIGKILL


class Fault(StrEnum):
    """What happens at an operation."""

    KILL_BEFORE = "killed before"
    KILL_AFTER = "killed after"
    TORN = "killed when half was written"
    NO_SPACE = "no space left"
    SHORT = "no space left when half was written"
    IO_ERROR = "input/output error"


KILLS = (Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.TORN)


def faults_of(verb: str) -> list[Fault]:
    """The faults that can befall an operation."""
    faults = [Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.NO_SPACE, Fault.IO_ERROR]
    if verb in WRITES:
        faults += [Fault.SHORT, Fault.TORN]
    if verb in ("commit", "commit unsynced"):
        faults += [Fault.TORN]
    return faults


class Hit(NamedTuple):
    """A fault at the operation with this number in an attempt."""

    index: int
    fault: Fault
    name: str  # the operation's

    def __str__(self) -> str:
        return f"{self.fault} at #{self.index} {self.name}"


Attempts = tuple[tuple[Hit, ...], ...]  # what is hit in each of them


class Stand:
    """Stands in for the store's operations in one attempt, and notes what happens in files that outlive the process.

    The notes are the operations, and what rows the ledger may have if the process ends now: not where it is damaged.
    """

    def __init__(self, home: Path, notes: Path, hits: tuple[Hit, ...] = (), *, is_damaged: bool = False) -> None:
        self._home = home
        self._is_damaged = is_damaged
        self._faults = {hit.index: hit.fault for hit in hits}
        self._count = 0
        self._is_hit = False
        self._operations = notes / "operations"
        self._operations.write_text("")
        self._rows = notes / "rows"

    def __call__(self, operation: Operation, perform: Callable[[], object]) -> None:
        fault = self._faults.get(self._count)
        self._count += 1
        with self._operations.open("a") as operations:
            operations.write(f"{operation.verb}|{operation.what}\n")
        self._is_hit |= fault is not None
        if fault is not None:
            self._note_rows()
        if fault == Fault.KILL_BEFORE:
            _die()
        if fault in (Fault.NO_SPACE, Fault.IO_ERROR):
            if operation.verb == "close":
                return  # SQLite does not say that it could not empty its log
            raise _error(operation, errno.ENOSPC if fault == Fault.NO_SPACE else errno.EIO)
        if fault in (Fault.SHORT, Fault.TORN):
            self._do_half(operation, perform)
            if fault == Fault.TORN:
                _die()
            raise _error(operation, errno.ENOSPC)
        try:
            if not operation.verb.startswith("fsync"):
                perform()
        except OSError:  # the rename of an object that is there already
            if fault == Fault.KILL_AFTER:
                _die()
            raise
        if operation.verb in LEDGER_VERBS and self._is_hit:
            self._note_rows()
        if fault == Fault.KILL_AFTER:
            _die()

    def _do_half(self, operation: Operation, perform: Callable[[], object]) -> None:
        if operation.verb in WRITES:
            perform()
            _halve(operation.path)
            return
        log = operation.path.with_name(f"{operation.path.name}-wal")
        before, rows_before = log.read_bytes(), self._read_rows()
        perform()
        self._note_rows(rows_before)
        log.write_bytes(half_of_the_change(before, log.read_bytes()))

    def _note_rows(self, *earlier: scenario.Rows) -> None:
        self._rows.write_text(json.dumps([*earlier, self._read_rows()]))

    def _read_rows(self) -> scenario.Rows:
        return {} if self._is_damaged else scenario.ledger_rows(self._home)


def half_of_the_change(before: bytes, after: bytes) -> bytes:
    """A file in which the first half of what a write changed has arrived."""
    if len(after) > len(before) and after.startswith(before):
        return after[: (len(before) + len(after)) // 2]
    changed = [place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new]
    middle = (changed[0] + changed[-1]) // 2 if changed else 0
    return after[:middle] + before[middle:]


def _halve(path: Path) -> None:
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        os.truncate(file, file.stat().st_size // 2)


def _error(operation: Operation, code: int) -> Exception:
    """The error that the operation ends with: SQLite has errors of its own."""
    if operation.verb not in LEDGER_VERBS:
        return OSError(code, os.strerror(code), str(operation.path))
    error = sqlite3.OperationalError("database or disk is full" if code == errno.ENOSPC else "disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if code == errno.ENOSPC else sqlite3.SQLITE_IOERR
    return error


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError  # never reached


class Runner:
    """Runs cases, each in a directory of its own, and gathers what is wrong.

    With `damage`, each begins with a finished home to which that was done, and the faults hit its recovery.
    """

    def __init__(
        self, work: Path, sabotage: Sabotage | None = None, damage: Callable[[Path], None] | None = None
    ) -> None:
        self._work = work
        self._damaged: Path | None = None
        if damage is not None:
            self._damaged = work / "damaged" / scenario.PLACE
            self._damaged.parent.parent.mkdir(parents=True)
            scenario.carry_out(self._damaged)
            damage(self._damaged)
        self._sabotage = sabotage or (lambda around: around)
        self._notes = work / "notes"
        self._notes.mkdir(parents=True)
        base = work / "undisturbed"
        home = base / scenario.PLACE
        self._lay_out(base)
        made: set[str] = set()  # of objects
        stand = self._sabotage(self._stand(home))

        def around(operation: Operation, perform: Callable[[], object]) -> None:
            stand(operation, perform)
            if operation.name == "rename object" and operation.target is not None:
                made.add(operation.target.name)

        with standing_in(around):
            scenario.carry_out(home)
        self.operations = self._read_operations()
        self._expected = scenario.contents(home)
        self._known_objects = frozenset(made | self._expected.objects.keys())
        shutil.rmtree(base)

    def run(self, attempts: Attempts) -> tuple[list[str], list[list[str]]]:
        """What is wrong after the attempts, and the operations of each of them and of what went on after them."""
        base = self._work / "case"
        home = base / scenario.PLACE
        self._lay_out(base)
        operations = []
        problems = []
        try:
            for hits in attempts:
                problems += self._attempt(home, hits)
                operations.append(self._read_operations())
                if self._damaged is None:
                    problems += self._left(home)
            if not problems:
                with standing_in(self._stand(home)):
                    problems = list(scenario.continued(home, self._expected, self._known_objects))
                operations.append(self._read_operations())
        except Exception as error:
            problems.append(f"the home can't be looked at: {error!r}")
        finally:
            shutil.rmtree(base)
        told = " | ".join("; ".join(map(str, hits)) for hits in attempts)
        return [f"{told}: {problem}" for problem in problems], operations

    def _lay_out(self, base: Path) -> None:
        """What a case begins with."""
        base.mkdir()
        if self._damaged is not None:
            shutil.copytree(self._damaged, base / scenario.PLACE)

    def _stand(self, home: Path, hits: tuple[Hit, ...] = ()) -> Stand:
        return Stand(home, self._notes, hits, is_damaged=self._damaged is not None)

    def _left(self, home: Path) -> Iterator[str]:
        """What is wrong with the home that an attempt has left."""
        left = scenario.contents(home)
        yield from scenario.damage(left)
        acceptable = json.loads((self._notes / "rows").read_text())
        if json.loads(json.dumps(left.rows)) not in acceptable:
            yield "the ledger lacks what it had accepted, or has what it had not"

    def _attempt(self, home: Path, hits: tuple[Hit, ...]) -> list[str]:
        """Runs the scenario in a child process; what is wrong with how it ended."""
        ended = _in_child(partial(self._carry_out, home, hits))
        first, last = hits[0], hits[-1]
        if last.fault in KILLS:
            expected = [KILLED]
        else:
            expected = [REFUSED if first.fault == Fault.IO_ERROR else OUT_OF_SPACE]
            if first.name in TOLERANT or self._is_closing(first.index):
                expected.append(FINISHED)
        if ended in expected:
            return []
        error = (self._notes / "error").read_text() if ended == BROKEN else ""
        return [f"the process ended with {ended} instead of {expected} {error}"]

    def _is_closing(self, index: int) -> bool:
        """Whether what comes at this place is only there for the next opening: the last backup, and the seal."""
        entries = self._read_operations()[index + 1 :]
        until_closed = entries[: entries.index("close|ledger") + 1] if "close|ledger" in entries else entries
        return not any(entry.startswith("commit") for entry in until_closed)

    def _carry_out(self, home: Path, hits: tuple[Hit, ...]) -> int:
        try:
            with standing_in(self._sabotage(self._stand(home, hits))):
                scenario.carry_out(home)
        except OutOfSpace:
            return OUT_OF_SPACE
        except StoreError:
            return REFUSED
        except BaseException:
            (self._notes / "error").write_text(traceback.format_exc())
            return BROKEN
        return FINISHED

    def _read_operations(self) -> list[str]:
        return (self._notes / "operations").read_text().splitlines()


@contextmanager
def standing_in(around: Around) -> Iterator[None]:
    """Puts `around` between the store and the disk."""
    right = disk.around
    disk.around = around
    try:
        yield
    finally:
        disk.around = right


def _in_child(function: Callable[[], int]) -> int:
    """Runs a function in a forked process; returns what it returned, or minus the signal that ended the process."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIME_LIMIT_S)
        os._exit(function())
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def damage_objects(home: Path) -> None:
    """A bit of each object is another one."""
    for directory in sorted((home / "objects").iterdir()):
        _damage(next(path for path in sorted(directory.rglob("*")) if path.is_file()))


def damage_ledger(home: Path) -> None:
    """A bit of the ledger is another one, and a log is there that its last writer did not leave."""
    _damage(home / "ledger.sqlite")
    (home / "ledger.sqlite-wal").write_bytes(b"a log")


DAMAGE: dict[str, Callable[[Path], None]] = {"objects": damage_objects, "the ledger": damage_ledger}


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def name_of(entry: str) -> str:
    return entry.replace("|", " ")


def hits_at(entries: list[str], index: int) -> list[Hit]:
    """All faults that can befall an operation of an attempt."""
    return [Hit(index, fault, name_of(entries[index])) for fault in faults_of(entries[index].split("|")[0])]


def first_places(entries: list[str]) -> list[int]:
    """Where each operation comes first."""
    return sorted({entry: index for index, entry in reversed(list(enumerate(entries)))}.values())


def explore(runner: Runner, places: Sequence[int], *, second_crashes: int = 0) -> Iterator[tuple[Attempts, list[str]]]:
    """Runs every fault at these places of the first attempt, and at operations that only what came of it shows.

    Yields each case with what is wrong. With `second_crashes`, the run that goes on after a kill is killed, too, at
    as many places.
    """
    seen = set(runner.operations)
    todo: deque[Attempts] = deque(((hit,),) for place in places for hit in hits_at(runner.operations, place))
    while todo:
        attempts = todo.popleft()
        problems, operations = runner.run(attempts)
        yield attempts, problems
        for number, entries in enumerate(operations):
            earlier = attempts[number] if number < len(attempts) else ()
            for index, entry in enumerate(entries):
                if entry not in seen and all(hit.index < index for hit in earlier):
                    seen.add(entry)
                    todo += [(*attempts[:number], (*earlier, hit)) for hit in hits_at(entries, index)]
        if len(attempts) == 1 and attempts[0][-1].fault in KILLS and len(operations) == 2:
            for index in drawn(repr(attempts), len(operations[1]), second_crashes):
                fault = KILLS[index % 2]  # before or after
                todo.append((*attempts, (Hit(index, fault, name_of(operations[1][index])),)))


def drawn(key: str, below: int, count: int) -> list[int]:
    """`count` numbers that depend on the key alone."""
    hashes = [hashlib.blake2b(f"{key} {number}".encode(), digest_size=8).digest() for number in range(count)]
    return sorted({int.from_bytes(value, "big") % below for value in hashes})


def main() -> int:
    options_parser = argparse.ArgumentParser(description=__doc__)
    options_parser.add_argument("--long", action="store_true", help="every operation, and second crashes")
    options_parser.add_argument("--part", default="1/1", help="which part of the cases, for example 2/3")
    options_parser.add_argument("--controls", action="store_true", help="wrong stores, until each is noticed")
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory(dir=FAST) as work:
        found = _controls(Path(work)) if options.controls else _survey(Path(work), options.part, long=options.long)
    json.dump(found, sys.stdout, indent=1)
    return 0


def _survey(work: Path, part: str, *, long: bool) -> dict[str, object]:
    number, parts = map(int, part.split("/"))
    runner = Runner(work)
    places = list(range(len(runner.operations))) if long else first_places(runner.operations)
    cases = list(explore(runner, places[number - 1 :: parts], second_crashes=SECOND_CRASHES if long else 0))
    for name, damage in DAMAGE.items():
        recovery = Runner(work / name, damage=damage)
        known = frozenset() if long else frozenset(runner.operations)
        places = [place for place in first_places(recovery.operations) if recovery.operations[place] not in known]
        cases += explore(recovery, places[number - 1 :: parts])
    hit = {hit.name for attempts, _ in cases for hits in attempts for hit in hits}
    return {"cases": len(cases), "hit": sorted(hit), "problems": [told for _, problems in cases for told in problems]}


def _controls(work: Path) -> dict[str, str | None]:
    """The first problem that each wrong store shows."""
    right = Runner(work / "right").operations
    found = {}
    for name in SEEN_BY_KILLS:
        runner = Runner(work / name, REORDERED[name])
        differs = next(
            n for n, (ours, theirs) in enumerate(zip(right, runner.operations, strict=False)) if ours != theirs
        )
        cases = explore(runner, range(differs - BEFORE_IT_DIFFERS, len(runner.operations)))
        found[name] = next((told for _, problems in cases for told in problems), None)
    return found


if __name__ == "__main__":
    sys.exit(main())
