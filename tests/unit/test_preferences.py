"""Preferences by hand: which pairs are kept, what the losses are, and how calibration is measured."""

import math
import random
from collections.abc import Sequence

import pytest
import torch

from reasonmill.algo.preferences import (
    Candidate,
    Pair,
    brier_score,
    calibration_error,
    draw,
    is_held_out,
    judged,
    pairwise_losses,
    pointwise_losses,
    sigmoid,
    tokens_longer,
    with_balanced_lengths,
)
from reasonmill.types import Completion, Grade, Message, Problem, Rollout

PROBLEM = Problem("talk", (Message("user", "hello"),), "hi")


def a_candidate(shown: str, length: int = 1, good: float = 0.0) -> Candidate:
    completion = Completion((1,), (0.0,), (True,), shown, "stop", 0)
    return Candidate(PROBLEM, Rollout((2,), completion, Grade(good, {"good": good})), shown, (2,), (7,) * length)


def a_pair(chosen: int, rejected: int) -> Pair:
    """Lengths of the chosen and the rejected response."""
    return Pair(a_candidate("better", chosen), a_candidate("worse", rejected), 1.0)


# Selection


def test_about_the_share_of_problems_is_held_out_and_a_larger_share_holds_the_same_ones() -> None:
    ids = [f"{number:016x}" for number in range(2000)]
    few = {one for one in ids if is_held_out(one, 0.1)}
    many = {one for one in ids if is_held_out(one, 0.3)}
    assert 150 < len(few) < 250
    assert 520 < len(many) < 680
    assert few < many


def test_a_draw_takes_each_item_once_and_depends_on_its_name_only() -> None:
    assert sorted(draw([1, 2, 3], 5, "a")) == [1, 2, 3]
    drawn = draw(range(100), 10, "a", 1)
    assert len(set(drawn)) == 10
    assert drawn == draw(range(100), 10, "a", 1)
    assert drawn != draw(range(100), 10, "a", 2)


def test_both_orders_are_judged_so_that_a_liking_for_the_first_place_cancels() -> None:
    asked = []

    def judge(pairs: Sequence[tuple[Candidate, Candidate]]) -> list[float | None]:
        asked.extend((first.shown, second.shown) for first, second in pairs)
        return [first.rollout.grade.parts["good"] - second.rollout.grade.parts["good"] + 5.0 for first, second in pairs]

    poor, fine = a_candidate("poor", good=0.25), a_candidate("fine", good=0.75)
    assert judged(judge, [(poor, fine), (fine, poor)]) == [Pair(fine, poor, 0.5)] * 2
    assert asked == [("poor", "fine"), ("fine", "poor"), ("fine", "poor"), ("poor", "fine")]
    (undecided,) = judged(lambda pairs: [3.0] * len(pairs), [(poor, fine)])
    assert undecided is not None
    assert undecided.margin == 0.0


@pytest.mark.parametrize("verdicts", [[None, -1.0], [1.0, None], [None, None]])
def test_a_pair_that_was_judged_in_one_order_only_is_not_judged(verdicts: list[float | None]) -> None:
    assert judged(lambda pairs: verdicts, [(a_candidate("a"), a_candidate("b"))]) == [None]


def test_lengths_are_balanced_by_dropping_the_surplus_and_nothing_else() -> None:
    longer, shorter, equal = a_pair(5, 2), a_pair(1, 4), a_pair(3, 3)
    pairs = [longer, equal, longer, shorter, longer, equal, shorter, longer]
    kept = with_balanced_lengths(pairs, "seed")
    assert (kept.count(longer), kept.count(shorter), kept.count(equal)) == (2, 2, 2)
    assert kept == with_balanced_lengths(pairs, "seed")
    assert with_balanced_lengths(kept, "seed") == kept
    assert with_balanced_lengths([shorter, shorter, longer], "seed").count(shorter) == 1
    assert with_balanced_lengths([shorter, equal], "seed") == [equal]


def test_which_of_the_surplus_go_is_drawn_and_the_others_keep_their_order() -> None:
    pairs = [a_pair(length, length - 1) for length in range(2, 22)] + [a_pair(1, 2)] * 10
    kept = [len(pair.chosen.response) for pair in with_balanced_lengths(pairs, 0)][:10]
    assert kept == sorted(kept)
    assert kept != [len(pair.chosen.response) for pair in with_balanced_lengths(pairs, 1)][:10]


def test_few_long_responses_do_not_make_up_for_many_short_ones() -> None:
    """As many are longer as are shorter, and yet the longer one by far would be the better one."""
    by_far, barely = [a_pair(200, 20)] * 10, [a_pair(20, 21)] * 10
    assert with_balanced_lengths([*by_far, *barely], "seed") == []
    both = [a_pair(200, 20), a_pair(30, 200), a_pair(20, 21), a_pair(40, 39), a_pair(21, 20)]
    assert sorted(map(tokens_longer, with_balanced_lengths(both, "seed"))) == [-170, -1, 1, 180]


def test_lengths_of_all_kinds_are_alike_when_they_are_balanced() -> None:
    rng = random.Random(0)
    pairs = [a_pair(rng.randint(50, 400), rng.randint(20, 300)) for _ in range(3000)]
    kept = with_balanced_lengths(pairs, "seed")
    gaps = [tokens_longer(pair) for pair in kept]
    assert len(kept) > 1000
    assert sum(gap > 0 for gap in gaps) == sum(gap < 0 for gap in gaps)
    for least in (1, 20, 50, 100, 150):
        longer, shorter = sum(gap >= least for gap in gaps), sum(gap <= -least for gap in gaps)
        assert longer == pytest.approx(shorter, rel=0.1)
    chosen, rejected = (
        sum(len(c.response) for c in side) / len(kept)
        for side in zip(*((p.chosen, p.rejected) for p in kept), strict=True)
    )
    assert chosen == pytest.approx(rejected, rel=0.01)


# Losses


def test_pairwise_losses_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 1.0, 3.0])
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.e), math.log(2)]
    assert pairwise_losses(chosen, rejected).tolist() == pytest.approx(expected)
    centred = [expected[0] + 0.1, expected[1] + 0.1, expected[2] + 3.6]
    assert pairwise_losses(chosen, rejected, centring=0.1).tolist() == pytest.approx(centred)
    assert pairwise_losses(torch.tensor([-200.0]), torch.tensor([200.0])).tolist() == pytest.approx([400.0])


def test_pointwise_losses_by_hand() -> None:
    losses = pointwise_losses(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))])


# Calibration


def test_calibration_error_by_hand() -> None:
    # The bin [0.8, 0.9) says 0.85 and 0.83 and is right once; [0, 0.1) says 0.05, never right; 1.0 is in the last.
    chances, outcomes = [0.85, 0.83, 0.05, 1.0], [True, False, False, True]
    assert calibration_error(chances, outcomes) == pytest.approx((0.68 + 0.05) / 4)
    assert calibration_error([0.5] * 4, [True, False, True, False]) == 0.0
    assert calibration_error([0.1, 0.9], [True, False], bins=1) == pytest.approx(0.0)


def test_brier_score_by_hand() -> None:
    assert brier_score([0.9, 0.2], [True, True]) == pytest.approx((0.01 + 0.64) / 2)
    assert brier_score([0.5], [False]) == 0.25


@pytest.mark.parametrize("measure", [calibration_error, brier_score])
def test_nothing_and_uneven_lengths_are_no_measurement(measure: object) -> None:
    with pytest.raises(ValueError, match="0 probabilities"):
        measure([], [])  # type: ignore[operator]
    with pytest.raises(ValueError, match="1 probabilities and 2 outcomes"):
        measure([0.5], [True, False])  # type: ignore[operator]


def test_the_sigmoid_does_not_overflow() -> None:
    assert [sigmoid(value) for value in (-1000.0, 0.0, 1000.0)] == [0.0, 0.5, 1.0]
    assert sigmoid(1.5) == pytest.approx(1 / (1 + math.exp(-1.5)))
