"""Advantages of the attempts at a step's problems, each relative to its group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

# What spreads less is flat; dividing by its spread would only magnify rounding.
MIN_SPREAD = 1e-6

# A group's rewards as weighted parts, each with one number for each attempt; the reward is their weighted sum.
Parts = Sequence[tuple[float, Sequence[float]]]


def group_normalised(groups: Sequence[Parts]) -> list[list[float]]:
    """(r - mean) / std over the group, with the population's std (GRPO; R1 paper, section 2.1)."""
    return [_divided(values, _spread(values)) for values in group_centred(groups)]


def group_centred(groups: Sequence[Parts]) -> list[list[float]]:
    """r - mean: without the std, easy and hard problems count alike (Dr. GRPO, arXiv 2503.20783)."""
    return [_centred(_summed(parts)) for parts in groups]


def leave_one_out(groups: Sequence[Parts]) -> list[list[float]]:
    """r minus the mean of the others' rewards: an unbiased baseline (RLOO, arXiv 2402.14740)."""
    return [[value * len(values) / max(1, len(values) - 1) for value in values] for values in group_centred(groups)]


def batch_scaled(groups: Sequence[Parts]) -> list[list[float]]:
    """(r - mean of the group) / std of all the step's rewards (Lite PPO, arXiv 2508.08221)."""
    spread = _spread(_centred([reward for parts in groups for reward in _summed(parts)]))
    return [_divided(values, spread) for values in group_centred(groups)]


def per_reward(groups: Sequence[Parts]) -> list[list[float]]:
    """Each part is normalised over the group by itself; their weighted sum is normalised over the step (GDPO, arXiv
    2601.05242), so that rewards of another spread do not drown each other."""
    sums = []
    for parts in groups:
        normalised = [(weight, group_normalised([[(1.0, values)]])[0]) for weight, values in parts]
        sums.append(_summed(normalised))
    everything = _centred([value for values in sums for value in values])
    scaled = iter(_divided(everything, _spread(everything)))
    return [[next(scaled) for _ in values] for values in sums]


ADVANTAGES: dict[str, Callable[[Sequence[Parts]], list[list[float]]]] = {
    "group_normalised": group_normalised,
    "group_centred": group_centred,
    "leave_one_out": leave_one_out,
    "batch_scaled": batch_scaled,
    "per_reward": per_reward,
}


def _summed(parts: Parts) -> list[float]:
    if len(parts) == 1 and parts[0][0] == 1.0:
        return list(parts[0][1])
    columns = [[weight * value for value in values] for weight, values in parts]
    return [math.fsum(row) for row in zip(*columns, strict=True)]


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / max(1, len(values))
    return [value - mean for value in values]


def _spread(centred: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in centred) / max(1, len(centred)))


def _divided(centred: Sequence[float], spread: float) -> list[float]:
    return [value / spread if spread > MIN_SPREAD else 0.0 for value in centred]
