"""Where a run computes, and what does it there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from reasonmill.protocols import Learner, Preference, Renderer, RewardLearner, Sampler, Scorer, View

if TYPE_CHECKING:
    from reasonmill.algo.losses import LossSettings
    from reasonmill.learn.settings import LoraSettings, OptimizerSettings
    from reasonmill.rewards.judge import Judge, JudgeSettings
    from reasonmill.servers.client import Replies
    from reasonmill.servers.settings import TeacherSettings
    from reasonmill.types import LossKind

Precision = Literal["auto", "fp32", "bf16"]  # auto: bf16 on CUDA, fp32 elsewhere
# Sequences that a sampler runs at the same time, by default.
SLOTS = 512
# Of a GPU's memory, what is left free beside all that is planned: for what a step of the engine computes, graphs, and
# holes between blocks.
MARGIN = 1 / 16
# Of a GPU's memory, what keys and values get where nobody learns; the rest is for weights and whatever else there is.
SAMPLING_SHARE = 0.4
# Tokens of a GPU engine's memory that a sequence takes at most beyond its own.
SEQUENCE_REST = 128


@dataclass(frozen=True)
class Placement:
    """Which devices a run computes on, and what runs there.

    Attributes:
        count: how many devices of the kind.
        backend: what samples and learns on them.
    """

    device: Literal["cpu", "cuda"]
    count: int = 1
    backend: Literal["native"] = "native"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a run needs at least one device, got {self.count}")


@dataclass(frozen=True)
class Largest:
    """The largest step of a stage.

    Attributes:
        row: positions of its longest forward pass.
        text: tokens of the longest sequence that is trained on.
        kind: what the loss of its batches is made from; `loss` says more of it.
        keeps_reference: whether a frozen copy of the weights is held beside them.
        sequences, longest: how many sequences are sampled together at most, and tokens of the longest; 0 if none are.
        prompt: tokens of the longest prompt.
        scores: whether reward models compute while it samples.
    """

    row: int
    text: int
    kind: LossKind
    loss: LossSettings
    keeps_reference: bool = False
    sequences: int = 0
    longest: int = 0
    prompt: int = 0
    scores: bool = False


class Backend(Protocol):
    """Makes what computes, where the placement says: the only one that knows how it does."""

    @property
    def placement(self) -> Placement: ...

    def sampler(
        self,
        model: Path | Learner | TeacherSettings,
        *,
        slots: int = SLOTS,
        precision: Precision = "auto",
        replies: Replies | None = None,
    ) -> Sampler:
        """A sampler of a model directory, of what a learner is learning, or of a teacher behind a server.

        Args:
            slots: sequences that run at the same time.
            replies: keeps what a teacher says as it comes.
        """

    def renderer(self, model: Path | TeacherSettings) -> Renderer:
        """The renderer that the model's sampler needs."""

    def positions(self, model: Path | TeacherSettings) -> int | None:
        """How many tokens a sequence of the model may have; None where nothing says that."""

    def learner(
        self,
        model: Path,
        optimizer: OptimizerSettings,
        *,
        precision: Precision = "auto",
        temperature: float = 1.0,
        teacher: Path | None = None,
        lora: LoraSettings | None = None,
        recompute: bool = False,
        seed: int = 0,
    ) -> Learner:
        """A learner of a model directory.

        Args:
            temperature: that of the distribution that is scored; the sampler's, for policy gradients.
            teacher: the model that "kl" batches are trained towards; it must read the same tokens.
            lora: the adapter that is trained in place of the weights, which begins as `seed` says.
            recompute: whether activations of layers are computed once more in the backward pass, instead of kept.
        """

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

    def rehearse(self, learner: Learner, largest: Largest, sampler: Sampler | None, tokens: int | None) -> int:
        """Goes once through the largest step of a stage before its first, and forgets it: it moves no bit of what is
        sampled and trained. So what does not fit into a GPU's memory fails in the first minute, and code is compiled
        for the same shapes wherever the stage begins or resumes. Then the sampler's memory is made, which is given
        back while the learner learns.

        Args:
            tokens: the size of that memory when the stage began; None where it begins.

        Returns:
            Its size; 0 where no bit depends on one.

        Raises:
            OutOfMemory: it does not fit.
        """

    def reward_learner(
        self, policy: Path, optimizer: OptimizerSettings, *, view: View, precision: Precision = "auto"
    ) -> RewardLearner:
        """A learner of the policy with a scalar head."""

    def scorer(
        self, model: Path, preference: Preference, *, tokens_per_batch: int, precision: Precision = "auto"
    ) -> Scorer:
        """What scores completions with a reward model."""

    def judge(self, settings: JudgeSettings, *, replies: Replies | None = None) -> Judge:
        """A judge behind a server, which is looked for when it is first asked; `replies` keeps what it says."""
