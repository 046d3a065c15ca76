"""pass@k: how likely one of k attempts at a problem is right."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import comb

from reasonmill.algo.intervals import Estimate, clustered_share


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


def pass_at_curve(attempts: Sequence[tuple[Hashable, int, int]]) -> dict[int, Estimate]:
    """pass@k for k = 1, 2, 4, ... and all attempts at a problem, over the problems with so many.

    Args:
        attempts: of each problem what it is a wording of, how many there are, and how many of them are right.
    """
    most = max((samples for _, samples, _ in attempts), default=0)
    curve = {}
    for k in sorted({most, *(1 << power for power in range(most.bit_length()))} - {0}):
        having = [(cluster, pass_at_k(right, samples, k)) for cluster, samples, right in attempts if samples >= k]
        curve[k] = clustered_share([value for _, value in having], [cluster for cluster, _ in having])
    return curve
