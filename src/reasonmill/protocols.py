"""The seams: each Protocol has several implementations, and one contract test that all of them pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from reasonmill.randomness import Part
from reasonmill.types import Completion, Conversation, Episode, Grade, Message, Problem, Request

if TYPE_CHECKING:
    from torch import Tensor

    from reasonmill.algo.losses import LossSettings
    from reasonmill.algo.packing import Batch, TextRow
    from reasonmill.tasks.named import NamedTask

# Reasoning has answers that a rule can check. General prompts are judged by reward models: each belongs either to the
# prompts that want help or to those that put safety to the test (R1 paper, section 3).
Domain = Literal["reasoning", "helpfulness", "safety"]
# What of a general response a reward model is asked about, and what of a completion it is shown for that: the final
# answer without the thinking, or all of it.
Preference = Literal["helpfulness", "safety"]
View = Literal["answer", "response"]

# What continues completions of a call that finished in the same step, given as (index, completion) in the order of
# their indices: for each of them a request, or None.
FollowUp = Callable[[Sequence[tuple[int, Completion]]], Sequence[Request | None]]


class Renderer(Protocol):
    """Messages to tokens and back. Text is text: what spells a control token in a message or a response becomes none.

    Attributes:
        stop_tokens: tokens that end a turn.
        stop_strings: texts that end a turn, as the model's files name them; such a turn has no token at its end.
        opening: what `render` says on behalf of the assistant, a tag that opens its thinking for example: a turn's text
            has it, and a turn's tokens do not.
    """

    stop_tokens: frozenset[int]
    stop_strings: tuple[str, ...]
    opening: str

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the conversation up to where the assistant's next turn begins."""

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """What `render` gives of each conversation; many are faster together."""

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens between the stop token of one of the assistant's turns and the beginning of its next turn, where
        `messages` were said in between. What was sampled before is never tokenised again.

        Raises:
            UnsupportedModel: the model's template can't continue a conversation in this way.
        """

    def text(self, tokens: Sequence[int]) -> str:
        """Text of a turn from its completion tokens: `opening`, thinking tags included, stop tokens left out."""

    def response(self, text: str) -> tuple[int, ...]:
        """Tokens of an assistant's turn that says `text`, without `opening`, and with the token last that the model's
        template ends turns with: what fine-tuning learns to write."""

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of the texts has; for measures, never to make training data."""


@dataclass(frozen=True)
class MemoryNeed:
    """What an engine's memory for keys and values is made for.

    Attributes:
        sequences, longest: more than so many sequences do not run together, and none is longer.
        prompt: tokens of the longest prompt.
        beside: bytes that others will take on the same device while it is there.
        in_turn: bytes that others will take while it is given back.
        tokens: the size that it had when the stage began; None where it begins.
    """

    sequences: int
    longest: int
    prompt: int = 0
    beside: int = 0
    in_turn: int = 0
    tokens: int | None = None


class Engine(Protocol):
    """Runs many requests at the same time, one token or a few of each in a step. Its memory is kept from one to the
    next, unless it rests in between.

    A completion depends on its request and the weights alone, wherever and beside whatever it runs; on CUDA, and of a
    large network anywhere, up to rounding, which other shapes of a batch change.
    """

    @property
    def version(self) -> int:
        """That of the weights, which requests carry that start with them."""

    @property
    def repeatable(self) -> bool:
        """Whether the same requests, asked in the same order where none runs, have the same completions each time."""

    @property
    def in_fp32(self) -> bool:
        """Whether a network of this process computes the log-probs, all of it in fp32."""

    def copied_bytes(self, sequences: int) -> int:
        """Bytes of copies of weights that it holds while so many sequences run."""

    def reserve(self, need: MemoryNeed) -> int:
        """Makes its memory while nothing runs; returns for how many tokens, or 0 where no bit depends on that.

        Raises:
            OutOfMemory: it does not fit.
        """

    def rest(self) -> None:
        """Gives back, while nothing runs, what memory it can take again for the next request, as large and in the same
        place. No bit depends on it."""

    def submit(self, request: Request) -> int:
        """Puts a request behind those that wait; returns its ticket, which no other request ever has."""

    def step(self) -> None:
        """Starts requests that wait, or draws the next tokens of all that run. What is finished may be known a step
        later."""

    def finished(self) -> list[tuple[int, Completion]]:
        """Tickets and completions that were finished since last asked."""

    def drawn(self, ticket: int, start: int = 0) -> list[int]:
        """The tokens that a request has drawn so far, from number `start` on; none of one that waits or is finished."""

    def cancel(self, ticket: int) -> None:
        """Forgets a request, whether it waits, runs or is finished: nothing more is heard of it."""

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights by name, without a copy where they are the engine's own already."""


class Draws(Protocol):
    """What draws completions."""

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yields (index into `requests`, completion) as completions finish. A call that is given up is forgotten.

        Args:
            follow_up: asked about all completions that finish in the same step. Where it gives a request, that one runs
                under the same index in place of the completion, which is not yielded.
        """


class Sampler(Draws, Protocol):
    """Draws completions from the policy's current weights."""

    @property
    def version(self) -> int:
        """That of the weights; completions carry the one that they started with."""

    @property
    def repeatable(self) -> bool:
        """Whether the same requests have the same completions each time. A run can promise its bits only then."""

    @property
    def in_fp32(self) -> bool:
        """As of `Engine`: then its log-probs are those of a learner with the same weights that is in fp32, too."""

    def copied_bytes(self, sequences: int) -> int:
        """Bytes of copies of weights that it holds while so many sequences run."""

    def stream(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one completion as they are drawn."""

    def rest(self) -> None:
        """Gives back memory that it needs only while it samples, for others to use until it is asked again."""

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights by name: how a learner publishes them."""


class Trained(Protocol):
    """What every learner does with its weights, whatever it learns from."""

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One optimizer step on the gathered gradients, which are cleared; returns e.g. the gradient's norm.

        Where something of the update was not finite, no step is taken and nothing of the state changes; "optim/skipped"
        is 1.0 then, and so is "skipped/" with the name of the cause.
        """

    @property
    def skipped_batch(self) -> str:
        """Digest of the batches of the last update that was skipped; empty if none was."""

    def save(self, directory: Path) -> None:
        """Writes all that a resumed run needs to continue to the same bits: weights, moments, counters."""

    def load(self, directory: Path) -> None:
        """Takes back what `save` wrote."""

    def save_model(self, directory: Path) -> None:
        """Writes the weights as a Hugging Face model, with the tokenizer that came with it."""


class Learner(Trained, Protocol):
    """Turns batches into weights. It knows losses and gradients, and no algorithm."""

    @property
    def num_parameters(self) -> int: ...

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know of how it computes, a line each."""

    @property
    def in_fp32(self) -> bool:
        """Whether a network of this process computes the log-probs, all of it in fp32."""

    def forward_backward(self, batch: Batch, loss: LossSettings, denominator: float) -> dict[str, float]:
        """Adds the gradient of sum(token losses) / denominator; returns sums over the batch's tokens."""

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities [tokens of the batch] of each token under the current weights, no gradient.

        Those of tokens with weight 0 may be left out, and are 0 then.
        """

    def keep_reference(self) -> None:
        """Makes the current weights the reference, which is saved with the state from now on. A learner of an adapter
        has another reference, which nothing changes: the model without the adapter."""

    def reference_logprobs(self, batches: Sequence[Batch]) -> Tensor:
        """Log-probabilities of all tokens of the batches, joined in order, under the reference's weights."""

    def publish(self, sampler: Sampler, version: int) -> None:
        """Makes the sampler draw from the current weights; completions that start afterwards carry `version`."""


class RewardLearner(Trained, Protocol):
    """Turns labelled texts into a reward model."""

    def forward_backward(
        self, row: TextRow, losses: Callable[[Tensor], Tensor], denominator: float
    ) -> tuple[float, Tensor]:
        """Adds the gradient of sum(losses) / denominator, where `losses` takes the rewards of the row's texts; returns
        (sum of the losses, the rewards on the CPU)."""

    def rewards(self, row: TextRow) -> Tensor:
        """The rewards of the row's texts under the current weights, no gradient."""


class Scorer(Protocol):
    """A reward model."""

    def score(self, problem: Problem, completions: Sequence[Completion]) -> list[float]:
        """One number for each completion; one that is not finite says that it could not be scored."""


@dataclass(frozen=True)
class Measure:
    """What a part of a task's grades says about a model: evaluations report its mean, gates compare it.

    Attributes:
        part: the part of the grade, a share from 0 to 1.
        label: what tables call it.
        complement: whether the measure is 1 minus the part.
        better: which direction is the better one.
    """

    part: str
    label: str
    complement: bool = False
    better: Literal["higher", "lower"] = "higher"


class Task(Protocol):
    """Problems and what decides whether an attempt solves one.

    A task may also have `measures` (a mapping of names to Measure), `files` (paths whose content its problems or grades
    depend on), a method `language_share(text, language)` that raises ValueError for languages that it does not know,
    and a method `answer_of(response)`, which gives the final answer or None. With that, attempts can vote: two answers
    are the same if one is right where the other is the problem's `answer`. What a task leaves out is filled in by
    `tasks/named.py`.

    A problem names its language in `meta["language"]`; otherwise that of its last message is detected. Problems that
    are wordings of one thing, which a model knows or does not know, name it in `meta["cluster"]`: intervals count them
    as one observation.
    """

    domain: Domain

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of a split; the same arguments give the same problem everywhere."""

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        """The problems of a split in order; endless for procedural tasks."""

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        """One grade for each completion; a grade's `accuracy` part is 1.0 for a right answer, else 0.0."""


@dataclass(frozen=True)
class Attempt:
    """What a reward is given to look at.

    Attributes:
        task: the problem's, with its own measures where it has some.
        noise: names the rollout, for rewards that draw.
        accuracy: what the task's own grader says, from 0.0 to 1.0. None where it could not tell, and where workers
            measure the reward, which begin before it is known.
    """

    problem: Problem
    completion: Completion
    task: NamedTask
    noise: tuple[Part, ...]
    accuracy: float | None = None

    @property
    def step(self) -> int:
        """The stage's step that it was drawn in, the third part of what names it; 0 where nothing counts steps."""
        step = self.noise[2] if len(self.noise) > 2 else 0
        return step if isinstance(step, int) else 0


@dataclass(frozen=True)
class Measured:
    """What a reward says of an attempt.

    Attributes:
        value: the more the better; None where it does not apply, or could not tell.
        why_not: why it could not tell; empty where it could, or does not apply, so that the rollout's reward goes
            without it.
        parts: further numbers that it took down, by name.
    """

    value: float | None
    why_not: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, said: float | Measured | None) -> Measured:
        """What a reward that gave this says. Errors: it is no number."""
        if isinstance(said, Measured):
            return said
        return cls(None, "it gave no number") if said is None else cls(float(said))


class Reward(Protocol):
    """A part of the reward that a rule decides.

    It counts on all domains unless it has an attribute `domains`, a set of them.
    """

    def measure(self, attempt: Attempt) -> float | Measured | None:
        """A number, the more the better; None where it can't be measured, which leaves the rollout ungraded. A
        `Measured` can say more than that."""


class FunctionOfRows(Reward, Protocol):
    """A reward that looks at the rows of problems, and maybe at all attempts at one together.

    Attributes:
        of_groups: whether it does the latter.
    """

    of_groups: bool

    def require(self, task: NamedTask) -> None:
        """Refuses a task whose problems lack what it needs.

        Raises:
            RecipeError: they do.
        """

    def measure_group(self, attempts: Sequence[Attempt]) -> Sequence[Measured]:
        """What it says of each of the attempts at a problem."""


class Environment(Protocol):
    """Answers the policy's turns, so that an attempt at a problem has several of them.

    One environment serves all episodes at the same time: what it keeps of one of them stands in the episode's `state`.
    The same turns must have the same replies, or a resumed run ends differently.
    """

    max_turns: int  # the policy's turns in an episode, at most

    def start(self, problem: Problem) -> Episode:
        """A new episode; its messages are what the policy reads first."""

    async def reply(self, episode: Episode, completion: Completion) -> Sequence[Message] | None:
        """What the environment says to the policy's turn; None where the episode ends with it.

        It is not asked about the last turn that `max_turns` allows, nor about a turn that was cut off. Replies to turns
        that end together are awaited together. An error leaves this episode ungraded, and no other.

        Args:
            episode: all that came before the turn; `episode.grade(completion)` is what the task says of it.
        """


class Conversations(Protocol):
    """A source of conversations to mix into a dataset."""

    def conversation(self, index: int, *, noise: tuple[Part, ...]) -> Conversation:
        """Conversation `index`; `noise` names the draw, for example (seed, stage)."""


class Rewriting(Protocol):
    """Rewrites responses before they are learned from."""

    def rewrite(self, problem: Problem, response: str) -> str:
        """The response in other words; its answer must stay the same."""


class Progress(Protocol):
    """Where a stage reports how far it is: the live display, plain lines, or a recorder in tests."""

    def begin(self, stage: str, total: int, unit: str) -> None:
        """A stage starts; it will take `total` units (steps, problems, documents)."""

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        """`done` units are finished in all; metrics are the latest, by their `area/name`."""

    def note(self, text: str) -> None:
        """Something the user should read, once."""

    def end(self, metrics: Mapping[str, object]) -> None:
        """The stage is finished with these metrics."""
