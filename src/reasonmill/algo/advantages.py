"""Advantages of the attempts at one problem, relative to their group."""

import math
from collections.abc import Callable, Sequence

# A group whose rewards differ by less is flat; dividing by its spread would only magnify rounding.
MIN_SPREAD = 1e-6


def group_normalised(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / std over the group, with the population's std (GRPO; R1 paper, section 2.1)."""
    centred = group_centred(rewards)
    spread = math.sqrt(sum(value * value for value in centred) / len(centred))
    return [value / spread if spread > MIN_SPREAD else 0.0 for value in centred]


def group_centred(rewards: Sequence[float]) -> list[float]:
    """r - mean: without the std, easy and hard problems count alike (Dr. GRPO, arXiv 2503.20783)."""
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """r minus the mean of the others' rewards: an unbiased baseline (RLOO, arXiv 2402.14740)."""
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    return [value * len(rewards) / (len(rewards) - 1) for value in group_centred(rewards)]


ADVANTAGES: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "group_normalised": group_normalised,
    "group_centred": group_centred,
    "leave_one_out": leave_one_out,
}


def advantages(rewards: Sequence[float | None], kind: str) -> list[float | None]:
    """Advantages of a group. Ungraded attempts (None) neither get one nor count in the baseline."""
    graded = [reward for reward in rewards if reward is not None]
    values = iter(ADVANTAGES[kind](graded) if graded else [])
    return [None if reward is None else next(values) for reward in rewards]
