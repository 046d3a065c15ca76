"""What the process is doing, and signs of progress: what a watchdog looks at.

There is one of it for each process, as there is one main thread that does the work. Code that takes long names its
phase and beats whenever a piece is done (a decode step, a batch, a reply); neither costs more than a function call, and
neither has to know whether anybody watches.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

# reading: what a stage reads before its first step, and the data of each step. update: training passes and the
# optimizer. saving: whatever is committed to the home.
Phase = Literal["reading", "sampling", "grading", "judging", "update", "saving"]
PHASES: tuple[Phase, ...] = get_args(Phase)

Item = TypeVar("Item")


@dataclass
class _Activity:
    phase: Phase | None = None
    beats: int = 0
    allowance_s: float = 0.0
    do: Callable[[], None] | None = None
    thread: int = 0  # whose beats `do` is for


_now = _Activity()


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """The block, or the function that this decorates, belongs to a phase; then the one around it counts again."""
    outer, _now.phase = _now.phase, name
    beat()
    try:
        yield
    finally:
        _now.phase = outer
        beat()


def beat() -> None:
    """A sign of progress, from any thread."""
    _now.beats += 1
    if _now.do is not None and _now.thread == threading.get_ident():
        do, _now.do = _now.do, None  # what it does may beat, too
        try:
            do()
        finally:
            _now.do = do


@contextmanager
def at_beats(do: Callable[[], None]) -> Iterator[None]:
    """In the block, something is done at each beat of this thread; what it raises comes out of the beat."""
    outer = _now.do, _now.thread
    _now.do, _now.thread = do, threading.get_ident()
    try:
        yield
    finally:
        _now.do, _now.thread = outer


@contextmanager
def may_wait(seconds: float) -> Iterator[None]:
    """The block may wait for so many seconds, for a server for example, before the deadline of its phase begins."""
    outer, _now.allowance_s = _now.allowance_s, seconds
    try:
        yield
    finally:
        _now.allowance_s = outer


def each(name: Phase, items: Iterable[Item]) -> Iterator[Item]:
    """The items, each of which is fetched in a phase."""
    iterator = iter(items)
    while True:
        with phase(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def current() -> tuple[Phase | None, int, float]:
    """(the innermost phase, the beats so far, the seconds that it may wait)."""
    return _now.phase, _now.beats, _now.allowance_s
