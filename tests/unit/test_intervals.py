"""Intervals by hand, against tables of the binomial and of Student's t, and how often they hold the truth."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from reasonmill.algo.intervals import ClusterSums, Spread, clustered_mean, clustered_share

# Amounts


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
    for interval in (clustered_mean, clustered_share):
        assert interval([1, 0, 0, 1], [0, 1, 0, 1]) == interval([0, 1, 1, 0], [0, 0, 1, 1])


def test_one_cluster_tells_nothing_about_the_spread() -> None:
    estimate = clustered_mean([1, 0], [4, 4])
    assert (estimate.low, estimate.value, estimate.high) == (-math.inf, 0.5, math.inf)
    assert estimate.as_metric() == {"value": 0.5, "low": None, "high": None}


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], [0, 1])])
def test_values_without_clusters_are_refused(values: list[float], clusters: list[int]) -> None:
    for interval in (clustered_mean, clustered_share):
        with pytest.raises(ValueError, match="cluster labels"):
            interval(values, clusters)


# Shares


# Ends of exact binomial intervals from Clopper's and Pearson's tables.
@pytest.mark.parametrize(
    ("hits", "number", "low", "high"),
    [(0, 4, 0.0, 0.6024), (1, 10, 0.0025, 0.4450), (8, 10, 0.4439, 0.9748), (50, 100, 0.3983, 0.6017)],
)
def test_single_samples_have_the_exact_binomial_interval(hits: int, number: int, low: float, high: float) -> None:
    estimate = clustered_share([1.0] * hits + [0.0] * (number - hits), range(number))
    assert estimate.value == hits / number
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("samples", [1, 64])
def test_where_all_agree_a_problem_counts_once(value: float, samples: int) -> None:
    clusters = [number for number in range(16) for _ in range(samples)]
    estimate = clustered_share([value] * len(clusters), clusters)
    assert abs(estimate.high - estimate.low) == pytest.approx(1 - 0.025 ** (1 / 16))
    assert value in (estimate.low, estimate.high)


def test_samples_that_always_agree_are_no_new_evidence() -> None:
    once = clustered_share([1, 0, 1, 0, 1, 0] * 8, range(48))
    ten_times = clustered_share([1, 0, 1, 0, 1, 0] * 80, [*range(48)] * 10)
    assert (ten_times.low, ten_times.high) == pytest.approx((once.low, once.high))


def test_samples_that_do_not_agree_are_new_evidence_but_never_as_much_as_problems() -> None:
    # Each problem has two right samples of four: less spread than by chance, and still a correlation of 0.1 is taken.
    values, clusters = [1, 1, 0, 0] * 100, [number for number in range(100) for _ in range(4)]
    assert effective_number(values, clusters) == pytest.approx(400 / 1.3 / (1.98422 / 1.95996) ** 2, rel=1e-4)


def effective_number(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    data = ClusterSums.of(values, clusters)
    return float(Spread.of(data).effective_number(len(data.counts)))


def test_the_spread_between_problems_by_hand() -> None:
    # 50 problems with 4 of 4, 50 with 2 of 4: mean 3/4; sums deviate by 1. Variance 100 * 100/99 / 400^2 = 1/1584 is
    # 400 / 1584 / (3/16) = 1.347 times the binomial one; t(99) = 1.98422.
    values, clusters = [1, 1, 1, 1, 1, 1, 0, 0] * 50, [number for number in range(100) for _ in range(4)]
    design = 400 / 1584 / (3 / 16) * (1.98422 / 1.95996) ** 2
    assert effective_number(values, clusters) == pytest.approx(400 / design, rel=1e-4)


def test_few_failures_do_not_show_that_samples_are_independent() -> None:
    clusters = [number for number in range(100) for _ in range(64)]
    four = [0.0 if place % 64 == 0 and place < 4 * 64 else 1.0 for place in range(6400)]
    assert effective_number(four, clusters) == pytest.approx(100)  # and not 6400
    many = [0.0 if place % 8 == 0 else 1.0 for place in range(6400)]
    assert effective_number(many, clusters) > 800


def test_clusters_of_different_sizes_are_as_good_as_their_mean_size_over_values() -> None:
    # Sizes 1 and 3: a value's cluster has (1 + 9) / 4 values.
    assert effective_number([1, 1, 1, 1], [7, 7, 7, 3]) == pytest.approx(4 / 2.5)


def test_one_cluster_is_one_observation() -> None:
    estimate = clustered_share([1, 0], [4, 4])
    assert effective_number([1, 0], [4, 4]) == pytest.approx(1)
    assert 0 < estimate.low < 0.1
    assert 0.9 < estimate.high < 1


def test_values_between_zero_and_one_spread_less_and_are_believed_as_clusters_come() -> None:
    few, many = (effective_number([0.4, 0.6] * (number // 2), range(number)) / number for number in (40, 400))
    # Their variance is 0.01 and not 0.25.
    assert few == pytest.approx(50 / (40 * 0.04 + 10))
    assert many == pytest.approx(410 / (400 * 0.04 + 10))
    # Equal values have no variance, and an interval none the less.
    assert effective_number([0.3] * 40, range(40)) == pytest.approx(40 * 50 / 10)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_what_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="a share lies in"):
        clustered_share([0.5, value], [0, 1])


@pytest.mark.parametrize("share", [0.01, 0.95])
@pytest.mark.parametrize(("problems", "samples", "correlation"), [(16, 64, 0.9), (100, 4, 0.5), (30, 16, 0.1)])
def test_intervals_cover(share: float, problems: int, samples: int, correlation: float) -> None:
    draws, concentration, trials = np.random.default_rng(2), 1 / correlation - 1, 600
    chances = draws.beta(share * concentration, (1 - share) * concentration, (trials, problems))
    right = draws.binomial(samples, chances).astype(np.float64)
    low, high = Spread.of(ClusterSums(right, right, np.full(problems, float(samples)))).interval(problems)
    covered = float(((low <= share) & (share <= high)).mean())
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
    assert (high - low).min() > 0
