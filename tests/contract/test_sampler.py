"""What every sampler promises, whatever is behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from reasonmill.protocols import Sampler
from reasonmill.randomness import generator, key
from reasonmill.sample.native import NativeSampler
from reasonmill.sample.scripted import ScriptedSampler
from reasonmill.types import Completion, Request, SamplingParams
from tiny_models import STOP_TOKEN, VOCABULARY, NumberRenderer, tiny_decoder


@dataclass(frozen=True)
class Case:
    """A sampler, and weights that it can load."""

    sampler: Sampler
    weights: Mapping[str, Tensor]


def native() -> Case:
    # Fewer slots than requests, so that slots are used again.
    decoder = tiny_decoder()
    weights = {name: parameter.detach().clone() for name, parameter in decoder.network.named_parameters()}
    return Case(NativeSampler(decoder, NumberRenderer(), num_slots=7), weights)


def scripted() -> Case:
    def script(request: Request, version: int) -> Sequence[int]:
        numbers = generator(request.noise_key, version)
        return [numbers.randrange(12) for _ in range(40)]

    return Case(ScriptedSampler(NumberRenderer(), script), {"w": torch.zeros(1)})


@pytest.fixture(params=[native, scripted])
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param()
    return made


def requests(count: int = 60) -> list[Request]:
    """Ragged prompts, some of them shared by a group, and ragged limits."""
    numbers = generator("requests")
    prompts = [tuple(numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(1, 9))) for _ in range(count // 3)]
    return [
        Request(prompts[index // 3], SamplingParams(max_tokens=numbers.choice([1, 5, 30])), key("noise", index))
        for index in range(count)
    ]


def completions(sampler: Sampler, asked: Sequence[Request]) -> list[Completion]:
    drawn = dict(sampler.generate(asked))
    return [drawn[index] for index in range(len(asked))]


def test_every_request_is_answered_exactly_once(case: Case) -> None:
    asked = requests()
    assert sorted(index for index, _ in case.sampler.generate(asked)) == list(range(len(asked)))


def test_no_requests_no_completions(case: Case) -> None:
    assert list(case.sampler.generate([])) == []


def test_a_completion_ends_at_its_first_stop_token_or_at_its_limit(case: Case) -> None:
    asked = requests()
    finishes = set()
    for request, completion in zip(asked, completions(case.sampler, asked), strict=True):
        finishes.add(completion.finish)
        assert 1 <= len(completion.tokens) <= request.params.max_tokens
        assert STOP_TOKEN not in completion.tokens[:-1]
        if completion.finish == "stop":
            assert completion.tokens[-1] == STOP_TOKEN
        else:
            assert len(completion.tokens) == request.params.max_tokens
            assert completion.tokens[-1] != STOP_TOKEN
    assert finishes == {"stop", "length"}


def test_a_stop_token_at_the_limit_is_a_stop(case: Case) -> None:
    """The limit is where each completion stopped by itself."""
    asked = requests()
    stopped = [
        (request, completion)
        for request, completion in zip(asked, completions(case.sampler, asked), strict=True)
        if completion.finish == "stop"
    ]
    exact = [
        Request(request.prompt_tokens, SamplingParams(max_tokens=len(completion.tokens)), request.noise_key)
        for request, completion in stopped
    ]
    assert [completion.finish for completion in completions(case.sampler, exact)] == ["stop"] * len(exact)


def test_the_text_is_that_of_the_tokens_without_the_stop_token(case: Case) -> None:
    for completion in completions(case.sampler, requests()):
        assert completion.text.split() == [str(token) for token in completion.tokens if token != STOP_TOKEN]


def test_every_token_has_a_log_prob_and_was_sampled(case: Case) -> None:
    for completion in completions(case.sampler, requests()):
        assert completion.logprobs is not None
        assert all(-100 < logprob <= 0 for logprob in completion.logprobs)
        assert all(completion.sampled)


def test_completions_carry_the_version_of_the_weights(case: Case) -> None:
    asked = requests(9)
    assert {c.policy_version for c in completions(case.sampler, asked)} == {case.sampler.version} == {0}
    case.sampler.load(case.weights, version=7)
    assert {c.policy_version for c in completions(case.sampler, asked)} == {case.sampler.version} == {7}


def test_neither_the_order_of_requests_nor_earlier_ones_matter(case: Case) -> None:
    asked = requests()
    first = completions(case.sampler, asked)
    again = completions(case.sampler, asked[::-1])[::-1]
    assert [c.tokens for c in again] == [c.tokens for c in first]
    assert [c.finish for c in again] == [c.finish for c in first]


def test_an_abandoned_call_leaves_nothing_behind(case: Case) -> None:
    asked = requests()
    expected = completions(case.sampler, asked)
    next(iter(case.sampler.generate(asked)))
    assert [c.tokens for c in completions(case.sampler, asked)] == [c.tokens for c in expected]
