"""Settings that all stages have which train a network that there is already."""

from __future__ import annotations

from pydantic import Field

from reasonmill.learn.settings import LearningSettings
from reasonmill.recipe.reference import ModelRef
from reasonmill.stage import StageSettings


class _From(StageSettings):
    from_: ModelRef = Field(alias="from")


class TrainingSettings(LearningSettings, _From):  # the last base's settings come first
    """The network that is trained, and how its optimizer's steps are made."""
