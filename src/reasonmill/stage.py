"""What every stage is given and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.curation.asked import Asked
from reasonmill.errors import RecipeError
from reasonmill.kept_replies import Budgeted, KeptReplies
from reasonmill.placement import Backend, Largest
from reasonmill.plugins.catalogue import Catalogue, rows_of
from reasonmill.plugins.sources import ENGINES
from reasonmill.protocols import Learner, Progress, Reward, Sampler, Scorer
from reasonmill.rewards.combination import NOT_RULES, RewardWeights
from reasonmill.rewards.judged import JudgedReward
from reasonmill.store.home import Home
from reasonmill.store.ledger import AT_STEP, OF_STAGE
from reasonmill.store.steps import keep_memory, kept_memory
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Artifact

P = ParamSpec("P")
Made = TypeVar("Made")
Row = TypeVar("Row")
ArtifactKind = Literal["model", "rollouts", "dataset", "reward-model", "evaluation", "verdict"]


class StageSettings(BaseModel):
    """Settings that every kind of stage has; each kind's own settings derive from it, next to its code."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="names the stage in the recipe's graph")
    kind: str = Field(description="what the stage does")

    def against_more_steps(self) -> str | None:
        """Why a finished stage with these settings can't resume after its last step when its `steps` are raised.

        None where the steps that it has taken are the first of any larger number.
        """
        return f"a stage of kind {self.kind!r} can't"

    def kept_steps(self) -> range:
        """The steps after which a stage with these settings keeps its model on its way: `name@step` names it."""
        return range(0)


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads: a directory, and the digest that identifies its content."""

    path: Path
    digest: str


def _from_backend(
    make: Callable[Concatenate[Backend, P], Made], need: str = ""
) -> Callable[Concatenate[StageContext, P], Made]:
    """The method of a context that does what a backend's method does.

    It makes what a stage may get only where the stage says that it needs it. What is not repeatable is remembered, and
    what the user should know of what was made is said.
    """

    def made_for(context: StageContext, /, *args: P.args, **kwargs: P.kwargs) -> Made:
        if need and need not in context.needs:
            raise RecipeError(
                f"the stage takes a {need} and does not say so, so that its key would not cover it",
                fix=f"add {need!r} to NEEDS in the stage's module",
            )
        made: Made = getattr(context.backend, make.__name__)(*args, **kwargs)
        if not getattr(made, "repeatable", True):
            context._unrepeatable.append(made)
        for remark in getattr(made, "remarks", ()):
            context.progress.note(remark)
        return made

    made_for.__doc__ = make.__doc__
    return made_for


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage of one run, and the one place where it gets what computes.

    `key` identifies the stage's settings, inputs and code, and names its steps and states in the ledger.
    `seed` is the recipe's. `stop_requested` says whether the user asked to stop; a stage looks at it between
    steps, saves what it needs to resume and raises Interrupted. `keeps_last_state` asks for the state after the last
    step, from which the stage could be trained for more steps. `needs` are what the stage's key covers beside its own
    code: it gets nothing else. `asked()` are the problems that the recipe's evaluations ask, which it refuses to train
    on. `parents`, `config_digest` and `marks` go into the records of models that it keeps on its way.
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
    asked: Callable[[], Asked] = Asked
    parents: tuple[str, ...] = ()
    config_digest: str = ""
    marks: Mapping[str, Any] = field(default_factory=dict)
    _unrepeatable: list[object] = field(default_factory=list, init=False, repr=False)
    _judged: list[KeptReplies] = field(default_factory=list, init=False, repr=False)

    def task(self, name: str) -> NamedTask:
        """The task that the recipe calls so."""
        return self.catalogue.task(name)

    def rows(
        self,
        what: Literal["conversations", "labelled"],
        names: Sequence[str],
        inputs: Mapping[str, Input],
        read: Callable[[Path], Sequence[Row]],
    ) -> list[Row]:
        """All rows of what a setting `data` names: what earlier stages made, and tables of data of the recipe.

        Args:
            what: what is asked of a table.
            inputs: what the stage reads. An entry of `data` that is none of it names a table.
            read: reads what an earlier stage made, from its directory.
        """
        found: list[Row] = []
        for place, name in enumerate(names):
            made = inputs.get(f"data[{place}]")
            found += rows_of(self.catalogue.plugin("data", name).made, name, what) if made is None else read(made.path)
        return found

    def rewards(self, weights: Mapping[str, float], scorers: Mapping[str, Scorer]) -> RewardWeights:
        """The rewards that the recipe calls so, with their weights.

        Args:
            scorers: the reward models, by name of the reward.
        """
        rules = {name: self._rule(name) for name in weights if name not in NOT_RULES}
        return RewardWeights(weights, rules, scorers)

    def _rule(self, name: str) -> Reward:
        rule = self.catalogue.reward(name)
        if not isinstance(rule, JudgedReward):
            return rule
        kept = KeptReplies(self.home, f"{self.key}/rewards/{name}")
        self._judged.append(kept)
        return rule.asking(self.judge(rule.server, replies=Budgeted(kept, rule.budget, f"the reward {name!r}")))

    def drop_judged(self) -> None:
        """Forgets what the judges of rewards said: the stage is trained, and nobody asks them again."""
        for kept in self._judged:
            kept.drop()

    def rehearse(self, learner: Learner, largest: Callable[[], Largest], sampler: Sampler | None = None) -> None:
        """Goes once through the largest step of the stage before its first, on devices where that can fail or settle
        something; see `Backend`. The size of the sampler's memory is kept, and is the same when the stage is resumed.
        """
        if self.backend.placement.device == "cpu":
            return
        kept, began = kept_memory(self.home, self.key), time.monotonic()
        tokens = self.backend.rehearse(learner, largest(), sampler, kept)
        room = f", and made room for {tokens:,} tokens" if tokens else ""
        self.progress.note(f"went through the largest step{room}, in {time.monotonic() - began:.0f} s")
        if tokens and kept is None:
            keep_memory(self.home, self.key, tokens)

    def intermediate(self, stage: str, taken: int, digest: str) -> Artifact:
        """The record of a model that the stage keeps after so many steps, and goes on."""
        metrics = {OF_STAGE: self.key, AT_STEP: taken, **self.marks}
        return Artifact(digest, "model", f"{stage}@{taken}", self.parents, self.config_digest, metrics)

    @cached_property
    def replies(self) -> KeptReplies:
        """Keeps what a server says to the stage as it comes; to be dropped when what was made of it is committed."""
        return KeptReplies(self.home, self.key)

    @property
    def is_repeatable(self) -> bool:
        """Whether all samplers and judges so far give the same again when they are asked the same."""
        return not self._unrepeatable

    # What computes, as the backend makes it: see `Backend`.
    sampler = _from_backend(Backend.sampler, need="sampler")
    renderer = _from_backend(Backend.renderer)
    positions = _from_backend(Backend.positions)
    learner = _from_backend(Backend.learner, need="learner")
    new_learner = _from_backend(Backend.new_learner, need="learner")
    reward_learner = _from_backend(Backend.reward_learner, need="reward-learner")
    scorer = _from_backend(Backend.scorer, need="scorer")
    judge = _from_backend(Backend.judge)


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
