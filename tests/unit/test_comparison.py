"""Paired comparisons: figures by hand, exact p-values by counting signs, and how often the test errs."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from reasonmill.algo.comparison import paired_comparison, sign_flip_test

PERMUTATIONS = 1000


def exact_p_value(differences: list[float]) -> float:
    """The share of all sign patterns whose sum reaches the observed one."""
    sums = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= sum(differences) - 1e-9 for total in sums) / len(sums)


def test_a_comparison_by_hand() -> None:
    # Per-problem means 1, 1/2, 1, 1/2 against 1/2, 0, 1, 1/2: differences 1/2, 1/2, 0, 0.
    candidate = [[1, 1], [1, 0], [1], [0, 1]]
    parent = [[0, 1], [0, 0], [1, 1], [1, 0]]
    found = paired_comparison(candidate, parent, noise=("by hand",), permutations=20_000)
    assert (found.candidate, found.parent, found.problems) == (0.75, 0.5, 4)
    # Sum of squared deviations 4/16, variance of the mean 1/4 / 3 / 4 = 1/48; t(3) = 3.182446.
    assert found.difference.value == 0.25
    assert found.difference.high == pytest.approx(0.25 + 3.182446 / math.sqrt(48), abs=1e-5)
    assert found.difference.low == pytest.approx(0.25 - 3.182446 / math.sqrt(48), abs=1e-5)
    # Both differences must be positive: one of the four signs.
    assert found.p_value == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "differences",
    [[0.5], [0.25, 0.5, -0.25, 0.75], [-0.5, -0.25, 0.5], [1 / 3, 1 / 3, -1 / 3, 1 / 3, 0.0, 1 / 3, 2 / 3]],
)
def test_the_p_value_is_that_of_all_signs(differences: list[float]) -> None:
    found = sign_flip_test(np.array(differences), noise=("all signs",), permutations=20_000)
    assert found == pytest.approx(exact_p_value(differences), abs=0.012)


def test_models_that_do_not_differ_are_not_better() -> None:
    same = [[1.0, 0.0], [1.0], [0.0]]
    found = paired_comparison(same, same, noise=("same",))
    assert (found.difference.low, found.difference.value, found.difference.high) == (0, 0, 0)
    assert found.p_value == 1


def test_a_clear_gain_has_the_smallest_p_value_there_is() -> None:
    assert sign_flip_test(np.ones(40), noise=("clear",)) == 1 / 10_001
    assert sign_flip_test(-np.ones(40), noise=("clear",)) == 1


def test_permutations_are_named_by_their_noise() -> None:
    differences = np.array([0.25, -0.5, 0.75, 0.25, -0.25, 0.5, 0.25])
    first = sign_flip_test(differences, noise=(0, "gate"), permutations=PERMUTATIONS)
    assert sign_flip_test(differences, noise=(0, "gate"), permutations=PERMUTATIONS) == first
    assert len({sign_flip_test(differences, noise=(seed, "gate"), permutations=PERMUTATIONS) for seed in range(9)}) > 1


@pytest.mark.parametrize(("candidate", "parent"), [([], []), ([[1.0]], [[1.0], [0.0]]), ([[1.0]], [[]])])
def test_problems_must_pair_and_have_values(candidate: list[list[float]], parent: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="problems"):
        paired_comparison(candidate, parent, noise=())


def simulated(draws: np.random.Generator, problems: int, gain: float) -> NDArray[np.float64]:
    """Differences of per-problem pass@1 of two models with four samples a problem, hard ones and easy ones."""
    chances = draws.uniform(0, 0.95, problems)
    samples = draws.random((2, 4, problems)) < np.stack([chances + gain, chances])[:, None]
    means = samples.mean(axis=1)
    differences: NDArray[np.float64] = means[0] - means[1]
    return differences


def promotions(runs: int, problems: int, gain: float, alpha: float) -> int:
    draws = np.random.default_rng(7)
    return sum(
        sign_flip_test(simulated(draws, problems, gain), noise=("run", run), permutations=PERMUTATIONS) < alpha
        for run in range(runs)
    )


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_model_is_not_better_than_itself_more_often_than_the_level_says(alpha: float) -> None:
    runs = 600
    false = promotions(runs, 100, 0.0, alpha)
    spread = math.sqrt(runs * alpha * (1 - alpha))
    assert runs * alpha - 3 * spread < false < runs * alpha + 3 * spread


def test_a_gain_of_five_points_is_seen() -> None:
    # 500 problems: a standard error of 1.3 points, so the expected z is 3.9 against a critical value of 2.3.
    assert promotions(100, 500, 0.05, 0.01) >= 88
