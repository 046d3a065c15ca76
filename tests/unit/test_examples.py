"""Rollouts to examples: what each token weighs under each normalisation, and what is left out."""

import dataclasses
from typing import Any

import pytest

from reasonmill.algo.examples import denominator, pg_examples
from reasonmill.algo.losses import Normalisation
from reasonmill.types import Completion, Grade, Group, Message, Problem, Reply, Rollout


def a_rollout(num_tokens: int, **changes: Any) -> Rollout:
    fields: dict[str, Any] = {
        "tokens": tuple(range(10, 10 + num_tokens)),
        "logprobs": tuple(-0.1 * (i + 1) for i in range(num_tokens)),
        "sampled": (True,) * num_tokens,
        "text": "",
        "finish": "stop",
        "policy_version": 0,
    }
    return Rollout((1, 2, 3), Completion(**{**fields, **changes}), Grade(1.0))


def a_group(*rollouts: Rollout) -> Group:
    return Group(Problem("sums", (Message("user", "1 + 1"),), "2"), rollouts)


def test_an_example_by_hand() -> None:
    (example,) = pg_examples(a_group(a_rollout(2)), [0.5], "token", 8)
    assert example.loss == "pg"
    assert list(example.tokens) == [1, 2, 3, 10, 11]
    assert list(example.weights) == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert example.advantages is not None
    assert list(example.advantages) == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert example.sampler_logprobs is not None
    assert list(example.sampler_logprobs) == pytest.approx([0.0, 0.0, 0.0, -0.1, -0.2])


@pytest.mark.parametrize(
    ("normalisation", "weights", "divisor"),
    [
        # each token: 1 of 6 tokens
        ("token", [1.0, 1.0], 6.0),
        # each completion 1 of 2, its tokens alike
        ("sequence", [0.5, 0.25], 2.0),
        # each token 1 of max_tokens, then 1 of 2 completions
        ("constant", [0.125, 0.125], 2.0),
    ],
)
def test_what_a_token_weighs(normalisation: Normalisation, weights: list[float], divisor: float) -> None:
    examples = pg_examples(a_group(a_rollout(2), a_rollout(4)), [1.0, -1.0], normalisation, 8)
    assert [example.weights[-1] for example in examples] == weights
    assert denominator(examples, normalisation) == divisor


def two_turns() -> Rollout:
    """Of eight tokens after the prompt, the environment wrote the third to the fifth."""
    sampled = (True, True, False, False, False, True, True, True)
    replies = (Reply(2, 5, "first", (Message("user", "again"),)),)
    return dataclasses.replace(
        a_rollout(2), completion=dataclasses.replace(a_rollout(8).completion, sampled=sampled), replies=replies
    )


@pytest.mark.parametrize(
    ("normalisation", "weight", "divisor"), [("token", 1.0, 5.0), ("sequence", 0.2, 1.0), ("constant", 0.05, 1.0)]
)
def test_what_an_environment_wrote_is_context_and_no_part_of_a_length(
    normalisation: Normalisation, weight: float, divisor: float
) -> None:
    (example,) = pg_examples(a_group(two_turns()), [1.0], normalisation, 20)
    assert list(example.weights[:3]) == [0.0] * 3
    assert list(example.weights[3:]) == [weight, weight, 0.0, 0.0, 0.0, weight, weight, weight]
    assert denominator([example], normalisation) == divisor


def test_rollouts_with_nothing_to_train_on_give_no_example() -> None:
    ungraded, empty = a_rollout(2), a_rollout(0)
    for normalisation in ("token", "sequence", "constant"):
        assert pg_examples(a_group(ungraded, empty), [None, 1.0], normalisation, 8) == []


def test_every_rollout_needs_its_advantage() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        pg_examples(a_group(a_rollout(2), a_rollout(2)), [1.0], "token", 8)


def test_a_foreign_teachers_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match="log-probs"):
        pg_examples(a_group(a_rollout(2, logprobs=None)), [1.0], "token", 8)
