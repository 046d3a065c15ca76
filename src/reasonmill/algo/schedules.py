"""Learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reasonmill.settings import Real


class Schedule(BaseModel):
    """Linear warm-up to `peak`, then constant, or cosine down to `peak * final_share` at the last step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    peak: Real = Field(gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    final_share: Real = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _final_share_has_effect(self) -> Schedule:
        if self.decay == "constant" and "final_share" in self.model_fields_set:
            raise ValueError("final_share has no effect on a constant rate; remove it, or set decay")
        return self

    def against_more_steps(self) -> str | None:
        """Why the rates of the first steps depend on the number of steps; None where they do not."""
        return None if self.decay == "constant" else f"its {self.decay} schedule depends on the number of steps"

    def at(self, step: int, steps: int) -> float:
        """The learning rate of step 0 <= `step` < `steps`."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.peak
        progress = (step - self.warmup_steps) / max(1, steps - 1 - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak * (self.final_share + (1 - self.final_share) * cosine)
