"""The records that travel between stages, samplers and learners. Standard library only.

Lengths in brackets: Q tokens of a prompt, C tokens of a completion, T tokens of an example, G rollouts of a group.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "abort"]
LossKind = Literal["ce", "pg", "kl"]
ConversationSource = Literal["reasoning", "general"]


class Numbers(Protocol):
    """Numbers, one for each token of an example: a list, a tuple or a one-dimensional numpy array."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


def held_out(split: str | None) -> bool:
    """Whether nothing that was drawn from a split may be trained on. Where the split is not known (None), it may."""
    return split not in (None, "train")


def content_digest(content: Any) -> str:
    """Hex digest (256 bits) of JSON content; the order of keys does not matter."""
    return hashlib.blake2b(_encode(content).encode(), digest_size=32).hexdigest()


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something to solve. `answer` is a gold answer; `meta` is what the task's grader needs (JSON values).

    `split` is the one that it was drawn from, None where that is not known. It is no part of what the problem is: ids
    and comparisons leave it out.
    """

    task: str
    messages: tuple[Message, ...]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = field(default=None, compare=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"a problem of task {self.task!r} has no messages")
        content = [self.task, [[m.role, m.content] for m in self.messages], self.answer, dict(self.meta)]
        object.__setattr__(self, "id", content_digest(content)[:16])

    @property
    def cluster(self) -> tuple[str, str]:
        """(task, what the problem is about): problems that are wordings of one thing are no independent observations.

        A task names the thing in `meta["cluster"]`; a problem that has none is a thing of its own.
        """
        return self.task, str(self.meta.get("cluster", self.id))


# More than any model has positions.
MOST_TOKENS = 100_000_000


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn. `top_k` 0 and `top_p` 1.0 switch their filter off; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Beyond these, logits that are divided by it are no longer finite, or all alike.
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(f"temperature must be 0, or a finite number from 1e-6 to 1e6, got {self.temperature}")
        if not 1e-6 <= self.top_p <= 1:
            raise ValueError(f"top_p must lie in [1e-6, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0: off), got {self.top_k}")
        if not 1 <= self.max_tokens <= MOST_TOKENS:
            raise ValueError(f"max_tokens must lie between 1 and {MOST_TOKENS:,}, got {self.max_tokens:,}")
        if any(not text for text in self.stop):
            raise ValueError("an empty stop string would stop every completion at once")


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to draw. `noise_key` decides its draws: position p uses the uniform number (noise_key, p)."""

    prompt_tokens: tuple[int, ...]
    params: SamplingParams
    noise_key: int

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise ValueError("a request needs at least one prompt token")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a sampler produced: `tokens`, `logprobs` and `sampled` have length C.

    `logprobs` are those of the distribution that was drawn from (after temperature, top-k and top-p); they are None
    only from a foreign teacher. `sampled` is False, and the log-prob 0.0, where an environment wrote the token. A stop
    token is part of `tokens`, and not of `text`. Over several turns, `text` and `finish` are those of the last one, and
    `policy_version` is the smallest.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    sampled: tuple[bool, ...]
    text: str
    finish: Finish
    policy_version: int

    def __post_init__(self) -> None:
        if len(self.sampled) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.sampled)} sampled flags")
        if self.logprobs is not None and len(self.logprobs) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.logprobs)} log-probs")

    @property
    def num_sampled(self) -> int:
        """How many tokens the policy wrote."""
        return sum(self.sampled)


@dataclass(frozen=True, slots=True)
class Grade:
    """A reward and what it is made of. A reward of None means that it could not be graded, which is not 0.0."""

    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    def __post_init__(self) -> None:
        if self.reward is None and not self.error:
            raise ValueError("an ungraded rollout must say why")
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"a reward must be finite, got {self.reward}")


def _not_graded(completion: Completion) -> Grade:
    return Grade(None, error="nobody grades the turns of this episode")


@dataclass(slots=True)
class Episode:
    """One attempt at a problem of an environment, as far as it has got.

    Attributes:
        messages: the conversation so far. An environment begins it with what the policy shall read first, by default
            the problem's messages; each turn of the policy and each reply are added as soon as the episode continues.
        turns: what the policy wrote in the turns of `messages`.
        state: whatever the environment keeps of this episode.
        grade: what the problem's task says of a turn, set as soon as the episode has begun.
    """

    problem: Problem
    messages: tuple[Message, ...] = ()
    state: Any = None
    turns: list[Completion] = field(default_factory=list)
    grade: Callable[[Completion], Grade] = field(default=_not_graded, repr=False)

    def __post_init__(self) -> None:
        self.messages = tuple(self.messages) or self.problem.messages


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment answered to a turn of the policy.

    Attributes:
        start, stop: tokens [start:stop) of the completion are the environment's.
        said: text of the turn before it.
        messages: what the tokens say.
    """

    start: int
    stop: int
    said: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One attempt at a problem; `prompt_tokens` has length Q.

    The completion is all that follows the prompt. It has one turn more than there are `replies` of an environment.
    """

    prompt_tokens: tuple[int, ...]
    completion: Completion
    grade: Grade
    replies: tuple[Reply, ...] = ()

    def __post_init__(self) -> None:
        sampled, turn = self.completion.sampled, 0
        for reply in self.replies:
            if not (turn < reply.start < reply.stop < len(sampled) and all(sampled[turn : reply.start])):
                raise ValueError(f"the reply at tokens {reply.start} to {reply.stop} has no turn before and behind it")
            if any(sampled[reply.start : reply.stop]):
                raise ValueError(f"the policy sampled a token of the reply at tokens {reply.start} to {reply.stop}")
            turn = reply.stop
        if not all(sampled[turn:]):
            raise ValueError("a token was not sampled by the policy, and is part of no reply")

    @property
    def texts(self) -> tuple[str, ...]:
        """What the policy wrote, turn by turn."""
        return (*(reply.said for reply in self.replies), self.completion.text)

    @property
    def dialogue(self) -> tuple[Message, ...]:
        """What was said between the prompt and the last turn."""
        return tuple(
            message for reply in self.replies for message in (Message("assistant", reply.said), *reply.messages)
        )


@dataclass(frozen=True, slots=True)
class Group:
    """G attempts at the same problem."""

    problem: Problem
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float | None]:
        return [rollout.grade.reward for rollout in self.rollouts]

    @property
    def is_flat(self) -> bool:
        """Whether no rollout is better than another, so that nothing can be learned from comparing them."""
        graded = [reward for reward in self.rewards if reward is not None]
        return len(graded) < 2 or max(graded) - min(graded) < 1e-9


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of a dataset: the turns up to the user's or a tool's last one, and what the assistant should say to it.

    It is text, tags included, so that students with any tokenizer can read it. `problem_id` is the id of the problem,
    or of the fact, small talk or request that general data is about. `split` is the problem's, None where it is not
    known.
    """

    messages: tuple[Message, ...]
    response: str
    source: ConversationSource
    problem_id: str
    split: str | None = None

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role not in ("user", "tool"):
            raise ValueError(
                f"the prompt of conversation {self.problem_id!r} must end with a turn of the user or a tool"
            )
        if not self.response:
            raise ValueError(f"the response of conversation {self.problem_id!r} is empty")


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence to train on. Every list has length T, and entry t speaks of predicting `tokens[t]`.

    `weights[t]` is 0 where a token is context only; `weights[0]` must be 0, because nothing predicts it. Lists may be
    numpy arrays, which pack faster. `sampler_logprobs` are those that the tokens were drawn with, `old_logprobs` those
    of the learner before the step's first update, and None where they are the same.
    """

    tokens: Numbers
    weights: Numbers
    loss: LossKind
    advantages: Numbers | None = None
    sampler_logprobs: Numbers | None = None
    old_logprobs: Numbers | None = None
    ref_logprobs: Numbers | None = None

    def __post_init__(self) -> None:
        length = len(self.tokens)
        for name in ("weights", "advantages", "sampler_logprobs", "old_logprobs", "ref_logprobs"):
            values = getattr(self, name)
            if values is not None and len(values) != length:
                raise ValueError(f"an example has {length} tokens but {len(values)} {name}")
        if length == 0 or self.weights[0] != 0:
            raise ValueError("the first token of an example can't be predicted: its weight must be 0")
        if self.loss == "pg" and (self.advantages is None or self.sampler_logprobs is None):
            raise ValueError("a policy-gradient example needs advantages and sampler_logprobs")


@dataclass(frozen=True, slots=True)
class Artifact:
    """What the ledger knows of an object in the store."""

    digest: str
    kind: str
    stage: str
    parents: tuple[str, ...]
    config_digest: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
