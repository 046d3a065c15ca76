"""Losses as pure functions over the positions of a batch, and the published algorithms as settings of them.

Symbols: ratio = policy probability / sampler probability of a token, A = advantage. Each surrogate returns the loss
of every position; weights and denominators are applied by the learner, so that no loss knows about batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reasonmill.algo.packing import Batch

Algorithm = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce"]
Normalisation = Literal["token", "sequence", "constant"]
KLEstimator = Literal["k1", "k2", "k3", "unbiased"]


class LossSettings(BaseModel):
    """Which loss, and its constants. Unset constants take the algorithm's published values.

    `correction` is for samplers and learners that are different engines, where even fresh weights give ratios off 1:
    "truncate" bounds a token's importance weight from above, "mask" drops tokens outside [1/bound, bound].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Algorithm = "grpo"
    clip_low: float | None = Field(default=None, ge=0, description="1 - clip_low bounds the ratio from below")
    clip_high: float | None = Field(default=None, gt=0, description="1 + clip_high bounds the ratio from above")
    kl_coefficient: float = Field(default=0.0, ge=0, description="weight of the KL to the reference")
    kl_estimator: KLEstimator = "k3"
    correction: Literal["none", "truncate", "mask"] = "none"
    correction_bound: float = Field(default=2.0, gt=1)

    @property
    def clip(self) -> tuple[float, float]:
        """(clip_low, clip_high), with the algorithm's published values where the settings leave them open."""
        low, high = _PUBLISHED[self.algorithm].clip
        return (low if self.clip_low is None else self.clip_low, high if self.clip_high is None else self.clip_high)

    @property
    def advantage(self) -> str:
        """The advantage that belongs to the algorithm, a key of `advantages.ADVANTAGES`."""
        return _PUBLISHED[self.algorithm].advantage

    @property
    def normalisation(self) -> Normalisation:
        """What the sum over tokens is divided by: their number, each sequence's own length, or a constant length."""
        return _PUBLISHED[self.algorithm].normalisation


def clipped_ratio(policy_logprobs: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """-min(ratio A, clip(ratio) A) for each token (PPO's surrogate; GRPO, Dr. GRPO, DAPO)."""
    return _pessimistic(_ratio(policy_logprobs, batch), _required(batch.advantages), settings)


def clipped_sequence_ratio(policy_logprobs: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """As `clipped_ratio`, with the geometric mean of a sequence's ratios in place of each (GSPO, arXiv 2507.18071)."""
    return _pessimistic(_sequence_ratio(policy_logprobs, batch), _required(batch.advantages), settings)


def clipped_weight(policy_logprobs: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """-stop_gradient(clip(ratio)) A log policy: no token loses its gradient (CISPO, arXiv 2506.13585)."""
    low, high = settings.clip
    weight = _ratio(policy_logprobs, batch).detach().clamp(1 - low, 1 + high)
    return -weight * _required(batch.advantages) * policy_logprobs


def score_function(policy_logprobs: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """-A log policy: REINFORCE, right as long as the batch is on-policy."""
    return -_required(batch.advantages) * policy_logprobs


class _Published(NamedTuple):
    """What makes an algorithm: its loss, and its constants as they were published."""

    surrogate: Callable[[Tensor, Batch, LossSettings], Tensor]
    clip: tuple[float, float]
    advantage: str
    normalisation: Normalisation


# GRPO: R1's published clip of 10 (paper, B.4). Others: the papers named in docs/design.md.
_PUBLISHED: dict[Algorithm, _Published] = {
    "grpo": _Published(clipped_ratio, (10.0, 10.0), "group_normalised", "sequence"),
    "dr_grpo": _Published(clipped_ratio, (0.2, 0.2), "group_centred", "constant"),
    "dapo": _Published(clipped_ratio, (0.2, 0.28), "group_normalised", "token"),
    "gspo": _Published(clipped_sequence_ratio, (3e-4, 4e-4), "group_normalised", "sequence"),
    "cispo": _Published(clipped_weight, (1.0, 5.0), "group_normalised", "token"),
    "rloo": _Published(score_function, (1.0, 10.0), "leave_one_out", "token"),
    "reinforce": _Published(score_function, (1.0, 10.0), "group_centred", "token"),
}


def token_losses(policy_logprobs: Tensor, batch: Batch, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [N] of every position, and statistics [N] of the positions by metric name.

    Raises:
        ValueError: the batch lacks a field that its loss needs.
    """
    if batch.loss == "ce":
        losses = -policy_logprobs
        return losses, {"loss/ce": losses.detach()}
    if batch.loss == "kl":
        raise ValueError("log-probs of single tokens don't make a kl loss; use a learner that has a teacher")
    # What is context only, a prompt or an environment's reply, must not even come to 0 times infinity.
    policy_logprobs = torch.where(batch.weights > 0, policy_logprobs, 0.0)
    losses = _PUBLISHED[settings.algorithm].surrogate(policy_logprobs, batch, settings)
    ratio = _ratio(policy_logprobs, batch).detach()
    low, high = settings.clip
    bounded = _sequence_ratio(policy_logprobs, batch).detach() if settings.algorithm == "gspo" else ratio
    statistics = {"policy/clipped": ((bounded < 1 - low) | (bounded > 1 + high)).float()}
    if settings.correction != "none":
        losses = losses * _correction(ratio, settings)
    if settings.kl_coefficient > 0:
        kl = kl_to_reference(policy_logprobs, batch, settings.kl_estimator)
        losses = losses + settings.kl_coefficient * kl
        statistics["policy/kl"] = kl.detach()
    return losses, statistics


def kl_to_reference(policy_logprobs: Tensor, batch: Batch, estimator: KLEstimator) -> Tensor:
    """Estimates of KL(policy || reference) [N] for each token.

    k1, k2, k3 after Schulman's note "Approximating KL divergence"; "unbiased" multiplies k3 by the ratio, so that its
    gradient is that of the KL off-policy as well (DeepSeek-V3.2, arXiv 2512.02556, section 3.1). k1's gradient has mean
    zero on-policy: as a loss it only reports.
    """
    gap = _required(batch.ref_logprobs, "ref_logprobs") - policy_logprobs
    if estimator == "k1":
        return -gap
    if estimator == "k2":
        return 0.5 * gap**2
    k3 = torch.exp(gap) - gap - 1
    return k3 if estimator == "k3" else _ratio(policy_logprobs, batch) * k3


def _ratio(policy_logprobs: Tensor, batch: Batch) -> Tensor:
    return torch.exp(policy_logprobs - _required(batch.sampler_logprobs, "sampler_logprobs"))


def _sequence_ratio(policy_logprobs: Tensor, batch: Batch) -> Tensor:
    """The geometric mean of the ratios of a sequence's trained tokens, at each of its positions."""
    trained = (batch.weights > 0).float()
    difference = (policy_logprobs - _required(batch.sampler_logprobs, "sampler_logprobs")) * trained
    count = len(batch.lengths)
    sums = torch.zeros(count, device=difference.device).index_add(0, batch.sequence, difference)
    sizes = torch.zeros(count, device=difference.device).index_add(0, batch.sequence, trained)
    return torch.exp(sums / sizes.clamp(min=1))[batch.sequence]


def _pessimistic(ratio: Tensor, advantages: Tensor, settings: LossSettings) -> Tensor:
    low, high = settings.clip
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def _correction(ratio: Tensor, settings: LossSettings) -> Tensor:
    """What to multiply a surrogate by. The score function has no importance weight yet; the others hold the ratio."""
    bound = settings.correction_bound
    if settings.correction == "mask":
        return ((ratio >= 1 / bound) & (ratio <= bound)).float()
    truncated = ratio.clamp(max=bound)
    return truncated if _PUBLISHED[settings.algorithm].surrogate is score_function else truncated / ratio


def _required(values: Tensor | None, name: str = "advantages") -> Tensor:
    if values is None:
        raise ValueError(f"a policy-gradient batch needs {name}")
    return values
