"""The `[watchdog]` table of a recipe: how long each phase of a stage may be without a sign of progress."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from reasonmill.activity import Phase
from reasonmill.settings import Seconds


class Deadlines(BaseModel):
    """Seconds without a sign of progress until stacks are printed; after twice that, the run stops. 0: never.

    They are no settings of a stage, and so no part of its key. Working stages stay far below them: each decode step,
    each batch of an update, each graded problem and each reply of a server is a sign.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reading: Seconds = 3600.0
    sampling: Seconds = 1800.0
    grading: Seconds = 1800.0
    judging: Seconds = 1800.0
    update: Seconds = 1800.0
    saving: Seconds = 3600.0

    def of(self, phase: Phase) -> float:
        """The deadline of a phase in seconds; 0 for none."""
        seconds: float = getattr(self, phase)
        return seconds
