"""Settings that all stages have which train a network that there is already."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reasonmill.algo.schedules import Schedule
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.recipe.reference import ModelRef
from reasonmill.settings import INCIDENTAL
from reasonmill.stage import StageSettings


class TrainingSettings(StageSettings):
    """The network that is trained, and how its optimizer's steps are made."""

    from_: ModelRef = Field(alias="from")
    schedule: Schedule
    optimizer: OptimizerSettings = OptimizerSettings()
    tokens_per_batch: int = Field(default=4096, ge=64, description="positions of one forward pass")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    state_every: Annotated[int, INCIDENTAL] = Field(default=50, ge=1, description="steps between saved states")
