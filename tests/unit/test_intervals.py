"""Intervals by hand and against the table of Student's t."""

import math

import pytest

from reasonmill.algo.intervals import clustered_mean, clustered_share


# 97.5 % quantiles from the table of any statistics book.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980), (5000, 1.960)],
)
def test_single_samples_have_the_textbook_interval(degrees: int, quantile: float) -> None:
    count = degrees + 1
    values = [float(index % 2) for index in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / degrees)
    estimate = clustered_mean(values, range(count))
    assert estimate.value == pytest.approx(mean)
    assert (estimate.high - estimate.value) * math.sqrt(count) / deviation == pytest.approx(quantile, abs=6e-4)
    assert estimate.high - estimate.value == pytest.approx(estimate.value - estimate.low)


def test_clusters_by_hand() -> None:
    # Deviations from the mean of 1/2, summed in the clusters: 0, 1, -1. Variance 2 * 3/2 / 6^2 = 1/12; t(2) = 4.302653.
    estimate = clustered_mean([1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2])
    assert estimate.value == 0.5
    assert estimate.high == pytest.approx(0.5 + 4.302653 / math.sqrt(12), abs=1e-6)


def test_clusters_of_different_sizes_by_hand() -> None:
    # Mean 3/4; sums 3/4 and -3/4: variance 2 * 9/16 * 2 / 4^2 = 9/64; t(1) = 12.706205.
    estimate = clustered_mean([1, 1, 1, 0], [7, 7, 7, 3])
    assert estimate.as_metric() == pytest.approx(
        {"value": 0.75, "low": 0.75 - 12.706205 * 3 / 8, "high": 0.75 + 12.706205 * 3 / 8}, abs=1e-5
    )


def test_the_order_of_the_samples_does_not_matter() -> None:
    assert clustered_mean([1, 0, 0, 1], [0, 1, 0, 1]) == clustered_mean([0, 1, 1, 0], [0, 0, 1, 1])


def test_samples_of_the_same_problem_are_no_new_evidence() -> None:
    once = clustered_mean([1, 0, 1], [0, 1, 2])
    ten_times = clustered_mean([1, 0, 1] * 10, [0, 1, 2] * 10)
    assert (ten_times.low, ten_times.high) == pytest.approx((once.low, once.high))


def test_one_cluster_tells_nothing_about_the_spread() -> None:
    estimate = clustered_mean([1, 0], [4, 4])
    assert (estimate.low, estimate.value, estimate.high) == (-math.inf, 0.5, math.inf)
    assert estimate.as_metric() == {"value": 0.5, "low": None, "high": None}


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], [0, 1])])
def test_values_without_clusters_are_refused(values: list[float], clusters: list[int]) -> None:
    with pytest.raises(ValueError, match="cluster labels"):
        clustered_mean(values, clusters)


def test_the_interval_of_a_share_ends_where_shares_do() -> None:
    # Mean 3/4 and 1/4 with a margin of 12.706205 * 3/8: far outside on both sides.
    assert clustered_share([1, 1, 1, 0], [7, 7, 7, 3]).as_metric() == {"value": 0.75, "low": 0.0, "high": 1.0}
    assert clustered_share([1, 0], [4, 4]).as_metric() == {"value": 0.5, "low": 0.0, "high": 1.0}
    values, clusters = [1.0, 0.0] * 50, range(100)
    assert clustered_share(values, clusters) == clustered_mean(values, clusters)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_what_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="a share lies in"):
        clustered_share([0.5, value], [0, 1])
