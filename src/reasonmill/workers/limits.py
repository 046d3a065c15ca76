"""What one call of a worker may take."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.settings import Real

_USUAL_S = 10.0


class Limits(BaseModel):
    """The limits of a grader that runs in a worker. They bound what hangs; a grader that works stays far below them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Real | None = Field(
        default=None, gt=0, description="time for one response, counted from when it begins; 10, or what it needs"
    )
    memory_gb: Real = Field(default=2.0, gt=0, description="memory of a worker beyond what it begins with")
    processes: int = Field(default=64, ge=0, description="processes and threads that may be started")

    def at_least(self, seconds: float) -> Limits:
        """The limits where nobody gave the time: the usual one, or more for what takes longer by itself."""
        return self if self.seconds is not None else self.model_copy(update={"seconds": max(_USUAL_S, seconds)})
