"""Packing by hand: what is shifted where, which sequences share a batch, and the way back."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonmill.algo import packing
from reasonmill.algo.packing import SHARED_FROM, group_positions, pack, pack_texts, unpack
from reasonmill.types import Example


def an_example(tokens: list[int], **changes: Any) -> Example:
    """Advantages are ten times the tokens and log-probs their negatives, so that they show where they went."""
    fields: dict[str, Any] = {
        "tokens": tokens,
        "weights": [0.0] + [1.0] * (len(tokens) - 1),
        "loss": "pg",
        "advantages": [10.0 * token for token in tokens],
        "sampler_logprobs": [-float(token) for token in tokens],
    }
    return Example(**{**fields, **changes})


def test_a_row_by_hand() -> None:
    short, long = an_example([7, 8]), an_example([1, 2, 3, 4], weights=[0.0, 0.0, 0.5, 0.25])
    (batch,) = pack([short, long], 100)
    assert batch.loss == "pg"
    # Longest first.
    assert batch.lengths == (3, 1)
    assert batch.inputs.tolist() == [1, 2, 3, 7]
    assert batch.targets.tolist() == [2, 3, 4, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0]
    assert batch.sequence.tolist() == [0, 0, 0, 1]
    # All other rows speak of the predicted token.
    assert batch.weights.tolist() == [0.0, 0.5, 0.25, 1.0]
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [20.0, 30.0, 40.0, 80.0]
    assert batch.sampler_logprobs is not None
    assert batch.sampler_logprobs.tolist() == [-2.0, -3.0, -4.0, -8.0]
    assert batch.ref_logprobs is None
    assert batch.num_tokens == 4
    assert (batch.inputs.dtype, batch.weights.dtype) == (torch.int64, torch.float32)


def test_a_batch_is_filled_to_its_last_position_and_not_beyond() -> None:
    examples = [an_example([1] * length) for length in (3, 5, 3, 2)]  # 2, 4, 2 and 1 positions
    assert [batch.lengths for batch in pack(examples, 6)] == [(4, 2), (2, 1)]
    assert [batch.lengths for batch in pack(examples, 5)] == [(4,), (2, 2, 1)]
    assert [batch.lengths for batch in pack(examples, 9)] == [(4, 2, 2, 1)]


def test_an_example_too_long_for_a_batch_gets_one_of_its_own() -> None:
    assert [batch.lengths for batch in pack([an_example([1] * 3), an_example([1] * 9)], 4)] == [(8,), (2,)]


def test_equally_long_examples_keep_their_order() -> None:
    (batch,) = pack([an_example([5, 6]), an_example([3, 4]), an_example([8, 9])], 10)
    assert batch.inputs.tolist() == [5, 3, 8]


def test_a_single_token_predicts_nothing_and_takes_no_position() -> None:
    assert pack([an_example([1])], 10) == []
    (batch,) = pack([an_example([1]), an_example([2, 3])], 10)
    assert batch.lengths == (1,)


def test_numpy_rows_pack_like_lists() -> None:
    rows = an_example([1, 2, 3])
    arrays = an_example(
        np.array([1, 2, 3]),
        weights=np.array([0, 1, 1]),
        advantages=np.array(rows.advantages),
        sampler_logprobs=np.array(rows.sampler_logprobs),
    )
    (of_rows,), (of_arrays,) = pack([rows], 10), pack([arrays], 10)
    for name in ("inputs", "targets", "weights", "advantages", "sampler_logprobs"):
        assert torch.equal(getattr(of_rows, name), getattr(of_arrays, name)), name


def test_examples_that_do_not_go_together_are_refused() -> None:
    text = Example(tokens=[1, 2], weights=[0.0, 1.0], loss="ce")
    with pytest.raises(ValueError, match="one loss"):
        pack([an_example([1, 2]), text], 10)
    with pytest.raises(ValueError, match=r"1 of 2 examples .* ref_logprobs"):
        pack([an_example([1, 2], ref_logprobs=[0.0, -1.0]), an_example([1, 2])], 10)


def test_moving_a_batch_keeps_all_that_it_holds() -> None:
    (batch,) = pack([an_example([1, 2, 3])], 10)
    moved = batch.to("meta")
    assert (moved.loss, moved.lengths) == (batch.loss, batch.lengths)
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.mark.check
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from([1, 3, 4])), min_size=1, max_size=8),
    st.integers(1, 20),
)
def test_unpack_gives_every_example_its_own_values(lengths: list[tuple[int, int]], tokens_per_batch: int) -> None:
    numbers = iter(range(11, 100))
    examples = [completed(list(range(context)), *(next(numbers) for _ in range(own))) for own, context in lengths]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "SHARED_FROM", 3)
        batches = pack(examples, tokens_per_batch)
    values = torch.cat([batch.targets for batch in batches] or [torch.zeros(0)]).float()
    assert unpack(values, batches, examples) == [[0.0, *map(float, e.tokens[1:])] for e in examples]


def test_unpack_refuses_values_of_other_batches() -> None:
    examples = [an_example([1, 2, 3])]
    with pytest.raises(ValueError, match="belong"):
        unpack(torch.zeros(3), pack(examples, 10), examples)


# Contexts that are shared


@pytest.fixture
def three_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARED_FROM", 3)


def completed(context: list[int], *own: int) -> Example:
    return an_example([*context, *own], weights=[0.0] * len(context) + [1.0] * len(own))


@pytest.mark.usefixtures("three_are_shared")
def test_a_row_with_a_shared_context_by_hand() -> None:
    alone, short, long = completed([5, 6], 7), completed([1, 2, 3], 8), completed([1, 2, 3], 4, 5)
    (batch,) = pack([alone, short, long], 100)
    # The context but for its last token, which both go on from; the longer one first.
    assert batch.continued == (2,)
    assert batch.lengths == (2, 2, 1, 2)
    assert batch.inputs.tolist() == [1, 2, 3, 4, 3, 5, 6]
    assert batch.targets.tolist() == [2, 3, 4, 5, 8, 6, 7]
    assert batch.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert batch.sequence.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert batch.weights.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [20.0, 30.0, 40.0, 50.0, 80.0, 60.0, 70.0]
    assert batch.longest == 4


@pytest.mark.usefixtures("three_are_shared")
@pytest.mark.parametrize(
    "others",
    [
        [completed([1, 2, 9], 4, 5)],  # another context
        [completed([1, 2, 3, 4], 5)],  # a longer one
        [completed([1, 2], 3, 4)],  # that the loss weighs in part
    ],
)
def test_what_has_another_context_shares_nothing(others: list[Example]) -> None:
    (batch,) = pack([completed([1, 2, 3], 6), *others], 100)
    assert batch.continued == ()
    assert sorted(batch.lengths) == sorted([3, len(others[0].tokens) - 1])


@pytest.mark.usefixtures("three_are_shared")
def test_who_shares_a_context_is_in_one_batch_if_it_holds_all_of_them() -> None:
    context = [1, 2, 3, 4]  # 3 positions are shared
    examples = [completed([9, 9], *range(8)), *(completed(context, *own) for own in ([1, 2], [3, 4], [5, 6]))]
    assert [batch.lengths for batch in pack(examples, 18)] == [(3, 2, 2, 2, 9)]
    assert [batch.lengths for batch in pack(examples, 17)] == [(9,), (3, 2, 2, 2)]
    # Too many for one: the context again. And what is alone in the end shares with nobody.
    assert [batch.lengths for batch in pack(examples[1:], 8)] == [(3, 2, 2), (5,)]
    assert [batch.continued for batch in pack(examples[1:], 8)] == [(2,), ()]
    assert [batch.lengths for batch in pack(examples[1:], 4)] == [(5,), (5,), (5,)]


def test_how_many_positions_a_group_takes_is_told_beforehand() -> None:
    prompt = [7] * SHARED_FROM
    examples = [completed(prompt, *range(10, 30)) for _ in range(5)]
    for limit in (1000, SHARED_FROM + 50, 100):
        taken = sum(batch.num_tokens for batch in pack(examples, limit))
        assert abs(group_positions(5, SHARED_FROM, 20, limit) - taken) <= 5
    assert group_positions(5, SHARED_FROM - 1, 20, 1000) == 5 * (SHARED_FROM + 19)


# Whole texts


def test_a_row_of_whole_texts_by_hand() -> None:
    (row,) = pack_texts([[(7, 8), (9,)], [(1, 2, 3), (4, 5)]], 100)
    assert row.units == (1, 0)  # the unit with the longest text first; a unit's texts in their order
    assert row.lengths == (3, 2, 2, 1)
    assert row.tokens.tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 0]
    assert row.last.tolist() == [2, 4, 6, 7]


def test_units_of_texts_are_never_cut() -> None:
    units = [[(1,) * 3, (1,) * 2], [(1,) * 9], [(1,) * 2, (1,) * 3], [(1,)]]
    assert [row.units for row in pack_texts(units, 10)] == [(1,), (0, 2), (3,)]
    assert [row.units for row in pack_texts(units, 4)] == [(1,), (0,), (2,), (3,)]
    assert pack_texts([], 4) == []
