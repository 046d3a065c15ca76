"""Settings of learners that recipes have."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class OptimizerSettings(BaseModel):
    """AdamW (arXiv 1711.05101) and gradient clipping."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0, description="largest norm of the gradient; longer ones are scaled down")
