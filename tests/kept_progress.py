"""A Progress that shows nothing, and keeps what it is told for the test to look at; and a run that has one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reasonmill.store.home import Home


class Killed(Exception):
    """Stands for a kill of the process while a stage runs."""


class KeptProgress:
    """Keeps the size of the stage, how far it was, the metrics of its steps, and the notes.

    Args:
        kill_at: the `done` at which the stage ends with `Killed`.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.total = 0
        self.done: list[int] = []
        self.metrics: list[dict[str, float]] = []
        self.notes: list[str] = []
        self._kill_at = kill_at

    def begin(self, stage: str, total: int, unit: str) -> None:
        self.total = total

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        self.done.append(done)
        self.metrics.append(dict(metrics))
        if done == self._kill_at:
            raise Killed

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, metrics: Mapping[str, object]) -> None: ...


@dataclass
class FakeRun:
    """What the loop needs of a stage's context; it is asked to stop after so many looks."""

    home: Home
    looks: int = 99
    key: str = "k"
    progress: KeptProgress = field(default_factory=KeptProgress)
    keeps_last_state: bool = False

    def stop_requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0
