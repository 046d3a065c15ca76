"""Settings that all stages have which train a network that there is already."""

from __future__ import annotations

from pydantic import Field

from reasonmill.learn.settings import LearningSettings, LoraSettings
from reasonmill.recipe.reference import ModelRef
from reasonmill.stage import StageSettings


class _From(StageSettings):
    from_: ModelRef = Field(alias="from")


class TrainingSettings(LearningSettings, _From):  # the last base's settings come first
    """The network that is trained, and how its optimizer's steps are made."""


class PolicySettings(TrainingSettings):
    """Settings of stages that train a policy: all of its weights, or an adapter."""

    lora: LoraSettings | None = Field(default=None, description="the adapter that is trained in place of the weights")
    recompute: bool = Field(
        default=False,
        description="compute activations of layers once more in the backward pass, and keep none: less memory, more "
        "time, and on a CPU the same bits",
    )
