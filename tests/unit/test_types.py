"""The records: identities that hang on content, and constructors that refuse what can't be."""

import dataclasses
import math
import string
from typing import Any

import numpy as np
import pytest

from reasonmill.types import (
    Completion,
    Episode,
    Example,
    Grade,
    Group,
    Message,
    Problem,
    Reply,
    Request,
    Rollout,
    SamplingParams,
    content_digest,
)


def a_problem(**changes: Any) -> Problem:
    fields: dict[str, Any] = {
        "task": "sums",
        "messages": (Message("user", "1 + 2 ?"),),
        "answer": "3",
        "meta": {"left": 1, "right": 2},
    }
    return Problem(**{**fields, **changes})


# Content digests and problem identities


def test_a_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    digest = content_digest({"a": [1, 2], "b": "x"})
    assert digest == content_digest({"b": "x", "a": [1, 2]})
    others = [{"a": [2, 1], "b": "x"}, {"a": [1, 2], "b": "y"}, {"a": [1, 2], "c": "x"}, {"a": ["1", 2], "b": "x"}]
    assert digest not in {content_digest(other) for other in others}
    assert len(digest) == 64
    assert set(digest) <= set(string.hexdigits.lower())


def test_a_digest_hashes_the_json_text() -> None:
    # printf '{"a":"ü"}' | b2sum -l 256
    assert content_digest({"a": "\u00fc"}) == "31d7b8126ce967f8c9cc96e505cab49760cbc34d9dfc1e4777d1e7f7cfa57c99"


def test_the_id_of_a_problem_is_its_content() -> None:
    problem = a_problem()
    assert problem.id == a_problem().id
    assert problem.id == a_problem(meta={"right": 2, "left": 1}).id
    changed = [
        a_problem(task="other"),
        a_problem(messages=(Message("user", "1 + 2 = ?"),)),
        a_problem(messages=(Message("system", "1 + 2 ?"),)),
        a_problem(messages=(Message("system", ""), *problem.messages)),
        a_problem(answer="4"),
        a_problem(meta={"left": 1}),
    ]
    assert len({problem.id, *(other.id for other in changed)}) == 7


def test_wordings_of_one_thing_are_one_cluster_of_their_task() -> None:
    asked = Message("user", "how old is it ?")
    plain, named, same, other = (
        a_problem(),
        a_problem(meta={"cluster": 7}),
        a_problem(meta={"cluster": "7"}, messages=(asked,)),
        a_problem(meta={"cluster": "7"}, task="other"),
    )
    assert named.cluster == same.cluster
    assert len({plain.cluster, named.cluster, other.cluster}) == 3
    assert plain.cluster == a_problem().cluster != a_problem(messages=(asked,)).cluster


def test_a_problem_that_went_through_json_keeps_its_id() -> None:
    assert a_problem(meta={"numbers": (3, 8)}).id == a_problem(meta={"numbers": [3, 8]}).id


def test_a_problem_needs_messages_and_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match=r"'sums' has no messages"):
        a_problem(messages=())
    with pytest.raises(TypeError):
        a_problem(id="mine")
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_problem().answer = "4"  # type: ignore[misc]


# Sampling


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1e-30}, "top_p"),
        ({"max_tokens": 2**63 - 1}, "max_tokens"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ("x", "")}, "empty stop string"),
    ],
)
def test_impossible_sampling_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)


def test_the_limits_of_sampling_are_allowed() -> None:
    params = SamplingParams(temperature=0, top_p=1.0, top_k=0, max_tokens=1, stop=("x",))
    assert (params.temperature, params.max_tokens) == (0, 1)


def test_a_request_needs_a_prompt() -> None:
    with pytest.raises(ValueError, match="prompt token"):
        Request((), SamplingParams(), noise_key=0)


def test_a_completion_has_as_many_flags_and_logprobs_as_tokens() -> None:
    with pytest.raises(ValueError, match="2 tokens but 1 sampled"):
        Completion((1, 2), (0.0, 0.0), (True,), "", "stop", 0)
    with pytest.raises(ValueError, match="2 tokens but 3 log-probs"):
        Completion((1, 2), (0.0, 0.0, 0.0), (True, True), "", "stop", 0)
    assert Completion((1, 2), None, (True, False), "", "stop", 0).logprobs is None


# Turns


def a_rollout(sampled: str, *spans: tuple[int, int]) -> Rollout:
    """A rollout with a mark for each token: "p" that the policy sampled, "e" that the environment wrote."""
    flags = tuple(mark == "p" for mark in sampled)
    completion = Completion((1,) * len(flags), (0.0,) * len(flags), flags, "last", "stop", 0)
    replies = (
        Reply(start, stop, f"turn {n}", (Message("user", f"reply {n}"),)) for n, (start, stop) in enumerate(spans)
    )
    return Rollout((1,), completion, Grade(1.0), tuple(replies))


@pytest.mark.parametrize(
    ("sampled", "spans"), [("", []), ("ppp", []), ("pep", [(1, 2)]), ("ppeepep", [(2, 4), (5, 6)])]
)
def test_turns_and_replies_alternate(sampled: str, spans: list[tuple[int, int]]) -> None:
    rollout = a_rollout(sampled, *spans)
    assert rollout.completion.num_sampled == sampled.count("p")
    assert len(rollout.texts) == len(spans) + 1


@pytest.mark.parametrize(
    ("sampled", "spans"),
    [
        ("pep", []),  # no reply says what the token is
        ("eep", [(1, 2)]),
        ("pppep", [(1, 2), (3, 4)]),  # the policy's own token
        ("epp", [(0, 1)]),  # no turn before it
        ("ppe", [(2, 3)]),  # none behind it
        ("ppp", [(1, 1)]),
        ("peep", [(1, 2), (2, 3)]),  # none in between
        ("peep", [(2, 3), (1, 2)]),
        ("pep", [(1, 4)]),
        ("pepep", [(1, 2)]),
    ],
)
def test_what_was_not_sampled_is_a_reply_between_two_turns(sampled: str, spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"reply at tokens|part of no reply"):
        a_rollout(sampled, *spans)


def test_a_rollout_tells_what_was_said_before_its_last_turn() -> None:
    rollout = a_rollout("ppeepep", (2, 4), (5, 6))
    assert rollout.texts == ("turn 0", "turn 1", "last")
    said = [(message.role, message.content) for message in rollout.dialogue]
    assert said == [("assistant", "turn 0"), ("user", "reply 0"), ("assistant", "turn 1"), ("user", "reply 1")]
    assert a_rollout("pp").dialogue == ()


def test_an_episode_begins_with_its_problem_unless_it_is_told_otherwise() -> None:
    problem = a_problem()
    assert Episode(problem).messages == problem.messages
    opening = [Message("system", "Be brief."), *problem.messages]
    assert Episode(problem, opening).messages == tuple(opening)  # type: ignore[arg-type]
    assert Episode(problem).grade(a_rollout("p").completion).reward is None


# Grades and groups


def test_ungraded_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="say why"):
        Grade(None)
    assert Grade(None, error="timed out").reward is None


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_is_finite(reward: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Grade(reward)


def a_group(*rewards: float | None) -> Group:
    completion = Completion((1,), (0.0,), (True,), "", "stop", 0)
    grades = [Grade(reward, error="" if reward is not None else "crashed") for reward in rewards]
    return Group(a_problem(), tuple(Rollout((1,), completion, grade) for grade in grades))


@pytest.mark.parametrize(
    ("rewards", "flat"),
    [
        ((), True),
        ((1.0,), True),
        ((0.0, 0.0, 0.0), True),
        ((1.0, 1.0), True),
        ((0.0, 0.0, 1.0), False),
        ((-1.0, -1.5), False),
        ((None, 0.0), True),
        ((None, 0.0, 0.0), True),
        ((None, 0.0, 1.0), False),
        ((None, None), True),
        ((0.1 + 0.2, 0.3), True),
    ],
)
def test_a_group_is_flat_if_its_graded_rollouts_are_equal(rewards: tuple[float | None, ...], flat: bool) -> None:
    group = a_group(*rewards)
    assert group.rewards == list(rewards)
    assert group.is_flat is flat


# Examples


@pytest.mark.parametrize("name", ["weights", "advantages", "sampler_logprobs", "ref_logprobs"])
def test_the_rows_of_an_example_have_its_length(name: str) -> None:
    rows = {row: [0.0, 1.0, 1.0] for row in ("weights", "advantages", "sampler_logprobs", "ref_logprobs")}
    Example([5, 6, 7], loss="pg", **rows)
    with pytest.raises(ValueError, match=f"3 tokens but 2 {name}"):
        Example([5, 6, 7], loss="pg", **{**rows, name: [0.0, 1.0]})


def test_rows_may_be_arrays() -> None:
    example = Example(np.array([5, 6, 7]), np.array([0.0, 1.0, 1.0], np.float32), "ce")
    assert len(example.tokens) == 3


def test_the_first_token_is_never_trained_on() -> None:
    with pytest.raises(ValueError, match="first token"):
        Example([5, 6], [1.0, 1.0], "ce")
    with pytest.raises(ValueError, match="first token"):
        Example([], [], "ce")


@pytest.mark.parametrize("missing", ["advantages", "sampler_logprobs"])
def test_policy_gradient_needs_advantages_and_the_samplers_logprobs(missing: str) -> None:
    rows = {"advantages": [0.0, 1.0], "sampler_logprobs": [0.0, -1.0]}
    rows.pop(missing)
    with pytest.raises(ValueError, match="policy-gradient"):
        Example([5, 6], [0.0, 1.0], "pg", **rows)
    Example([5, 6], [0.0, 1.0], "ce", **rows)
