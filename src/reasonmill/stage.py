"""What every stage is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.errors import RecipeError
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.placement import SLOTS, Backend, Placement, Precision
from reasonmill.plugins.catalogue import Catalogue
from reasonmill.plugins.sources import ENGINES
from reasonmill.protocols import Learner, Preference, Progress, Renderer, RewardLearner, Sampler, Scorer, View
from reasonmill.rewards.combination import NOT_RULES, RewardWeights
from reasonmill.rewards.judge import Judge, JudgeSettings
from reasonmill.servers.client import TeacherSettings
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
    """The surroundings of one stage of one run, and the one place where it gets what computes.

    `key` identifies the stage's settings, inputs and code, and names its steps and states in the ledger.
    `seed` is the recipe's. `stop_requested` tells whether the user asked to stop; a stage looks at it between
    steps, saves what it needs to resume and raises Interrupted. `keeps_last_state` asks for the state after the last
    step, from which the stage could be trained for more steps. `needs` are what the stage's key covers beside its own
    code: it gets nothing else.
    """

    key: str
    seed: int
    backend: Backend
    home: Home
    progress: Progress
    stop_requested: Callable[[], bool]
    catalogue: Catalogue
    keeps_last_state: bool = False
    needs: Collection[str] = frozenset(ENGINES)
    _unrepeatable: list[object] = field(default_factory=list, init=False, repr=False)

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

    @property
    def placement(self) -> Placement:
        return self.backend.placement

    @property
    def is_repeatable(self) -> bool:
        """Whether all samplers and judges so far give the same again when they are asked the same."""
        return not self._unrepeatable

    def sampler(
        self, model: Path | Learner | TeacherSettings, *, slots: int = SLOTS, precision: Precision = "auto"
    ) -> Sampler:
        """A sampler of a model directory, of what a learner is learning, or of a teacher behind a server.

        Args:
            slots: sequences that run at the same time.
        """
        self._require("sampler")
        made = self.backend.sampler(model, slots=slots, precision=precision)
        if not made.repeatable:
            self._unrepeatable.append(made)
        return made

    def renderer(self, model: Path | TeacherSettings) -> Renderer:
        """The renderer that the model's sampler needs."""
        return self.backend.renderer(model)

    def learner(
        self,
        model: Path,
        optimizer: OptimizerSettings,
        *,
        precision: Precision = "auto",
        temperature: float = 1.0,
        teacher: Path | None = None,
    ) -> Learner:
        """A learner of a model directory.

        Args:
            temperature: that of the distribution that is scored; the sampler's, for policy gradients.
            teacher: the model that "kl" batches are trained towards; it must read the same tokens.
        """
        self._require("learner")
        return self.backend.learner(model, optimizer, precision=precision, temperature=temperature, teacher=teacher)

    def new_learner(
        self,
        model_type: str,
        config: dict[str, Any],
        optimizer: OptimizerSettings,
        *,
        seed: int,
        precision: Precision = "auto",
    ) -> Learner:
        """A learner of a new network with random weights; its model is saved without a tokenizer."""
        self._require("learner")
        return self.backend.new_learner(model_type, config, optimizer, seed=seed, precision=precision)

    def reward_learner(
        self, policy: Path, optimizer: OptimizerSettings, *, view: View, precision: Precision = "auto"
    ) -> RewardLearner:
        """A learner of the policy with a scalar head."""
        self._require("reward-learner")
        return self.backend.reward_learner(policy, optimizer, view=view, precision=precision)

    def scorer(
        self, model: Path, preference: Preference, *, tokens_per_batch: int, precision: Precision = "auto"
    ) -> Scorer:
        """What scores completions with a reward model."""
        self._require("scorer")
        return self.backend.scorer(model, preference, precision=precision, tokens_per_batch=tokens_per_batch)

    def judge(self, settings: JudgeSettings) -> Judge:
        """A judge behind a server, who may say something else each time."""
        made = self.backend.judge(settings)
        self._unrepeatable.append(made)
        return made

    def _require(self, need: str) -> None:
        if need not in self.needs:
            raise RecipeError(
                f"the stage takes a {need} and does not say so, so that its key would not cover it",
                fix=f"add {need!r} to NEEDS in the stage's module",
            )


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
