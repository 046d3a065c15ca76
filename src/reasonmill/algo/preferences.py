"""Preferences: which pairs of responses to learn from, the losses of reward models, and their calibration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from reasonmill.randomness import Part, generator, key
from reasonmill.types import Problem, Rollout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response that may be compared or labelled.

    Attributes:
        shown: the text that judge and reward model see of it.
        prompt, response: token ids of the conversation up to the response, and of `shown` as the assistant's turn.
    """

    problem: Problem
    rollout: Rollout
    shown: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def text(self) -> tuple[int, ...]:
        """What the reward model reads."""
        return self.prompt + self.response


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to the same problem, and by how much the judge prefers the chosen one."""

    chosen: Candidate
    rejected: Candidate
    margin: float


# How much better the first response of each pair is than the second in the judge's opinion; negative where it is worse,
# None where the judge gave no verdict.
Judge = Callable[[Sequence[tuple[Candidate, Candidate]]], Sequence[float | None]]


# Selection


def is_held_out(problem_id: str, share: float) -> bool:
    """Whether a problem is kept from training; about `share` of all problems are, the same ones in every run."""
    return key("held-out", problem_id) < share * 2**63


def draw(items: Sequence[T], limit: int, *noise: Part) -> list[T]:
    """Up to `limit` of the items, without replacement; the parts of `noise` name the draw."""
    return generator("draw", *noise).sample(list(items), min(limit, len(items)))


def judged(judge: Judge, pairs: Sequence[tuple[Candidate, Candidate]]) -> list[Pair | None]:
    """Each pair with the mean of the verdicts in both orders, so that a judge's liking for a place does not decide.

    None stands for a pair of which an order has no verdict.
    """
    verdicts = judge([order for first, second in pairs for order in ((first, second), (second, first))])
    return [_judged(*pair, *both) for pair, *both in zip(pairs, verdicts[0::2], verdicts[1::2], strict=True)]


def _judged(first: Candidate, second: Candidate, verdict: float | None, reversed_: float | None) -> Pair | None:
    if verdict is None or reversed_ is None:
        return None
    margin = (verdict - reversed_) / 2
    return Pair(first, second, margin) if margin >= 0 else Pair(second, first, -margin)


def with_balanced_lengths(pairs: Sequence[Pair], *noise: Part) -> list[Pair]:
    """As many pairs whose chosen response is longer by so and so many tokens as pairs whose rejected one is, so that
    length says nothing of which is chosen, nor how much longer a response is.

    Differences are compared in classes a tenth wide; of up to 13 tokens, each is a class of its own. Which of the
    surplus go is drawn; pairs of equal length all stay. The order is kept.
    """
    longer: defaultdict[int, list[int]] = defaultdict(list)
    shorter: defaultdict[int, list[int]] = defaultdict(list)
    for place, pair in enumerate(pairs):
        if gap := tokens_longer(pair):
            (longer if gap > 0 else shorter)[round(math.log(abs(gap), 1.1))].append(place)
    rng = generator("lengths", *noise)
    dropped: set[int] = set()
    for size in sorted(longer.keys() | shorter.keys()):
        surplus = max(longer[size], shorter[size], key=len)
        dropped.update(rng.sample(surplus, abs(len(longer[size]) - len(shorter[size]))))
    return [pair for place, pair in enumerate(pairs) if place not in dropped]


def tokens_longer(pair: Pair) -> int:
    """By how many tokens the chosen response is longer than the rejected one; negative where it is shorter."""
    return len(pair.chosen.response) - len(pair.rejected.response)


# Losses


def pairwise_losses(chosen: Tensor, rejected: Tensor, centring: float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected) of each pair's rewards [P] (Bradley-Terry).

    The difference leaves the level of the rewards open. `centring` adds centring * (chosen + rejected)^2, which keeps
    it near 0 (arXiv 2312.09244, section 2), where a sigmoid of the reward still tells responses apart.
    """
    losses = F.softplus(rejected - chosen)
    return losses + centring * (chosen + rejected) ** 2 if centring else losses


def pointwise_losses(rewards: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(reward) with labels 0 or 1, for each response [R]."""
    return F.binary_cross_entropy_with_logits(rewards, labels, reduction="none")


# Calibration


def calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: |mean probability - share of outcomes| in equal bins of [0, 1], weighted by count.

    (Naeini et al. 2015, arXiv 1706.04599 section 2.)
    """
    _require_same_length(probabilities, outcomes)
    gaps = [0.0] * bins
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        gaps[min(int(probability * bins), bins - 1)] += probability - outcome
    return math.fsum(map(abs, gaps)) / len(probabilities)


def brier_score(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float:
    """Mean squared difference of probability and outcome; 0.25 is what always saying one half gets."""
    _require_same_length(probabilities, outcomes)
    squares = ((p - outcome) ** 2 for p, outcome in zip(probabilities, outcomes, strict=True))
    return math.fsum(squares) / len(probabilities)


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)) without overflow."""
    return (1 + math.tanh(value / 2)) / 2


def _require_same_length(probabilities: Sequence[float], outcomes: Sequence[bool]) -> None:
    if not probabilities or len(probabilities) != len(outcomes):
        raise ValueError(f"{len(probabilities)} probabilities and {len(outcomes)} outcomes")
