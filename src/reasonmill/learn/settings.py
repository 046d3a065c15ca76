"""Settings of learners that recipes have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.algo.schedules import Schedule
from reasonmill.settings import INCIDENTAL, Real
from reasonmill.stage import StageSettings


class OptimizerSettings(BaseModel):
    """AdamW (arXiv 1711.05101) and gradient clipping."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta1: Real = Field(default=0.9, ge=0, lt=1)
    beta2: Real = Field(default=0.95, ge=0, lt=1)
    epsilon: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    clip_norm: Real = Field(default=1.0, gt=0, description="largest norm of the gradient; longer ones are scaled down")


class LoraSettings(BaseModel):
    """LoRA (arXiv 2106.09685): an adapter is trained beside the weights, which stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1, description="of the two matrices beside each weight")
    alpha: Real = Field(default=32.0, gt=0, description="what they add is scaled by alpha / rank")
    targets: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="names of the linear layers, or their last parts; all but the head if empty"
    )


class LearningSettings(StageSettings):
    """Settings of stages that train a network: how its optimizer's steps are made."""

    schedule: Schedule
    optimizer: OptimizerSettings = OptimizerSettings()
    tokens_per_batch: int = Field(default=4096, ge=64, description="positions of one forward pass")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    state_every: Annotated[int, INCIDENTAL] = Field(default=50, ge=1, description="steps between saved states")
