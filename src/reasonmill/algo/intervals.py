"""Confidence intervals of evaluation figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


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


def clustered_mean(values: Sequence[float], clusters: Sequence[int]) -> Estimate:
    """Mean over all values with a 95 % interval that treats each cluster (a problem) as one observation.

    The samples of a problem are not independent; the interval is that of the ratio estimator sum/count over
    clusters, with Student's t for the number of clusters.

    Raises:
        ValueError: no values, or lengths that differ.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values in {len(clusters)} cluster labels")
    mean = math.fsum(values) / len(values)
    sums: dict[int, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    count = len(sums)
    if count == 1:
        return Estimate(mean, -math.inf, math.inf)
    variance = math.fsum(total * total for total in sums.values()) * count / (count - 1) / len(values) ** 2
    margin = _t_quantile(count - 1) * math.sqrt(variance)
    return Estimate(mean, mean - margin, mean + margin)


def clustered_share(values: Sequence[float], clusters: Sequence[int]) -> Estimate:
    """`clustered_mean` of values in [0, 1]: its interval ends where a share does.

    Raises:
        ValueError: as `clustered_mean`, or a value is no share.
    """
    if any(not 0 <= value <= 1 for value in values):
        raise ValueError(f"a share lies in [0, 1], got {min(values)} to {max(values)}")
    estimate = clustered_mean(values, clusters)
    return Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high))


def _t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t by bisection on its distribution function (the regularised incomplete beta)."""
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, degrees) < 0.975 else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, degrees: int) -> float:
    # Simpson's rule on the density: smooth, and exact enough (1e-9) with 400 steps for any number of degrees.
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    x = torch.linspace(0, t, 401, dtype=torch.float64)
    density = torch.exp(log_scale - (degrees + 1) / 2 * torch.log1p(x * x / degrees))
    simpson = torch.ones(401, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    return 0.5 + float((density * simpson).sum()) * t / 400 / 3
