"""The watchdog: says what hangs, and ends a run that hangs for good. What it ends, the same command resumes."""

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Self, TextIO

from reasonmill import activity
from reasonmill.errors import Hung
from reasonmill.lasting_streams import lasting_stream
from reasonmill.protocols import Progress
from reasonmill.recipe.deadlines import Deadlines

# How often a watchdog looks: often enough for the shortest deadline, and never more often than this.
_LOOKS_A_DEADLINE = 20
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.02, 5.0


def _stderr() -> TextIO:
    """That of the process, past a live display; a watchdog has to end a run also where nobody reads it any more."""
    return lasting_stream(sys.__stderr__ or sys.stderr)


def leave(error: Hung) -> None:
    """Ends this process and its workers at once: a thread that hangs can't be asked to."""
    print(f"error: {error}", file=_stderr(), flush=True)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(error.exit_code)


@dataclass(eq=False)
class Watchdog:
    """Watches a stage as long as it is entered.

    Args:
        deadlines: how long each phase may be silent.
        stage: its name, for what is printed.
        give_up: called from the watching thread when a phase has been silent for twice its deadline.
        stream: where stacks are printed, a file of the system.
        reached: how far the stage is, for what is printed.
    """

    deadlines: Deadlines
    stage: str
    _: KW_ONLY
    give_up: Callable[[Hung], None] = leave
    stream: TextIO = field(default_factory=_stderr)
    reached: str = ""

    def __post_init__(self) -> None:
        self._beats, self._silent_s, self._warned = -1, 0.0, False
        shortest = min((seconds for name in activity.PHASES if (seconds := self.deadlines.of(name))), default=0.0)
        self._every_s = min(max(shortest / _LOOKS_A_DEADLINE, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)
        self._ended = threading.Event()
        # A daemon: where the main thread ends, nothing is left to watch.
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True) if shortest else None

    def look(self, passed_s: float) -> None:
        """Looks at the process once, `passed_s` seconds after the last look."""
        phase, beats, allowance_s = activity.current()
        if beats != self._beats or phase is None:
            self._beats, self._silent_s, self._warned = beats, 0.0, False
            return
        deadline_s = self.deadlines.of(phase)
        self._silent_s += passed_s
        overdue_s = self._silent_s - allowance_s
        if not deadline_s or overdue_s < deadline_s:
            return
        where = f"stage {self.stage!r}, phase {phase}{self.reached}"
        if not self._warned:
            self._warned = True
            print(
                f"{where}: no sign of progress for {self._silent_s:.0f} s; the run stops if there is none for another "
                f"{deadline_s:.0f} s. What each thread is doing:",
                file=self.stream,
                flush=True,
            )
            faulthandler.dump_traceback(self.stream, all_threads=True)
        elif overdue_s >= 2 * deadline_s:
            self.give_up(
                Hung(
                    f"{where}: no sign of progress for {self._silent_s:.0f} s",
                    fix="see above where it hangs; the same command resumes from what is committed. If it was still "
                    f"working, raise watchdog.{phase}",
                )
            )

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self._every_s):
            now = time.monotonic()
            # Where the whole process was stopped for a while, it had no chance to get on.
            self.look(min(now - before, 2 * self._every_s))
            before = now
            self._arm()

    def _arm(self) -> None:
        """Has stacks printed even where this thread can't run any more, because another one never lets it."""
        phase, _, allowance_s = activity.current()
        deadline_s = self.deadlines.of(phase) if phase else 0.0
        if deadline_s:
            faulthandler.dump_traceback_later(deadline_s + allowance_s + self._every_s, file=self.stream, exit=False)
        else:
            faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()


class WatchedProgress:
    """A stage's progress, which is also a sign of life.

    Args:
        on_begin: called when the stage has read what it needs, and begins.
    """

    def __init__(self, progress: Progress, watchdog: Watchdog, on_begin: Callable[[], None]) -> None:
        self._progress = progress
        self._watchdog = watchdog
        self._on_begin = on_begin
        self._of = ""

    def begin(self, stage: str, total: int, unit: str) -> None:
        self._on_begin()
        self._of = f" of {total} {unit}"
        self._progress.begin(stage, total, unit)

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        activity.beat()
        self._watchdog.reached = f", after {done}{self._of}"
        self._progress.advance(done, metrics)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def end(self, metrics: Mapping[str, object]) -> None:
        self._progress.end(metrics)
