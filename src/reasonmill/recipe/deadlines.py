"""The `[watchdog]` table of a recipe: how long each phase of a stage may be without a sign of progress."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.activity import Phase


class Deadlines(BaseModel):
    """Seconds without a sign of progress until stacks are printed; after twice that, the run stops. 0: never.

    They are no settings of a stage, and so no part of its key. Working stages stay far below them: each decode step,
    each batch of an update, each graded problem and each reply of a server is a sign.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reading: float = Field(default=3600.0, ge=0, allow_inf_nan=False)
    sampling: float = Field(default=1800.0, ge=0, allow_inf_nan=False)
    grading: float = Field(default=1800.0, ge=0, allow_inf_nan=False)
    judging: float = Field(default=1800.0, ge=0, allow_inf_nan=False)
    update: float = Field(default=1800.0, ge=0, allow_inf_nan=False)
    saving: float = Field(default=3600.0, ge=0, allow_inf_nan=False)

    def of(self, phase: Phase) -> float:
        """The deadline of a phase in seconds; 0 for none."""
        seconds: float = getattr(self, phase)
        return seconds
