"""What one call of a worker may take."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.settings import Real


class Limits(BaseModel):
    """The limits of a grader that runs in a worker. They bound what hangs; a grader that works stays far below them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Real = Field(default=10.0, gt=0, description="time for one response, counted from when it begins")
    memory_gb: Real = Field(default=2.0, gt=0, description="memory of a worker beyond what it begins with")
    processes: int = Field(default=64, ge=0, description="processes and threads that may be started")
