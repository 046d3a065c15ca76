"""Surrogates: what each published algorithm takes for the policy's improvement, as a loss of every position.

Symbols: ratio = probability of a token under the policy / under the policy that its update began with ("old"), A =
advantage. Each returns the loss [N] and which positions [N] its bounds concern, or None where it has none. Weights and
denominators are applied by the learner, so that no loss knows about batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# An algorithm's constants by the name of the setting, as they are set or were published.
Constants = Mapping[str, Any]


class Terms(NamedTuple):
    """What surrogates are made of; every tensor has length N, and is 0 where a token is context.

    Attributes:
        logprobs: of the policy; everything is differentiated through these.
        old: log-probs of the policy that the update began with.
        sequence_mean: the mean over the trained tokens of each position's sequence, at each of its positions.
    """

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    sequence_mean: Callable[[Tensor], Tensor]

    @property
    def log_ratio(self) -> Tensor:
        return self.logprobs - self.old

    @property
    def ratio(self) -> Tensor:
        return _exp(self.log_ratio)


def _exp(log_ratio: Tensor) -> Tensor:
    """The ratio. Beyond exp(80) fp32 has infinities, whose gradient is not 0 but NaN where a bound cuts them off."""
    return torch.exp(log_ratio.clamp(max=80.0))


Surrogate = Callable[[Terms, Constants], tuple[Tensor, Tensor | None]]


def clipped_ratio(terms: Terms, constants: Constants) -> tuple[Tensor, Tensor]:
    """-min(ratio A, clip(ratio) A) for each token (PPO's surrogate; GRPO, Dr. GRPO, DAPO)."""
    return _pessimistic(terms.ratio, terms.advantages, constants)


def clipped_sequence_ratio(terms: Terms, constants: Constants) -> tuple[Tensor, Tensor]:
    """As `clipped_ratio`, with the geometric mean of a sequence's ratios in place of each (GSPO, arXiv 2507.18071)."""
    return _pessimistic(_exp(terms.sequence_mean(terms.log_ratio)), terms.advantages, constants)


def _pessimistic(ratio: Tensor, advantages: Tensor, constants: Constants) -> tuple[Tensor, Tensor]:
    """The smaller of the two, and with `dual_clip` for A < 0 no less than dual_clip A (arXiv 1912.09729, section 4)."""
    low, high = 1 - constants["clip_low"], 1 + constants["clip_high"]
    objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    outside = (ratio < low) | (ratio > high)
    if (bound := constants["dual_clip"]) is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, bound * advantages), objective)
        outside |= (advantages < 0) & (ratio > bound)
    return -objective, outside


def geometric_mean(terms: Terms, constants: Constants) -> tuple[Tensor, Tensor]:
    """-A times the geometric mean of a sequence's ratios, each bounded on the side that A pushes it to (GMPO, arXiv
    2507.20673)."""
    most, least = (
        math.log1p(bound) if bound > -1 else -math.inf for bound in (constants["clip_high"], -constants["clip_low"])
    )
    positive = terms.advantages > 0
    bounded = torch.where(positive, terms.log_ratio.clamp(max=most), terms.log_ratio.clamp(min=least))
    losses = -terms.advantages * _exp(terms.sequence_mean(bounded))
    return losses, torch.where(positive, terms.log_ratio > most, terms.log_ratio < least)


def clipped_weight(terms: Terms, constants: Constants) -> tuple[Tensor, Tensor]:
    """-stop_gradient(clip(ratio)) A log policy: no token loses its gradient (CISPO, arXiv 2506.13585)."""
    low, high = 1 - constants["clip_low"], 1 + constants["clip_high"]
    ratio = terms.ratio.detach()
    losses = -ratio.clamp(low, high) * terms.advantages * terms.logprobs
    return losses, (ratio < low) | (ratio > high)


def soft_gate(terms: Terms, constants: Constants) -> tuple[Tensor, None]:
    """-4/t sigmoid(t (ratio - 1)) A: the gradient fades with the distance from 1, the faster the larger t is, which
    depends on the sign of A (SAPO, arXiv 2511.20347)."""
    positive, negative = (terms.old.new_tensor(constants[name]) for name in ("gate_positive", "gate_negative"))
    t = torch.where(terms.advantages > 0, positive, negative)
    return -torch.sigmoid(t * (terms.ratio - 1)) * (4 / t) * terms.advantages, None


def trust_region(terms: Terms, constants: Constants) -> tuple[Tensor, Tensor]:
    """-ratio A, and nothing for a token whose probability has moved further than `divergence_bound` in the direction
    of A (DPPO with a binary divergence, arXiv 2602.04879)."""
    divergence, published = _DIVERGENCES[constants["divergence"]]
    bound = published if constants["divergence_bound"] is None else constants["divergence_bound"]
    moved = terms.log_ratio.detach() * terms.advantages > 0
    outside = moved & (divergence(terms.logprobs.detach().exp(), terms.old.exp()) > bound)
    return torch.where(outside, 0.0, -terms.ratio * terms.advantages), outside


def _total_variation(policy: Tensor, old: Tensor) -> Tensor:
    return (policy - old).abs()


def _kl(policy: Tensor, old: Tensor) -> Tensor:
    """KL(old || policy) of "this token or another"; xlogy takes 0 log 0 for 0."""
    others, old_others = 1 - policy, 1 - old
    return torch.xlogy(old, old / policy) + torch.xlogy(old_others, old_others / others)


# Divergences of the two-sided choice "this token or another", and the bounds that were published for them.
_DIVERGENCES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "tv": (_total_variation, 0.15),
    "kl": (_kl, 0.05),
}


def score_function(terms: Terms, constants: Constants) -> tuple[Tensor, None]:
    """-A log policy: REINFORCE, right as long as the batch is on-policy."""
    return -terms.advantages * terms.logprobs, None
