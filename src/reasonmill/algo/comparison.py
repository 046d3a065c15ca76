"""Is one model better than another? A paired comparison on the same problems.

Problems are the independent observations: samples of the same problem are averaged first. Pairing takes the spread of
the problems' difficulty, most of the noise of a single evaluation, out of the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from reasonmill.algo.intervals import Estimate, clustered_mean, clustered_share
from reasonmill.randomness import Part, key

# Signs that exist at the same time.
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a paired comparison found.

    Attributes:
        candidate, parent: means over the problems' means.
        difference: candidate - parent, with its 95 % interval.
        p_value: one-sided; how often chance alone gives a difference as high as this.
        problems: how many were compared.
    """

    candidate: float
    parent: float
    difference: Estimate
    p_value: float
    problems: int


def paired_comparison(
    candidate: Sequence[Sequence[float]],
    parent: Sequence[Sequence[float]],
    *,
    noise: tuple[Part, ...],
    permutations: int = 10_000,
) -> Comparison:
    """Compares two models on the same problems.

    The interval is Student's t over the problems' differences; the p-value is that of `sign_flip_test`.

    Args:
        candidate, parent: for each problem the values of its samples; at least one each.
        noise: names the permutations that are drawn.

    Raises:
        ValueError: no problems, other numbers of problems, or a problem without values.
    """
    if not candidate or len(candidate) != len(parent) or not all(map(len, (*candidate, *parent))):
        raise ValueError(f"{len(candidate)} and {len(parent)} problems, of which each needs a value")
    means = [fmean(values) for values in candidate]
    parent_means = [fmean(values) for values in parent]
    differences = np.array(means) - np.array(parent_means)
    return Comparison(
        candidate=fmean(means),
        parent=fmean(parent_means),
        difference=clustered_mean(differences.tolist(), range(len(differences))),
        p_value=sign_flip_test(differences, noise=noise, permutations=permutations),
        problems=len(differences),
    )


def win_rate(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Estimate:
    """Share of the pairs of one of our samples and one of theirs, to the same problem, that ours wins; a tie is half.

    Args:
        ours, theirs: for each problem the values of its samples; at least one each.

    Raises:
        ValueError: no problems, other numbers of problems, or a problem without values.
    """
    if not ours or len(ours) != len(theirs) or not all(map(len, (*ours, *theirs))):
        raise ValueError(f"{len(ours)} and {len(theirs)} problems, of which each needs a value")
    won = [
        fmean([1.0 if mine > other else 0.5 * (mine == other) for mine in values for other in others])
        for values, others in zip(ours, theirs, strict=True)
    ]
    return clustered_share(won, range(len(won)))


def sign_flip_test(differences: NDArray[np.float64], *, noise: tuple[Part, ...], permutations: int = 10_000) -> float:
    """One-sided p-value of the mean of paired differences [P] being above zero.

    If the two models are alike, each difference could as well have the other sign: the p-value is the share of random
    signs whose mean reaches the observed one. The observed signs count as one of them, so that it is never zero and the
    test never errs more often than its level says.
    """
    observed = float(differences.sum())
    tolerance = 1e-9 * (1.0 + float(np.abs(differences).sum()))  # equal sums may be added up in another order
    draws = np.random.Generator(np.random.Philox(key=key("sign-flip", *noise)))
    reached = 0
    size = max(1, _CHUNK // max(1, len(differences)))
    for start in range(0, permutations, size):
        count = min(size, permutations - start)
        flipped = draws.integers(0, 2, (count, len(differences)), dtype=np.int8).astype(np.float64)
        # Flipping the signs of some takes twice their sum away.
        reached += int((observed - 2 * (flipped @ differences) >= observed - tolerance).sum())
    return (1 + reached) / (1 + permutations)
