"""What every sampler promises, whatever is behind it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from chat_server import Answer, chat_server, says
from reasonmill.errors import UnsupportedModel
from reasonmill.protocols import Sampler
from reasonmill.randomness import generator, key
from reasonmill.sample.http import ConversationRenderer, HttpSampler
from reasonmill.servers.settings import TeacherSettings
from reasonmill.types import Completion, Message, Request, SamplingParams
from scripted import ScriptedSampler
from tiny_models import STOP_TOKEN, VOCABULARY, NumberRenderer, native_sampler, tiny_decoder


@dataclass(frozen=True)
class Case:
    """A sampler, the tokens that it knows a prompt of numbers by, and weights to take."""

    sampler: Sampler
    prompt: Callable[[tuple[int, ...]], tuple[int, ...]]
    weights: Mapping[str, Tensor]
    repeatable: bool = True


@contextmanager
def native() -> Iterator[Case]:
    # Fewer slots than requests, so that slots are used again.
    decoder = tiny_decoder()
    weights = {name: parameter.detach().clone() for name, parameter in decoder.network.named_parameters()}
    yield Case(native_sampler(decoder, NumberRenderer(), num_slots=7), tuple, weights)


@contextmanager
def scripted() -> Iterator[Case]:
    def script(request: Request, version: int) -> Sequence[int]:
        numbers = generator(request.noise_key, version)
        return [numbers.randrange(12) for _ in range(40)]

    yield Case(ScriptedSampler(NumberRenderer(), script), tuple, {"w": torch.zeros(1)})


@contextmanager
def http() -> Iterator[Case]:
    """A teacher that writes words of its own, which the seed and the conversation decide."""

    def respond(body: dict[str, Any], _: int) -> Answer:
        numbers = generator(body["seed"], body["messages"][-1]["content"])
        words = [str(numbers.randrange(99)) for _ in range(numbers.randint(1, 40))]
        cut = len(words) > body["max_tokens"]
        return says(" ".join(words[: body["max_tokens"]]), "length" if cut else "stop")

    def prompt(numbers: tuple[int, ...]) -> tuple[int, ...]:
        return ConversationRenderer().render([Message("user", " ".join(map(str, numbers)))])

    with chat_server(respond) as fake:
        settings = TeacherSettings(url=fake.url, model="teacher", concurrency=4)
        yield Case(HttpSampler(settings), prompt, {"w": torch.zeros(1)}, repeatable=False)


def started(request: pytest.FixtureRequest) -> Iterator[Case]:
    making: Callable[[], AbstractContextManager[Case]] = request.param
    with making() as made:
        yield made


@pytest.fixture(params=[native, scripted, http])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Every sampler."""
    yield from started(request)


@pytest.fixture(params=[native, scripted])
def policy(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Those that sample a policy, whose tokens are known here and can be learned from."""
    yield from started(request)


@pytest.fixture(params=[http])
def teacher(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Those whose weights and tokens are somewhere else."""
    yield from started(request)


def requests(case: Case, count: int = 36) -> list[Request]:
    """Ragged prompts, some of them shared by a group, and ragged limits."""
    numbers = generator("requests")
    prompts = [tuple(numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(1, 9))) for _ in range(count // 3)]
    return [
        Request(
            case.prompt(prompts[index // 3]), SamplingParams(max_tokens=numbers.choice([1, 5, 30])), key("noise", index)
        )
        for index in range(count)
    ]


def completions(sampler: Sampler, asked: Sequence[Request]) -> list[Completion]:
    drawn = dict(sampler.generate(asked))
    return [drawn[index] for index in range(len(asked))]


def test_every_request_is_answered_exactly_once(case: Case) -> None:
    asked = requests(case)
    assert sorted(index for index, _ in case.sampler.generate(asked)) == list(range(len(asked)))


def test_no_requests_no_completions(case: Case) -> None:
    assert list(case.sampler.generate([])) == []


def test_a_completion_ends_at_its_first_stop_token_or_at_its_limit(policy: Case) -> None:
    asked = requests(policy)
    finishes = set()
    for request, completion in zip(asked, completions(policy.sampler, asked), strict=True):
        finishes.add(completion.finish)
        assert 1 <= len(completion.tokens) <= request.params.max_tokens
        assert STOP_TOKEN not in completion.tokens[:-1]
        if completion.finish == "stop":
            assert completion.tokens[-1] == STOP_TOKEN
        else:
            assert len(completion.tokens) == request.params.max_tokens
            assert completion.tokens[-1] != STOP_TOKEN
    assert finishes == {"stop", "length"}


def test_a_stop_token_at_the_limit_is_a_stop(policy: Case) -> None:
    """The limit is where each completion stopped by itself."""
    asked = requests(policy)
    stopped = [
        (request, completion)
        for request, completion in zip(asked, completions(policy.sampler, asked), strict=True)
        if completion.finish == "stop"
    ]
    exact = [
        Request(request.prompt_tokens, SamplingParams(max_tokens=len(completion.tokens)), request.noise_key)
        for request, completion in stopped
    ]
    assert [completion.finish for completion in completions(policy.sampler, exact)] == ["stop"] * len(exact)


def test_the_text_is_that_of_the_tokens_without_the_stop_token(policy: Case) -> None:
    for completion in completions(policy.sampler, requests(policy)):
        assert completion.text.split() == [str(token) for token in completion.tokens if token != STOP_TOKEN]


def test_every_token_has_a_log_prob_and_was_sampled(policy: Case) -> None:
    for completion in completions(policy.sampler, requests(policy)):
        assert completion.logprobs is not None
        assert all(-100 < logprob <= 0 for logprob in completion.logprobs)
        assert all(completion.sampled)


def test_completions_carry_the_version_of_the_weights(policy: Case) -> None:
    asked = requests(policy, 9)
    assert {c.policy_version for c in completions(policy.sampler, asked)} == {policy.sampler.version} == {0}
    policy.sampler.take(policy.weights.items(), version=7)
    assert {c.policy_version for c in completions(policy.sampler, asked)} == {policy.sampler.version} == {7}


def test_completions_end_by_themselves_or_at_their_limit(case: Case) -> None:
    assert {completion.finish for completion in completions(case.sampler, requests(case))} == {"stop", "length"}


def test_neither_the_order_of_requests_nor_earlier_ones_matter(case: Case) -> None:
    asked = requests(case)
    first = completions(case.sampler, asked)
    again = completions(case.sampler, asked[::-1])[::-1]
    assert [c.tokens for c in again] == [c.tokens for c in first]
    assert [c.text for c in again] == [c.text for c in first]
    assert [c.finish for c in again] == [c.finish for c in first]


def test_an_abandoned_call_leaves_nothing_behind(case: Case) -> None:
    asked = requests(case)
    expected = completions(case.sampler, asked)
    next(iter(case.sampler.generate(asked)))
    assert [(c.tokens, c.text) for c in completions(case.sampler, asked)] == [(c.tokens, c.text) for c in expected]


def test_a_sampler_says_whether_it_is_repeatable(case: Case) -> None:
    assert case.sampler.repeatable == case.repeatable


def test_a_stream_is_the_same_completion(policy: Case) -> None:
    asked = requests(policy, 12)
    for request, completion in zip(asked, completions(policy.sampler, asked), strict=True):
        assert tuple(policy.sampler.stream(request)) == completion.tokens


def test_what_a_teacher_says_is_streamed_as_its_renderer_writes_it(teacher: Case) -> None:
    for request in requests(teacher, 3):
        (drawn,) = completions(teacher.sampler, [request])
        assert ConversationRenderer().text(list(teacher.sampler.stream(request))) == drawn.text


def test_two_calls_take_turns(case: Case) -> None:
    asked = requests(case)
    expected = completions(case.sampler, asked)
    first, second = case.sampler.generate(asked[::2]), case.sampler.generate(asked[1::2])
    # Each stops between its completions while the other one goes on.
    drawn = {}
    for (place, one), (other_place, other) in zip(first, second, strict=True):
        drawn |= {2 * place: one, 2 * other_place + 1: other}
    assert [drawn[index].text for index in range(len(asked))] == [completion.text for completion in expected]


def test_a_follow_up_goes_on_under_its_index(case: Case) -> None:
    asked = requests(case)
    alone = completions(case.sampler, asked)
    turns: dict[int, list[Completion]] = {index: [] for index in range(len(asked))}

    def follow_up(finished: Sequence[tuple[int, Completion]]) -> list[Request | None]:
        indices = [index for index, _ in finished]
        assert finished
        assert indices == sorted(indices)
        for index, completion in finished:
            turns[index].append(completion)
        # Every third request has a second turn, and some of those a third one.
        return [
            asked[index - len(turns[index])] if index % 3 == 2 and len(turns[index]) <= index % 4 else None
            for index in indices
        ]

    drawn = list(case.sampler.generate(asked, follow_up))
    assert sorted(index for index, _ in drawn) == list(range(len(asked)))
    for index, completion in drawn:
        assert completion is turns[index][-1]
        assert len(turns[index]) == (1 + index % 4 if index % 3 == 2 else 1)
        assert [turn.text for turn in turns[index]] == [alone[index - turn].text for turn in range(len(turns[index]))]


def test_a_follow_up_that_fails_ends_the_call_and_leaves_nothing_behind(case: Case) -> None:
    asked = requests(case)
    expected = [completion.text for completion in completions(case.sampler, asked)]

    def follow_up(finished: Sequence[tuple[int, Completion]]) -> list[Request | None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(case.sampler.generate(asked, follow_up))
    assert [completion.text for completion in completions(case.sampler, asked)] == expected


def test_a_teacher_takes_no_weights_and_stays_what_it_is(teacher: Case) -> None:
    with pytest.raises(UnsupportedModel):
        teacher.sampler.take(teacher.weights.items(), version=7)
    asked = requests(teacher, 9)
    assert {c.policy_version for c in completions(teacher.sampler, asked)} == {teacher.sampler.version} == {0}


def test_a_teacher_gives_text_without_tokens(teacher: Case) -> None:
    for drawn in completions(teacher.sampler, requests(teacher)):
        assert (drawn.tokens, drawn.logprobs, drawn.sampled) == ((), None, ())
        assert drawn.text
