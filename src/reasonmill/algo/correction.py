"""What the sampler's log-probs are for: how far its distribution is from the learner's, and weights that correct it.

Delta = log-prob of a token under the learner, before an update, minus that under the sampler. Equal weights in two
engines still give two distributions, so that what is sampled is off-policy before any update (arXiv 2510.18855).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reasonmill.settings import Real
from reasonmill.types import Example

Level = Literal["token", "sequence", "geometric"]
Rule = Literal["truncate", "band", "mask"]
# Ratios that are counted as outside, in the measure of mismatch.
_BAND = math.log(2.0)


class CorrectionSettings(BaseModel):
    """Importance weights exp(Delta), of a token or of all of its sequence, and what bounds them.

    The loss of a token is multiplied by its weight, which has no gradient; the KL to the reference is not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Level = Field(description="whose weight: the token's, or the product or geometric mean of its sequence's")
    rule: Rule = Field(description="bound the weight, drop what is outside and weigh the rest, or only drop")
    low: Real | None = Field(default=None, ge=0, description="the lower bound")
    high: Real | None = Field(default=None, gt=0, description="the upper bound")

    @model_validator(mode="after")
    def _bounds_fit(self) -> CorrectionSettings:
        if self.rule == "truncate" and self.low is not None:
            raise ValueError(
                "correction.low has no effect on truncated weights, which are bounded from above; remove it"
            )
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"correction.low must be below correction.high, and {low} is not below {high}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), with published values where the settings leave them open."""
        low, high = _GEOMETRIC if self.level == "geometric" and self.rule != "truncate" else _PUBLISHED[self.rule]
        return (low if self.low is None else self.low, high if self.high is None else self.high)


# Truncated importance weights: 2 (TIS, "Your efficient RL framework secretly brings you off-policy RL training", 2025).
# A band: 0.5 to 5 (IcePop, arXiv 2510.18855). A mask alone: 1/2 to 2, ours. A geometric mean is close to 1, however
# long the sequence is: 0.999 to 1.001 ("When speed kills stability", 2025).
_PUBLISHED: dict[Rule, tuple[float, float]] = {"truncate": (0.0, 2.0), "band": (0.5, 5.0), "mask": (0.5, 2.0)}
_GEOMETRIC = (0.999, 1.001)
# The weight, from itself and whether it lies within the bounds.
_RULES: dict[Rule, Callable[[Tensor, Tensor, float], Tensor]] = {
    "truncate": lambda weight, inside, high: weight.clamp(max=high),
    "band": lambda weight, inside, high: torch.where(inside, weight, 0.0),
    "mask": lambda weight, inside, high: inside.to(weight.dtype),
}


def correction(
    delta: Tensor, settings: CorrectionSettings, sums: Callable[[Tensor], Tensor], means: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(weight, whether it was bounded or dropped) of every position [N].

    Args:
        delta: [N], 0 where a token is context.
        sums, means: over the trained tokens of each position's sequence, at each of its positions.
    """
    levels: dict[Level, Callable[[Tensor], Tensor]] = {"token": lambda own: own, "sequence": sums, "geometric": means}
    weight = torch.exp(levels[settings.level](delta.detach()))
    low, high = settings.bounds
    inside = (weight >= low) & (weight <= high)
    return _RULES[settings.rule](weight, inside, high), ~inside


def mismatch(examples: Sequence[Example]) -> dict[str, float]:
    """How far the learner's log-probs of what was sampled are from the sampler's, over all trained tokens.

    `k1` and `k3` estimate KL(sampler || learner) from the tokens that the sampler drew; `outside` is the share of
    tokens whose ratio is outside [1/2, 2].

    Args:
        examples: with `old_logprobs`; at least one token of them is trained on.
    """
    rows = [
        (np.asarray(e.old_logprobs, np.float64) - np.asarray(e.sampler_logprobs, np.float64))[np.asarray(e.weights) > 0]
        for e in examples
    ]
    delta = np.concatenate(rows)
    apart = np.abs(delta)
    with np.errstate(over="ignore", invalid="ignore"):
        k3 = np.expm1(delta) - delta
    return {
        "mismatch/mean": float(apart.mean()),
        "mismatch/max": float(apart.max()),
        "mismatch/k1": float(-delta.mean()),
        "mismatch/k3": float(k3.mean()),
        "mismatch/outside": float((apart > _BAND).mean()),
    }
