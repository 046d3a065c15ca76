"""What every stage is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.plugins.catalogue import Catalogue
from reasonmill.protocols import Progress
from reasonmill.rewards.combination import NOT_RULES, RewardWeights, Scorer
from reasonmill.store.home import Home
from reasonmill.tasks.named import NamedTask

ArtifactKind = Literal["model", "rollouts", "dataset", "reward-model", "evaluation", "verdict"]


class StageSettings(BaseModel):
    """Settings that every kind of stage has; each kind's own settings derive from it, next to its code."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="names the stage in the recipe's graph")
    kind: str = Field(description="what the stage does")

    def against_more_steps(self) -> str | None:
        """Why a finished stage with these settings can't go on where it ended when its `steps` are raised.

        None where the steps that it has taken are the first of any larger number.
        """
        return f"a stage of kind {self.kind!r} can't"


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads: a directory, and the digest that identifies its content."""

    path: Path
    digest: str


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage of one run.

    `key` identifies the stage's settings, inputs and code, and names its steps and states in the ledger.
    `seed` is the recipe's. `stop_requested` tells whether the user asked to stop; a stage looks at it between
    steps, saves what it needs to resume and raises Interrupted. `keeps_last_state` asks for the state after the last
    step, from which the stage could be trained for more steps.
    """

    key: str
    seed: int
    device: str
    home: Home
    progress: Progress
    stop_requested: Callable[[], bool]
    catalogue: Catalogue
    keeps_last_state: bool = False

    def task(self, name: str) -> NamedTask:
        """The task that the recipe calls so."""
        return self.catalogue.task(name)

    def rewards(self, weights: Mapping[str, float], scorers: Mapping[str, Scorer]) -> RewardWeights:
        """The rewards that the recipe calls so, with their weights.

        Args:
            scorers: the reward models, by name of the reward.
        """
        rules = {name: self.catalogue.reward(name) for name in weights if name not in NOT_RULES}
        return RewardWeights(weights, rules, scorers)


@dataclass(frozen=True)
class Outcome:
    """What a stage made: `write` fills a new directory with it, and the pipeline commits that directory.

    `tokens` counts the tokens that the stage processed (trained on and generated). In `metrics`, a figure with an
    interval is {"value", "low", "high"}, with None for the ends that a single problem leaves open; others are plain
    numbers.
    """

    write: Callable[[Path], None]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
