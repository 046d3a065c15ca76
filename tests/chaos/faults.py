"""The cases of `crash_points`: what can befall which operation, and which of that is tried."""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

WRITES = ("write", "copy", "fill")
# Operations whose failure the store may pass over: they only clean up, or SQLite itself passes over them. So it may
# while it closes the ledger: an open seal and earlier backups are no loss.
TOLERANT = (
    "unlink unfinished object",
    "remove directory unfinished object",
    "write lock",  # which only tells others who writes
    "write released lock",
    "copy damaged ledger",  # one that can't be read is moved
    "fsync damaged ledger",
    "unlink half of a damaged ledger",
    "unlink unused restored ledger",
    "close ledger",
)
CLOSING = "while the ledger is closed"


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
    if verb in ("commit", "commit unsynced", "empty log"):
        faults += [Fault.TORN]
    return faults


class Hit(NamedTuple):
    """A fault at the operation with this number in an attempt."""

    index: int
    fault: Fault
    entry: str  # the operation as the notes have it

    def __str__(self) -> str:
        return f"{self.fault} at #{self.index} {self.entry}"

    @property
    def is_tolerable(self) -> bool:
        return self.entry.endswith(CLOSING) or name_of(self.entry) in TOLERANT


class Case(NamedTuple):
    """A part of the scenario, and what is hit in each attempt at it."""

    part: int
    attempts: tuple[tuple[Hit, ...], ...]

    def __str__(self) -> str:
        return f"part {self.part}, " + " | ".join("; ".join(map(str, hits)) for hits in self.attempts)


def name_of(entry: str) -> str:
    verb, what, *_ = entry.split("|")
    return f"{verb} {what}"


def hits_at(entries: list[str], index: int) -> list[Hit]:
    """All faults that can befall an operation of an attempt."""
    return [Hit(index, fault, entries[index]) for fault in faults_of(entries[index].split("|")[0])]


def every_fault(operations: list[list[str]]) -> Iterator[Case]:
    """Each fault at each operation of a first attempt at each part."""
    for part, entries in enumerate(operations):
        yield from (Case(part, ((hit,),)) for index in range(len(entries)) for hit in hits_at(entries, index))


def first_faults(operations: list[list[str]]) -> Iterator[Case]:
    """Where each operation comes first, the errors and one of the kills; while the ledger is closed, one fault."""
    seen: set[str] = set()
    for part, entries in enumerate(operations):
        for index, entry in enumerate(entries):
            if entry not in seen:
                seen.add(entry)
                hits = hits_at(entries, index)
                if entry.endswith(CLOSING):
                    hits = [hits[len(seen) % len(hits)]]
                left_out = KILLS[len(seen) % 2]  # killed after one operation is much like killed before the next
                yield from (Case(part, ((hit,),)) for hit in hits if hit.fault != left_out or len(hits) == 1)
