"""pass@k: how likely one of k attempts at a problem is right."""

from __future__ import annotations

from math import comb


def pass_at_k(right: int, samples: int, k: int) -> float:
    """Unbiased estimate for one problem (Chen et al. 2021, section 2.1).

    Args:
        right: how many of the samples are right.

    Raises:
        ValueError: there are fewer samples than k, or more are right than there are.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"no pass@{k} of {samples} samples of which {right} are right")
    return 1 - comb(samples - right, k) / comb(samples, k)
