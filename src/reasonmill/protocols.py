"""The seams: each Protocol has several implementations, and one contract test that all of them pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from reasonmill.types import Completion, Grade, Message, Problem, Request

if TYPE_CHECKING:
    from torch import Tensor

    from reasonmill.algo.losses import LossSettings
    from reasonmill.algo.packing import Batch, TextRow

# Reasoning has answers that a rule can check. General prompts are judged by reward models: each belongs either to the
# prompts that want help or to those that put safety to the test (R1 paper, section 3).
Domain = Literal["reasoning", "helpfulness", "safety"]
# What of a general response a reward model is asked about, and what of a completion it is shown for that: the final
# answer without the thinking, or all of it.
Preference = Literal["helpfulness", "safety"]
View = Literal["answer", "response"]


class Renderer(Protocol):
    """Messages to tokens and back."""

    stop_tokens: frozenset[int]

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the conversation up to where the assistant's next turn begins."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Text of completion tokens, thinking tags included, stop tokens left out."""
        ...

    def response(self, text: str) -> tuple[int, ...]:
        """Tokens of an assistant's turn that says `text`, its stop token last: what fine-tuning learns to write."""
        ...

    def num_tokens(self, text: str) -> int:
        """How many tokens a text has; for measures, never to make training data."""
        ...


class Engine(Protocol):
    """Runs many requests at the same time, one token of each in a step. Its memory is kept from one to the next.

    A completion depends on its request and the weights alone, wherever and beside whatever it runs.
    """

    @property
    def version(self) -> int:
        """That of the weights, which requests carry that start with them."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether the same request has the same completion each time, as its noise says."""
        ...

    def submit(self, request: Request) -> int:
        """Puts a request behind those that wait; returns its ticket, which no other request ever has."""
        ...

    def step(self) -> None:
        """Starts requests that wait, or draws the next token of all that run."""
        ...

    def finished(self) -> list[tuple[int, Completion]]:
        """Tickets and completions that were finished since last asked."""
        ...

    def drawn(self, ticket: int, start: int = 0) -> list[int]:
        """The tokens that a request has drawn so far, from number `start` on; none of one that waits or is finished."""
        ...

    def cancel(self, ticket: int) -> None:
        """Forgets a request, whether it waits, runs or is finished: nothing more is heard of it."""
        ...

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights by name, without a copy where they are the engine's own already."""
        ...


# Asked once for all completions of a call that finish in the same step, in the order of their indices. Where it gives a
# request, that goes on under the same index in place of the completion.
FollowUp = Callable[[Sequence[tuple[int, Completion]]], Sequence[Request | None]]


class Sampler(Protocol):
    """Draws completions from the policy's current weights."""

    @property
    def version(self) -> int:
        """That of the weights; completions carry the one that they started with."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether the same requests have the same completions each time. A run can promise its bits only then."""
        ...

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yields (index into `requests`, completion) as completions finish. A call that is given up is forgotten."""
        ...

    def stream(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one completion as they are drawn."""
        ...

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights by name: how a learner publishes them."""
        ...


class Trained(Protocol):
    """What every learner does with its weights, whatever it learns from."""

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One optimizer step on the gathered gradients, which are cleared; returns e.g. the gradient's norm.

        Where something of the update was not finite, no step is taken and nothing of the state changes; "optim/skipped"
        is 1.0 then, and so is "skipped/" with the name of the cause.
        """
        ...

    @property
    def skipped_batch(self) -> str:
        """Digest of the batches of the last update that was skipped; empty if none was."""
        ...

    def save(self, directory: Path) -> None:
        """Writes all that a resumed run needs to go on to the same bits: weights, moments, counters."""
        ...

    def load(self, directory: Path) -> None:
        """Takes back what `save` wrote."""
        ...

    def save_model(self, directory: Path) -> None:
        """Writes the weights as a Hugging Face model, with the tokenizer that came with it."""
        ...


class Learner(Trained, Protocol):
    """Turns batches into weights. It knows losses and gradients, and no algorithm."""

    @property
    def num_parameters(self) -> int: ...

    def forward_backward(self, batch: Batch, loss: LossSettings, denominator: float) -> dict[str, float]:
        """Adds the gradient of sum(token losses) / denominator; returns sums over the batch's tokens."""
        ...

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities [tokens of the batch] of each token under the current weights, no gradient."""
        ...

    def keep_reference(self) -> None:
        """Makes the current weights the reference, which is saved with the state from now on."""
        ...

    def reference_logprobs(self, batches: Sequence[Batch]) -> Tensor:
        """Log-probabilities of all tokens of the batches, joined in order, under the reference's weights."""
        ...

    def publish(self, sampler: Sampler, version: int) -> None:
        """Makes the sampler draw from the current weights; completions that start afterwards carry `version`."""
        ...


class RewardLearner(Trained, Protocol):
    """Turns labelled texts into a reward model."""

    def forward_backward(
        self, row: TextRow, losses: Callable[[Tensor], Tensor], denominator: float
    ) -> tuple[float, Tensor]:
        """Adds the gradient of sum(losses) / denominator, where `losses` takes the rewards of the row's texts; returns
        (sum of the losses, the rewards on the CPU)."""
        ...

    def rewards(self, row: TextRow) -> Tensor:
        """The rewards of the row's texts under the current weights, no gradient."""
        ...


class Scorer(Protocol):
    """A reward model."""

    def score(self, problem: Problem, completions: Sequence[Completion]) -> list[float]:
        """One number for each completion; one that is not finite says that it could not be scored."""
        ...


class Task(Protocol):
    """Problems and what decides whether an attempt solves one."""

    name: str
    domain: Domain

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of a split; the same arguments give the same problem everywhere."""
        ...

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        """The problems of a split in order; endless for procedural tasks."""
        ...

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        """One grade for each completion; a grade's `accuracy` part is 1.0 for a right answer, else 0.0."""
        ...


class Progress(Protocol):
    """Where a stage tells how far it is: the live display, plain lines, or a recorder in tests."""

    def begin(self, stage: str, total: int, unit: str) -> None:
        """A stage starts; it will take `total` units (steps, problems, documents)."""
        ...

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        """`done` units are finished in all; metrics are the latest, by their `area/name`."""
        ...

    def note(self, text: str) -> None:
        """Something the user should read, once."""
        ...

    def end(self, metrics: Mapping[str, object]) -> None:
        """The stage is finished with these metrics."""
        ...
