"""Every operation of the store, times every fault: run, crash, look at what is left, go on, compare.

The scenario runs once while its operations are recorded, so that nobody has to list them. A case is what happens to
one or more attempts in a row, each a process of its own; then the run goes on undisturbed. A process that is killed is
really killed, so that nothing of it is cleaned up. Fsyncs are left out here: a kill does not need them, and
`power_loss` looks after them. A case begins with the part of the scenario in which the fault is, and in the short form
it ends with that part. Where two cases leave the same home, the run goes on from it once.

    python -m chaos.crash_points [--long] [--every N] [--part K/N] [--controls]

prints one JSON object; `test_crash_points.py` reads it.
"""

import argparse
import errno
import gc
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from chaos import condition, scenario
from chaos.faults import CLOSING, KILLS, WRITES, Case, Fault, Hit, every_fault, first_faults, hits_at, name_of
from chaos.sabotage import REORDERED, SEEN_BY_KILLS, Around, Sabotage
from chaos.steady import date, fingerprint, groups_known, steady
from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk
from reasonmill.store.disk import Operation
from reasonmill.store.ledger_backup import LEDGER, LedgerKeeper

# A file system in memory, where there is one: nothing here has to survive a power cut.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
TIME_LIMIT_S = 60
BEFORE_IT_DIFFERS = 2  # operations, from which on a wrong store is tried
TOGETHER = 20  # cases that stay in one process: those of the same operations often leave the same home
GOING_ON = 99  # the last start in a case
SECOND_CRASHES = 3  # crashes of the recovery, for each first one, in the long form
LEDGER_VERBS = ("start log", "commit", "commit unsynced", "empty log", "close")
LEDGER_MOVES = ("rename damaged ledger's log", "rename unreadable ledger", "replace restored ledger")
FINISHED, REFUSED, OUT_OF_SPACE, BROKEN, KILLED = 0, 3, 4, 5, -signal.SIGKILL


class Stand:
    """Stands in for the store's operations in one attempt, and notes what happens in files that outlive the process.

    The notes are the operations, and what rows the ledger may have if the process ends now.
    """

    def __init__(self, home: Path, notes: Path, hits: tuple[Hit, ...] = ()) -> None:
        self._home = home
        self._faults = {hit.index: hit.fault for hit in hits}
        self._count = 0
        self._is_hit = False
        self._operations = (notes / "operations").open("wb", buffering=0)  # what is written outlives a kill
        self._rows = notes / "rows"

    def __call__(self, operation: Operation, perform: Callable[[], object]) -> None:
        fault = self._faults.get(self._count)
        self._count += 1
        self._operations.write(f"{operation.verb}|{operation.what}{f'|{CLOSING}' if _is_closing() else ''}\n".encode())
        self._is_hit |= fault is not None
        if fault is not None:
            self._note_rows(condition.ledger_rows(self._home))
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
                date(operation)
        except OSError:  # the rename of an object that is there already
            if fault == Fault.KILL_AFTER:
                _die()
            raise
        if (operation.verb in LEDGER_VERBS or operation.name in LEDGER_MOVES) and self._is_hit:
            self._note_rows(condition.ledger_rows(self._home))
        if fault == Fault.KILL_AFTER:
            _die()

    def _do_half(self, operation: Operation, perform: Callable[[], object]) -> None:
        if operation.verb in WRITES:
            perform()
            _halve(operation.path)
            return
        ledger, log = self._home / LEDGER, self._home / condition.LOG
        ledger_before, log_before = ledger.read_bytes(), log.read_bytes()
        rows_before = condition.ledger_rows(self._home)
        perform()
        self._note_rows(rows_before, condition.ledger_rows(self._home))
        if operation.verb == "empty log":  # which is the last that is done
            ledger.write_bytes(half_of_the_change(ledger_before, ledger.read_bytes()))
            log.write_bytes(log_before)
        else:
            log.write_bytes(half_of_the_change(log_before, log.read_bytes()))

    def _note_rows(self, *rows: condition.Rows) -> None:
        self._rows.write_text(json.dumps(rows))


def _is_closing() -> bool:
    """Whether an operation is one of those with which the keeper closes the ledger."""
    frame = sys._getframe()
    while frame.f_back is not None:
        if frame.f_code is LedgerKeeper.close.__code__:
            return True
        frame = frame.f_back
    return False


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
    """Runs cases, each in a directory of its own, and gathers what is wrong."""

    def __init__(
        self,
        work: Path,
        sabotage: Sabotage | None = None,
        *,
        parts: range = scenario.ALL,
        to_the_end: bool = False,
    ) -> None:
        self._work = work
        self._sabotage = sabotage or (lambda around: around)
        self._to_the_end = to_the_end
        self._notes = work / "notes"
        self._notes.mkdir(parents=True)
        # By the part and the home: what that holds and what is wrong with it; problems and operations of going on.
        self._looked_at: dict[tuple[int, str], tuple[condition.Rows, list[str]]] = {}
        self._gone_on: dict[tuple[int, str], tuple[list[str], list[str]]] = {}
        base = work / "undisturbed"
        home = base / scenario.PLACE
        base.mkdir()
        made: set[str] = set()  # of objects
        self.operations: list[list[str]] = []  # of each part
        self._expected: list[condition.Contents] = []  # after each
        for part in parts:
            shutil.copytree(base, work / f"before-{part}")
            stand = self._sabotage(Stand(home, self._notes))

            def around(operation: Operation, perform: Callable[[], object], stand: Around = stand) -> None:
                stand(operation, perform)
                if operation.name == "rename object" and operation.target is not None:
                    made.add(operation.target.name)

            with steady(part), standing_in(around):
                scenario.carry_out(home, range(part, part + 1))
            self.operations.append(self._read_operations())
            self._expected.append(condition.contents(home, range(part + 1)))
        self._known_objects = frozenset(made)
        shutil.rmtree(base)

    def run(self, case: Case) -> tuple[list[str], list[list[str]]]:
        """What is wrong after the attempts, and the operations of each of them and of what went on with the part."""
        base = self._work / "case"
        home = base / scenario.PLACE
        shutil.copytree(self._work / f"before-{case.part}", base)
        operations = []
        problems = []
        try:
            for number, hits in enumerate(case.attempts, start=len(scenario.ALL)):
                problems += self._attempt(home, case.part, hits, number)
                operations.append(self._read_operations())
                left = (case.part, fingerprint(base))
                if left not in self._looked_at:
                    self._looked_at[left] = self._look(home, case.part)
                rows, wrong = self._looked_at[left]
                problems += wrong
                if rows not in json.loads((self._notes / "rows").read_text()):
                    problems.append("the ledger lacks what it had accepted, or has what it had not")
            if not problems:
                if left not in self._gone_on:
                    self._gone_on[left] = self._go_on(home, case.part)
                problems, entries = self._gone_on[left]
                operations.append(entries)
        except Exception as error:
            problems.append(f"the home can't be looked at: {error!r}")
        finally:
            shutil.rmtree(base)
        return [f"{case}: {problem}" for problem in problems], operations

    def _look(self, home: Path, part: int) -> tuple[condition.Rows, list[str]]:
        """The rows that an attempt left, and what is wrong with the home."""
        left = condition.contents(home, range(part + 1))
        return json.loads(json.dumps(left.rows)), list(condition.wrong(left))

    def _go_on(self, home: Path, part: int) -> tuple[list[str], list[str]]:
        """What is wrong after the run went on with the part, or to the end, and its operations in the part."""
        with steady(GOING_ON), standing_in(Stand(home, self._notes)):
            problems = self._continued(home, range(part, part + 1))
        entries, rest = self._read_operations(), scenario.ALL[part + 1 :]
        if self._to_the_end and rest and not problems:
            problems = self._continued(home, rest)
        return problems, entries

    def _continued(self, home: Path, parts: range) -> list[str]:
        return list(condition.continued(home, parts, self._expected[parts[-1]], self._known_objects))

    def _attempt(self, home: Path, part: int, hits: tuple[Hit, ...], number: int) -> list[str]:
        """Carries out the part in a child process; what is wrong with how it ended."""
        ended = _in_child(partial(self._carry_out, home, part, hits, number))
        if hits[-1].fault in KILLS:
            expected = [KILLED]
        else:
            # The first that is not passed over is told.
            told = hits if hits[0].is_tolerable else hits[:1]
            expected = [REFUSED if hit.fault == Fault.IO_ERROR else OUT_OF_SPACE for hit in told]
            if all(hit.is_tolerable for hit in hits):
                expected.append(FINISHED)
        if ended in expected:
            return []
        error = (self._notes / "error").read_text() if ended == BROKEN else ""
        return [f"the process ended with {ended} instead of {expected} {error}"]

    def _carry_out(self, home: Path, part: int, hits: tuple[Hit, ...], number: int) -> int:
        try:
            with steady(number), standing_in(self._sabotage(Stand(home, self._notes, hits))):
                scenario.carry_out(home, range(part, part + 1))
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


def explore(runner: Runner, cases: Iterable[Case], *, second_crashes: int = 0) -> Iterator[tuple[Case, list[str]]]:
    """Runs these cases, and every fault at operations that only what came of them shows.

    Yields each case with what is wrong. With `second_crashes`, the run that goes on after a kill is killed, too, at
    as many places.
    """
    seen = {entry for entries in runner.operations for entry in entries}
    todo = deque(cases)
    while todo:
        case = todo.popleft()
        problems, operations = runner.run(case)
        yield case, problems
        attempts = case.attempts
        for number, entries in enumerate(operations):
            earlier = attempts[number] if number < len(attempts) else ()
            for index, entry in enumerate(entries):
                if entry not in seen and all(hit.index < index for hit in earlier):
                    seen.add(entry)
                    todo += [Case(case.part, (*attempts[:number], (*earlier, hit))) for hit in hits_at(entries, index)]
        if len(attempts) == 1 and attempts[0][-1].fault in KILLS and len(operations) == 2:
            for index in drawn(str(case), len(operations[1]), second_crashes):
                fault = KILLS[index % 2]  # before or after
                todo.append(Case(case.part, (*attempts, (Hit(index, fault, operations[1][index]),))))


def drawn(key: str, below: int, count: int) -> list[int]:
    """`count` numbers that depend on the key alone."""
    hashes = [hashlib.blake2b(f"{key} {number}".encode(), digest_size=8).digest() for number in range(count)]
    return sorted({int.from_bytes(value, "big") % below for value in hashes})


def main() -> int:
    options_parser = argparse.ArgumentParser(description=__doc__)
    options_parser.add_argument("--long", action="store_true", help="every operation, and second crashes")
    options_parser.add_argument("--every", type=int, default=1, help="one case in so many, and one of each kind")
    options_parser.add_argument("--part", default="1/1", help="which part of the cases, for example 2/3")
    options_parser.add_argument("--controls", action="store_true", help="wrong stores, until each is noticed")
    options = options_parser.parse_args()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    with tempfile.TemporaryDirectory(dir=FAST) as work, groups_known():
        if options.controls:
            found: dict[str, Any] = _controls(Path(work))
        else:
            found = _survey(Path(work), options.part, options.every, long=options.long)
    json.dump(found, sys.stdout, indent=1)
    return 0


def _survey(work: Path, part: str, every: int, *, long: bool) -> dict[str, Any]:
    number, parts = map(int, part.split("/"))
    runner = Runner(work, to_the_end=long)
    first = thinned((every_fault if long else first_faults)(runner.operations), every)
    ours = [case for place, case in enumerate(first) if place // TOGETHER % parts == number - 1]
    cases = list(explore(runner, ours, second_crashes=SECOND_CRASHES if long else 0))
    hit = {name_of(hit.entry) for case, _ in cases for hits in case.attempts for hit in hits}
    return {
        "operations": sum(map(len, runner.operations)),
        "cases": len(cases),
        "hit": sorted(hit),
        "problems": [told for _, problems in cases for told in problems],
    }


def thinned(cases: Iterable[Case], every: int) -> Iterator[Case]:
    """One case in so many, and at least one of each operation and one of each fault of each verb."""
    seen: set[object] = set()
    since = every
    for case in cases:
        since += 1
        hits = [hit for hits in case.attempts for hit in hits]
        kinds = {kind for hit in hits for kind in (name_of(hit.entry), (hit.entry.partition("|")[0], hit.fault))}
        if since >= every or not kinds <= seen:
            seen |= kinds
            since = 0
            yield case


def _controls(work: Path) -> dict[str, str | None]:
    """The first problem that each wrong store shows."""
    right = Runner(work / "right").operations
    found = {}
    for name in SEEN_BY_KILLS:
        runner, part, first = _wrong_from(work / name, REORDERED[name], right)
        hits = [(case, case.attempts[0][0]) for case in every_fault(runner.operations) if case.part == part]
        cases = [case for case, hit in hits if hit.fault in KILLS and hit.index >= first - BEFORE_IT_DIFFERS]
        found[name] = next((told for _, problems in explore(runner, cases) for told in problems), None)
    return found


def _wrong_from(work: Path, sabotage: Sabotage, right: list[list[str]]) -> tuple[Runner, int, int]:
    """A wrong store's runner up to the first part in which it does something else than the right one, that part, and
    the number of the first such operation in it."""
    for part in scenario.ALL:
        runner = Runner(work / f"to {part}", sabotage, parts=range(part + 1))
        for number, (ours, theirs) in enumerate(zip(right[part], runner.operations[part], strict=False)):
            if ours != theirs:
                return runner, part, number
    raise AssertionError("the wrong store does what the right one does")


if __name__ == "__main__":
    sys.exit(main())
