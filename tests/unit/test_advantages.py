"""Advantages by hand, and what ungraded attempts must not do to them."""

import pytest

from reasonmill.algo.advantages import advantages


@pytest.mark.parametrize(
    ("kind", "rewards", "expected"),
    [
        # mean 0.25, population std sqrt(3)/4
        ("group_normalised", [1.0, 0.0, 0.0, 0.0], [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]),
        # mean 4, deviations -3, -1, 4: variance 26/3
        ("group_normalised", [1.0, 3.0, 8.0], [-1.019049, -0.339683, 1.358732]),
        ("group_centred", [1.0, 0.0, 0.0, 0.0], [0.75, -0.25, -0.25, -0.25]),
        ("group_centred", [1.0, 3.0, 8.0], [-3.0, -1.0, 4.0]),
        # each against the mean of the other two: 5.5, 4.5, 2
        ("leave_one_out", [1.0, 3.0, 8.0], [-4.5, -1.5, 6.0]),
        ("leave_one_out", [1.0, 0.0], [1.0, -1.0]),
    ],
)
def test_advantages_by_hand(kind: str, rewards: list[float], expected: list[float]) -> None:
    assert advantages(rewards, kind) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["group_normalised", "group_centred", "leave_one_out"])
@pytest.mark.parametrize("rewards", [[0.7] * 3, [0.1 + 0.2, 0.3, 0.3], [2.0], []])
def test_a_group_without_differences_has_no_advantages(kind: str, rewards: list[float]) -> None:
    """0.1 + 0.2 differs from 0.3 by rounding only, which a division by the spread would blow up to 1."""
    assert advantages(rewards, kind) == pytest.approx([0.0] * len(rewards), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("group_normalised", [1.0, None, -1.0]),
        ("group_centred", [0.5, None, -0.5]),
        ("leave_one_out", [1.0, None, -1.0]),
    ],
)
def test_an_ungraded_attempt_is_no_zero(kind: str, expected: list[float | None]) -> None:
    assert advantages([1.0, None, 0.0], kind) == expected


def test_a_group_that_could_not_be_graded_at_all_has_no_advantages() -> None:
    assert advantages([None, None], "group_normalised") == [None, None]
