"""Advantages by hand: of a group, of a whole step, and of several rewards."""

import pytest

from reasonmill.algo.advantages import ADVANTAGES, Parts

STEP = [[1.0, 0.0, 0.0, 0.0], [1.0, 3.0, 8.0]]


def totals(*groups: list[float]) -> list[Parts]:
    return [[(1.0, rewards)] for rewards in groups]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # mean 0.25, population std sqrt(3)/4; mean 4, deviations -3, -1, 4: variance 26/3
        ("group_normalised", [[3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)], [-1.019049, -0.339683, 1.358732]]),
        ("group_centred", [[0.75, -0.25, -0.25, -0.25], [-3.0, -1.0, 4.0]]),
        # each against the mean of the others
        ("leave_one_out", [[1.0, -1 / 3, -1 / 3, -1 / 3], [-4.5, -1.5, 6.0]]),
        # all seven: mean 13/7, squares 75, variance 75/7 - (13/7)^2 = 356/49
        (
            "batch_scaled",
            [[x * 7 / 356**0.5 for x in own] for own in ([0.75, -0.25, -0.25, -0.25], [-3.0, -1.0, 4.0])],
        ),
    ],
)
def test_advantages_by_hand(kind: str, expected: list[list[float]]) -> None:
    for found, wanted in zip(ADVANTAGES[kind](totals(*STEP)), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)


def test_two_rewards_are_normalised_each_by_itself() -> None:
    """GDPO (arXiv 2601.05242): what GRPO can't tell apart, because the sums are alike, gets different advantages."""
    # First group: accuracy 1, 0 and format 0, 1, so that all sums are 1; second: accuracy 1, 0, 0 and format all 1.
    groups: list[Parts] = [[(1.0, [1.0, 0.0]), (1.0, [0.0, 1.0])], [(1.0, [1.0, 0.0, 0.0]), (1.0, [1.0, 1.0, 1.0])]]
    assert ADVANTAGES["group_normalised"](groups)[0] == [0.0, 0.0]
    # sums of the normalised: 1 - 1 = 0 twice; and sqrt(2), -1/sqrt(2) twice. Their mean is 0 and their variance 3/5.
    spread = (3 / 5) ** 0.5
    (first, second) = ADVANTAGES["per_reward"](groups)
    assert first == pytest.approx([0.0, 0.0], abs=1e-12)
    assert second == pytest.approx([x / spread for x in (2**0.5, -(2**-0.5), -(2**-0.5))])


def test_the_scale_of_a_reward_is_its_weight_and_not_its_spread() -> None:
    """Normalised: 1, -1 of the first and -1, 1 of the second; weighted 3 and 1; then over the step."""
    small: list[Parts] = [[(3.0, [0.1, 0.0]), (1.0, [0.0, 500.0])], [(3.0, [1.0, 1.0]), (1.0, [7.0, 2.0])]]
    # sums 2, -2 and 1, -1: variance 10/4
    spread = 2.5**0.5
    (first, second) = ADVANTAGES["per_reward"](small)
    assert first == pytest.approx([2 / spread, -2 / spread])
    assert second == pytest.approx([1 / spread, -1 / spread])


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("rewards", [[0.7] * 3, [0.1 + 0.2, 0.3, 0.3], [2.0], []])
def test_groups_without_differences_have_no_advantages(kind: str, rewards: list[float]) -> None:
    """0.1 + 0.2 differs from 0.3 by rounding only, which a division by the spread would blow up to 1."""
    for found in ADVANTAGES[kind](totals(rewards, rewards)):
        assert found == pytest.approx([0.0] * len(rewards), abs=1e-9)
