"""Losses as pure functions over the positions of a batch, and the published algorithms as settings of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reasonmill.algo import surrogates
from reasonmill.algo.correction import CorrectionSettings, correction
from reasonmill.algo.packing import Batch
from reasonmill.settings import Real

Algorithm = Literal["grpo", "dr_grpo", "dapo", "gspo", "gmpo", "cispo", "sapo", "dppo", "rloo", "reinforce"]
Normalisation = Literal["token", "sequence", "constant"]
Advantage = Literal["group_normalised", "group_centred", "leave_one_out", "batch_scaled", "per_reward"]
KLEstimator = Literal["k1", "k2", "k3", "unbiased"]


class LossSettings(BaseModel):
    """Which loss, and its constants. Unset constants take the algorithm's published values; those that it does not have
    are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Algorithm = "grpo"
    clip_low: Real | None = Field(default=None, ge=0, description="1 - clip_low bounds the ratio from below")
    clip_high: Real | None = Field(default=None, gt=0, description="1 + clip_high bounds the ratio from above")
    dual_clip: Real | None = Field(default=None, gt=1, description="bounds the ratio where the advantage is negative")
    gate_positive: Real | None = Field(default=None, gt=0, description="how fast SAPO's gate closes for A > 0")
    gate_negative: Real | None = Field(default=None, gt=0, description="how fast SAPO's gate closes for A < 0")
    divergence: Literal["tv", "kl"] | None = Field(default=None, description="what DPPO's trust region measures")
    divergence_bound: Real | None = Field(default=None, gt=0, description="where DPPO's trust region ends")
    advantage: Advantage | None = Field(default=None, description="which advantage; the algorithm's if unset")
    kl_coefficient: Real = Field(default=0.0, ge=0, description="weight of the KL to the reference")
    kl_estimator: KLEstimator = Field(default="k3", description="how that KL is estimated; the paper's is k3")
    drift_coefficient: Real = Field(default=0.0, ge=0, description="weight of the squared log-ratio")
    entropy_coefficient: Real = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    correction: CorrectionSettings | None = Field(default=None, description="for what the sampler draws otherwise")

    @model_validator(mode="after")
    def _all_have_effect(self) -> LossSettings:
        taken = _ALGORITHMS[self.algorithm].constants
        for name in _CONSTANTS:
            if name not in taken and getattr(self, name) is not None:
                having = ", ".join(other for other, made in _ALGORITHMS.items() if name in made.constants)
                raise ValueError(f"loss.{name} has no effect on {self.algorithm!r}, but on {having}; remove it")
        if self.kl_estimator != "k3" and not self.kl_coefficient:
            raise ValueError("loss.kl_estimator has no effect without a kl_coefficient; remove it, or set that")
        if self.correction is not None and self.correction.level == "token" and _ALGORITHMS[self.algorithm].by_sequence:
            raise ValueError(
                f"{self.algorithm!r} has one ratio for a sequence, which the weights of single tokens don't correct; "
                "use the level 'sequence' or 'geometric'"
            )
        return self

    @property
    def constants(self) -> Mapping[str, Any]:
        """The algorithm's constants by name, with the published values where the settings leave them open."""
        published = _ALGORITHMS[self.algorithm].constants
        return {name: own if (own := getattr(self, name)) is not None else published[name] for name in published}

    @property
    def advantage_kind(self) -> Advantage:
        """The advantage, a key of `advantages.ADVANTAGES`."""
        return self.advantage or _ALGORITHMS[self.algorithm].advantage

    @property
    def normalisation(self) -> Normalisation:
        """What the sum over tokens is divided by: their number, each sequence's own length, or a constant length."""
        return _ALGORITHMS[self.algorithm].normalisation


class _Algorithm(NamedTuple):
    """What makes an algorithm: its loss, and its constants as they were published. None: off, or it depends."""

    surrogate: surrogates.Surrogate
    advantage: Advantage
    normalisation: Normalisation
    constants: Mapping[str, float | str | None]
    by_sequence: bool = False


def _clip(low: float, high: float) -> Mapping[str, float | str | None]:
    return {"clip_low": low, "clip_high": high, "dual_clip": None}


_GATE: Mapping[str, float | str | None] = {"gate_positive": 1.0, "gate_negative": 1.05}
_REGION: Mapping[str, float | str | None] = {"divergence": "tv", "divergence_bound": None}
_LOG = 0.4  # GMPO's bounds of a log-ratio

# GRPO: R1's published clip of 10 (paper, B.4). Others: the papers named in docs/design.md.
_ALGORITHMS: dict[Algorithm, _Algorithm] = {
    "grpo": _Algorithm(surrogates.clipped_ratio, "group_normalised", "sequence", _clip(10.0, 10.0)),
    "dr_grpo": _Algorithm(surrogates.clipped_ratio, "group_centred", "constant", _clip(0.2, 0.2)),
    "dapo": _Algorithm(surrogates.clipped_ratio, "group_normalised", "token", _clip(0.2, 0.28)),
    "gspo": _Algorithm(surrogates.clipped_sequence_ratio, "group_normalised", "sequence", _clip(3e-4, 4e-4), True),
    "gmpo": _Algorithm(
        surrogates.geometric_mean,
        "group_normalised",
        "sequence",
        {"clip_low": -math.expm1(-_LOG), "clip_high": math.expm1(_LOG)},
        True,
    ),
    "cispo": _Algorithm(surrogates.clipped_weight, "group_normalised", "token", {"clip_low": 1.0, "clip_high": 5.0}),
    "sapo": _Algorithm(surrogates.soft_gate, "group_normalised", "sequence", _GATE),
    "dppo": _Algorithm(surrogates.trust_region, "group_centred", "token", _REGION),
    "rloo": _Algorithm(surrogates.score_function, "leave_one_out", "token", {}),
    "reinforce": _Algorithm(surrogates.score_function, "group_centred", "token", {}),
}
_CONSTANTS = tuple(dict.fromkeys(name for algorithm in _ALGORITHMS.values() for name in algorithm.constants))


def token_losses(
    policy_logprobs: Tensor, batch: Batch, settings: LossSettings, entropies: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [N] of every position, and statistics [N] of the positions by metric name.

    Args:
        entropies: [N] of the policy's distributions, for an entropy bonus.

    Raises:
        ValueError: the batch lacks a field that its loss needs.
    """
    if batch.loss == "ce":
        losses = -policy_logprobs
        return losses, {"loss/ce": losses.detach()}
    if batch.loss == "kl":
        raise ValueError("log-probs of single tokens don't make a kl loss; use a learner that has a teacher")
    # What is context only, a prompt or an environment's reply, must not even come to 0 times infinity.
    policy_logprobs = _of_trained(policy_logprobs, batch)
    old = _old_logprobs(batch)
    terms = surrogates.Terms(
        policy_logprobs, old, _required(batch.advantages, "advantages"), lambda values: _sequence_mean(values, batch)
    )
    losses, bounded = _ALGORITHMS[settings.algorithm].surrogate(terms, settings.constants)
    statistics = {} if bounded is None else {"policy/clipped": bounded.float()}
    if settings.correction is not None:
        delta = old - _of_trained(_required(batch.sampler_logprobs, "sampler_logprobs"), batch)
        weight, cut = correction(
            delta, settings.correction, lambda v: _sequence_sum(v, batch), lambda v: _sequence_mean(v, batch)
        )
        losses = losses * weight
        statistics |= {"correction/weight": weight, "correction/bounded": cut.float()}
    for name, (metric, sign, term) in _TERMS.items():
        if coefficient := getattr(settings, name):
            values = term(policy_logprobs, batch, settings, entropies)
            losses = losses + sign * coefficient * values
            statistics[metric] = values.detach()
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
    return k3 if estimator == "k3" else torch.exp(policy_logprobs - _old_logprobs(batch)) * k3


def _reference(policy: Tensor, batch: Batch, settings: LossSettings, entropies: Tensor | None) -> Tensor:
    return kl_to_reference(policy, batch, settings.kl_estimator)


def _drift(policy: Tensor, batch: Batch, settings: LossSettings, entropies: Tensor | None) -> Tensor:
    return (policy - _old_logprobs(batch)) ** 2


def _entropy(policy: Tensor, batch: Batch, settings: LossSettings, entropies: Tensor | None) -> Tensor:
    return _of_trained(_required(entropies, "entropies"), batch)


# What is added to any surrogate, by the name of its coefficient: its metric, its sign, and its values [N].
_TERMS: dict[str, tuple[str, float, Callable[[Tensor, Batch, LossSettings, Tensor | None], Tensor]]] = {
    "kl_coefficient": ("policy/kl", 1.0, _reference),
    "drift_coefficient": ("policy/drift", 1.0, _drift),
    "entropy_coefficient": ("policy/full_entropy", -1.0, _entropy),
}


def _old_logprobs(batch: Batch) -> Tensor:
    """Those that ratios are against: the learner's before the step, or the sampler's where these are the same."""
    old = _required(batch.sampler_logprobs, "sampler_logprobs") if batch.old_logprobs is None else batch.old_logprobs
    return _of_trained(old, batch)


def _of_trained(values: Tensor, batch: Batch) -> Tensor:
    return torch.where(batch.weights > 0, values, 0.0)


def _sequence_sum(values: Tensor, batch: Batch) -> Tensor:
    """The sum over each sequence of values that are 0 where a token is context, at each of its positions."""
    return values.new_zeros(len(batch.lengths)).index_add(0, batch.sequence, values)[batch.sequence]


def _sequence_mean(values: Tensor, batch: Batch) -> Tensor:
    """The mean over the trained tokens of each sequence, at each of its positions."""
    sizes = _sequence_sum((batch.weights > 0).to(values.dtype), batch)
    return _sequence_sum(values, batch) / sizes.clamp(min=1)


def _required(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise ValueError(f"a policy-gradient batch needs {name}")
    return values
