"""Confidence intervals of evaluation figures.

The interval of a share is the exact binomial one (Clopper and Pearson 1934) at an effective number of observations, as
Korn and Graubard (1998) do it for surveys: samples of one problem are alike, so that N of them tell less than N.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri, stdtrit

Floats = NDArray[np.float64]

# The chance that an interval's end is missed on one side.
TAIL = 0.025
# Samples of a problem are taken to be this much alike at least. Data can look independent only because the few
# problems on which all samples agree did not come up.
LEAST_CORRELATION = 0.1
# With fewer events of the rarer kind than the first, data say nothing of how alike samples are: a cluster counts as one
# observation. From the second on, the estimate counts; in between, the geometric mean.
FEW_EVENTS, ENOUGH_EVENTS = 4.0, 8.0
# Values between 0 and 1 spread less than zeros and ones do. That is believed as if so many more clusters had been seen
# whose values are 0 or 1.
DOUBT = 10.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval, which has no end on a side that nothing is known about."""

    value: float
    low: float
    high: float

    def as_metric(self) -> dict[str, float | None]:
        """The form in which metrics are stored; an end that does not exist is None, for JSON has no infinity."""
        low, high = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """Values, added up by cluster; the axes before the last one are different data sets of the same clusters.

    Attributes:
        sums, squares: of the values of each cluster, and of their squares [..., M].
        counts: how many values each cluster has [M].
    """

    sums: Floats
    squares: Floats
    counts: Floats

    @classmethod
    def of(cls, values: Sequence[float] | Floats, clusters: Sequence[Hashable]) -> ClusterSums:
        """Those of values [..., N]; `clusters` names the cluster of each value [N]."""
        places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
        numbered = np.array([places[cluster] for cluster in clusters])
        given: Floats = np.asarray(values, dtype=np.float64)

        def added(weights: Floats) -> Floats:
            sums: Floats = np.apply_along_axis(lambda row: np.bincount(numbered, row), -1, weights).astype(np.float64)
            return sums

        return cls(added(given), added(given**2), added(np.ones(len(numbered))))


@dataclass(frozen=True, slots=True)
class Spread:
    """A share and how far data spread around it, in terms that do not depend on how much data there are.

    Attributes:
        value: the share [...].
        single: variance of a single value, as a part of the variance of zeros and ones with this mean [...].
        design: variance of the share, as a part of that of as many independent zeros and ones [...].
        per_cluster: values in a cluster.
        size: the mean, over values, of how many values their cluster has.
    """

    value: Floats
    single: Floats
    design: Floats
    per_cluster: float
    size: float

    @classmethod
    def of(cls, data: ClusterSums) -> Spread:
        """What the data show."""
        total, count = data.counts.sum(), len(data.counts)
        value = np.clip(data.sums.sum(-1) / total, 0.0, 1.0)
        binary = value * (1 - value)
        between = ((data.sums - value[..., None] * data.counts) ** 2).sum(-1) * count / max(1, count - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            single = np.where(binary > 0, (data.squares.sum(-1) / total - value**2) / binary, 1.0)
            design = np.where(binary > 0, between / total / binary, math.inf)
        return cls(value, np.clip(single, 0.0, 1.0), design, total / count, (data.counts**2).sum() / total)

    def effective_number(self, clusters: float) -> Floats:
        """How many independent observations so many clusters come to."""
        values = clusters * self.per_cluster
        student = (stdtrit(max(clusters - 1, 1.0), 1 - TAIL) / ndtri(1 - TAIL)) ** 2
        single = (clusters * self.single + DOUBT) / (clusters + DOUBT)
        least = single * (1 + LEAST_CORRELATION * (self.size - 1))
        # As large as it can be: the values of a cluster are all the same.
        design = np.minimum(np.maximum(self.design * student, least * (student if self.size > 1 else 1.0)), self.size)
        events = np.minimum(self.value, 1 - self.value) * values / design
        doubt = np.clip((ENOUGH_EVENTS - events) / (ENOUGH_EVENTS - FEW_EVENTS), 0.0, 1.0)
        found: Floats = values / (design ** (1 - doubt) * self.size**doubt)
        return found

    def interval(self, clusters: float) -> tuple[Floats, Floats]:
        """(lower, upper) ends of the 95 % intervals [...] with so many clusters."""
        return _clopper_pearson(self.value, self.effective_number(clusters))


def clustered_share(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of values in [0, 1] with a 95 % interval that never loses its width.

    Args:
        clusters: for each value, what it is a sample of: a problem, or the fact that several problems ask for.

    Raises:
        ValueError: no values, lengths that differ, or a value is no share.
    """
    _require_pairs(values, clusters)
    if any(not 0 <= value <= 1 for value in values):
        raise ValueError(f"a share lies in [0, 1], got {min(values)} to {max(values)}")
    data = ClusterSums.of(values, clusters)
    spread = Spread.of(data)
    low, high = spread.interval(len(data.counts))
    return Estimate(float(spread.value), float(low), float(high))


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of amounts with a 95 % interval that treats each cluster as one observation; not for shares.

    The interval is that of the ratio estimator sum/count over clusters, with Student's t for the number of clusters.

    Raises:
        ValueError: no values, or lengths that differ.
    """
    _require_pairs(values, clusters)
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    count = len(sums)
    if count == 1:
        return Estimate(mean, -math.inf, math.inf)
    variance = math.fsum(total * total for total in sums.values()) * count / (count - 1) / len(values) ** 2
    margin = float(stdtrit(count - 1, 1 - TAIL)) * math.sqrt(variance)
    return Estimate(mean, mean - margin, mean + margin)


def _require_pairs(values: Sequence[float], clusters: Sequence[Hashable]) -> None:
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values in {len(clusters)} cluster labels")


def _clopper_pearson(share: Floats, number: Floats) -> tuple[Floats, Floats]:
    """Exact binomial intervals [...] of shares that were seen in so many observations, which need not be whole."""
    hits, misses = share * number, (1 - share) * number
    with np.errstate(invalid="ignore"):
        low = np.where(hits > 0, betaincinv(hits, misses + 1, TAIL), 0.0)
        high = np.where(misses > 0, betaincinv(hits + 1, misses, 1 - TAIL), 1.0)
    return low, high
