"""Paired comparisons: figures by hand, exact p-values by counting signs, and how often the test errs."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from reasonmill.algo.comparison import Comparison, paired_comparison, problems_needed, sign_flip_test
from reasonmill.algo.error_rates import error_rates

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
    # Gains of 1/4 and no losses on four problems: from what share a gain this high has a chance of 2.5 %, and how high
    # a loss could be that was not seen.
    assert found.difference.value == 0.25
    gain_low, gain_high, loss_high = 0.0063, 0.8059, 0.6024
    assert found.difference.low == pytest.approx(0.25 - math.hypot(0.25 - gain_low, loss_high), abs=1e-4)
    assert found.difference.high == pytest.approx(gain_high, abs=1e-4)
    # Both differences must be positive: one of the four signs.
    assert found.p_value == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "differences",
    [[0.5], [0.25, 0.5, -0.25, 0.75], [-0.5, -0.25, 0.5], [1 / 3, 1 / 3, -1 / 3, 1 / 3, 0.0, 1 / 3, 2 / 3]],
)
def test_the_p_value_is_that_of_all_signs(differences: list[float]) -> None:
    found = sign_flip_test(np.array(differences), noise=("all signs",), permutations=20_000)
    assert found == pytest.approx(exact_p_value(differences), abs=0.012)


def test_models_that_do_not_differ_are_not_better_and_may_still_be_worse() -> None:
    same = [[1.0, 0.0], [1.0], [0.0]] * 10
    found = paired_comparison(same, same, noise=("same",))
    unseen = 1 - 0.025 ** (1 / 30)
    # A gain and a loss could both have been missed.
    assert found.difference.low == pytest.approx(-unseen)
    assert (found.difference.value, found.difference.high) == (0, pytest.approx(unseen))
    assert found.p_value == 1


def test_gains_and_losses_of_a_difference_are_set_off_against_each_other() -> None:
    """Of 100 problems 20 are gained, 10 lost: the interval is about that of the normal approximation."""
    candidate = [[1.0]] * 20 + [[0.0]] * 10 + [[1.0]] * 70
    parent = [[0.0]] * 20 + [[1.0]] * 10 + [[1.0]] * 70
    found = paired_comparison(candidate, parent, noise=("set off",)).difference
    error = math.sqrt((0.3 - 0.1**2) / 100)
    assert found.low == pytest.approx(0.1 - 1.96 * error, abs=0.015)
    assert found.high == pytest.approx(0.1 + 1.96 * error, abs=0.015)


def test_wordings_of_one_thing_are_one_observation() -> None:
    candidate, parent = [[1.0]] * 40, [[1.0]] * 20 + [[0.0]] * 20
    things = [number % 20 // 5 for number in range(40)]
    found = paired_comparison(candidate, parent, noise=("wordings",), clusters=things)
    assert len(found.change.clusters) == 4
    assert found.p_value == pytest.approx(1 / 16, abs=0.01)
    assert found.difference.low < paired_comparison(candidate, parent, noise=("problems",)).difference.low


# 0.975 ** (1 / n) passes 1 - margin; wordings come as they do in the data.
@pytest.mark.parametrize(("margin", "clusters", "needed"), [(0.1, 16, 36), (0.02, 16, 183), (0.1, 8, 72)])
def test_how_many_problems_show_that_perfect_models_are_equal(margin: float, clusters: int, needed: int) -> None:
    perfect = [[1.0]] * 16
    things = [number % clusters for number in range(16)]
    found = paired_comparison(perfect, perfect, noise=(), clusters=things)
    assert problems_needed(found, margin) == needed


def test_so_many_problems_are_enough_with_the_chance_that_is_stated() -> None:
    draws = np.random.default_rng(5)

    def an_equal_pair(problems: int) -> Comparison:
        chances = draws.random((problems, 1))
        one, other = (draws.random((problems, 4)) < chances for _ in range(2))
        return paired_comparison(one.astype(float).tolist(), other.astype(float).tolist(), noise=(), permutations=1)

    needed = [problems_needed(an_equal_pair(100), 0.05) for _ in range(20)]
    typical = sorted(needed)[10]
    assert 200 < typical < 400
    passed = sum(an_equal_pair(typical).difference.low > -0.05 for _ in range(200)) / 200
    assert 0.7 < passed < 0.92


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


def test_values_that_are_no_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="must be shares"):
        paired_comparison([[7.0]], [[1.0]], noise=())


@pytest.mark.parametrize(("problems", "share", "margin"), [(16, 1.0, 0.1), (30, 0.95, 0.05), (100, 0.8, 0.05)])
def test_a_loss_of_the_margin_passes_in_one_of_twenty_cases_at_most(problems: int, share: float, margin: float) -> None:
    draws, trials = np.random.default_rng(11), 400
    passed = 0
    for _ in range(trials):
        # Samples of a problem are all alike or nearly so.
        chances = draws.beta((share - margin) / 4, (1 - share + margin) / 4, (problems, 1))
        candidate = (draws.random((problems, 4)) < chances).astype(float)
        parent = (draws.random((problems, 4)) < share).astype(float)
        found = paired_comparison(candidate.tolist(), parent.tolist(), noise=(), permutations=1)
        passed += found.difference.low > -margin
    assert passed <= 0.05 * trials


def test_the_rates_of_error_are_those_of_two_models_like_the_parent() -> None:
    draws = np.random.default_rng(4)
    chances = draws.random((150, 1))
    one, other = ((draws.random((150, 4)) < chances).astype(float).tolist() for _ in range(2))
    found = paired_comparison(one, other, noise=("rates",))
    rates = error_rates(found, [(found, 0.1)], alpha=0.05, noise=("rates",))
    assert rates == error_rates(found, [(found, 0.1)], alpha=0.05, noise=("rates",))
    assert 0.03 < rates.false_promotion < 0.07
    assert rates.let_through > 0.95
    # A standard error of sqrt(2 * 1/6 / 4 / 150) = 2.4 points.
    assert 0.1 < rates.power[0.02] < 0.4
    assert rates.power[0.1] > 0.95
    narrow = error_rates(found, [(found, 0.001)], alpha=0.05, noise=("rates",))
    assert narrow.let_through < 0.1
    assert narrow.false_promotion <= narrow.let_through


def test_a_gain_of_five_points_is_seen() -> None:
    # 500 problems: a standard error of 1.3 points, so the expected z is 3.9 against a critical value of 2.3.
    assert promotions(100, 500, 0.05, 0.01) >= 88
