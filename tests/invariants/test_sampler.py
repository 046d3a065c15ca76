"""What a completion may depend on: its prompt, its settings, its key and the weights, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reasonmill.errors import UnsupportedModel
from reasonmill.model.attention import Layout
from reasonmill.model.decoder import Decoder
from reasonmill.model.packed import PackedLayout
from reasonmill.randomness import generator, key
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Completion, Request, SamplingParams
from tiny_models import VOCABULARY, NumberRenderer, native_sampler, tiny_decoder


class CountingDecoder(Decoder):
    """Notes how many tokens each forward pass reads."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.network)
        self.rows: list[int] = []

    def hidden(self, inputs: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        self.rows.append(inputs.numel())
        return super().hidden(inputs, positions, layout)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    # Alternating windows and soft caps: the architecture with the most that can go wrong.
    return tiny_decoder("gemma2")


def requests(count: int = 24) -> list[Request]:
    numbers = generator("sampler invariants")
    prompts = [tuple(numbers.randrange(2, VOCABULARY) for _ in range(length)) for length in (3, 11, 1, 7, 12, 5)]
    settings = [
        SamplingParams(max_tokens=25),
        SamplingParams(temperature=0.0, max_tokens=9),
        SamplingParams(temperature=1.5, top_k=9, max_tokens=17),
        SamplingParams(top_p=0.8, max_tokens=4),
    ]
    return [Request(prompts[i // 4 % 6], settings[i % 4], key("invariants", i)) for i in range(count)]


def completions(sampler: EngineSampler, asked: Sequence[Request]) -> list[Completion]:
    drawn = dict(sampler.generate(asked))
    return [drawn[index] for index in range(len(asked))]


@pytest.fixture(scope="module")
def expected(decoder: Decoder) -> list[Completion]:
    """Each request all by itself."""
    sampler = native_sampler(decoder, NumberRenderer(), num_slots=1)
    return [completions(sampler, [request])[0] for request in requests()]


def assert_same(got: Sequence[Completion], wanted: Sequence[Completion]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize(("num_slots", "prefill_tokens"), [(2, 8192), (5, 8192), (5, 4), (24, 13), (99, 8192)])
def test_neither_slots_nor_companions_matter(
    decoder: Decoder, expected: list[Completion], num_slots: int, prefill_tokens: int
) -> None:
    sampler = native_sampler(decoder, NumberRenderer(), num_slots=num_slots, prefill_tokens=prefill_tokens)
    assert_same(completions(sampler, requests()), expected)
    # Other companions: every third request of the same list.
    assert_same(completions(sampler, requests()[1::3]), expected[1::3])


def test_the_same_key_draws_the_same_and_another_one_does_not(decoder: Decoder) -> None:
    prompt, params = (5, 6, 7), SamplingParams(max_tokens=20)
    asked = [Request(prompt, params, noise_key) for noise_key in (1, 2, 1, 3, 2)]
    tokens = [completion.tokens for completion in completions(native_sampler(decoder, NumberRenderer()), asked)]
    assert tokens[0] == tokens[2]
    assert tokens[1] == tokens[4]
    assert len({tokens[0], tokens[1], tokens[3]}) == 3


def test_a_prompt_is_read_once_for_its_group_and_no_finished_sequence_is_read_on() -> None:
    counting = CountingDecoder(tiny_decoder())
    prompts = [(3, 4, 5, 6, 7, 8, 9, 10), (11, 12, 13)]
    asked = [Request(prompts[i // 8], SamplingParams(max_tokens=3 + 2 * i), key("group", i)) for i in range(16)]
    drawn = completions(native_sampler(counting, NumberRenderer(), num_slots=16), asked)
    assert counting.rows[0] == 8 + 3
    # The last drawn token of a completion is never read.
    assert sum(counting.rows[1:]) == sum(len(completion.tokens) - 1 for completion in drawn)
    assert counting.rows[1:] == sorted(counting.rows[1:], reverse=True)


def test_a_free_slot_is_filled_at_once() -> None:
    counting = CountingDecoder(tiny_decoder())
    asked = [Request((2, 3), SamplingParams(max_tokens=1 + i % 5), key("refill", i)) for i in range(20)]
    drawn = completions(native_sampler(counting, NumberRenderer(), num_slots=4), asked)
    decoded = sum(len(completion.tokens) - 1 for completion in drawn)
    prefills = [rows for rows in counting.rows if rows == 2]
    # All but the last few decode steps are full, so that hardly more of them are needed than of full ones.
    assert len(counting.rows) - len(prefills) <= decoded / 4 + 5


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_stop_string_ends_a_completion_and_its_text(decoder: Decoder, position: int) -> None:
    request = Request((5, 6, 7), SamplingParams(max_tokens=12), 2)
    sampler = native_sampler(decoder, NumberRenderer())
    (free,) = completions(sampler, [request])
    words = [f"{token} " for token in free.tokens]
    stop = "".join(words[position : position + 2])
    stopping = Request(request.prompt_tokens, SamplingParams(max_tokens=12, stop=("no such text", stop)), 2)
    (stopped,) = completions(sampler, [stopping])
    assert stopped.finish == "stop"
    # The tokens that spell the stop string were drawn; the text ends before them.
    assert stopped.tokens == free.tokens[: position + 2]
    assert stopped.text == "".join(words[:position])


def test_a_stream_is_the_same_completion_token_by_token(decoder: Decoder, expected: list[Completion]) -> None:
    sampler = native_sampler(decoder, NumberRenderer())
    for index in (0, 1, 2):
        assert tuple(sampler.stream(requests()[index])) == expected[index].tokens


def test_the_weights_that_were_taken_are_the_ones_that_draw() -> None:
    asked = requests(8)
    other = native_sampler(tiny_decoder(seed=1), NumberRenderer())
    sampler = native_sampler(tiny_decoder(seed=0), NumberRenderer())
    before = completions(sampler, asked)
    weights = dict(tiny_decoder(seed=1).network.named_parameters())
    sampler.take(weights.items(), version=1)
    after = completions(sampler, asked)
    assert [c.tokens for c in after] == [c.tokens for c in completions(other, asked)]
    assert [c.tokens for c in after] != [c.tokens for c in before]
    # They were copied: what becomes of the given ones afterwards is of no consequence.
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
    assert [c.tokens for c in completions(sampler, asked)] == [c.tokens for c in after]


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_sequence_that_is_continued_draws_what_it_would_have_drawn(
    decoder: Decoder, expected: list[Completion], cut: int
) -> None:
    """Noise belongs to a key and a place in the sequence, wherever the prompt ends."""
    sampler = native_sampler(decoder, NumberRenderer(), num_slots=5)
    begun = [(request, whole.tokens) for request, whole in zip(requests(), expected, strict=True)]
    begun = [(request, tokens) for request, tokens in begun if len(tokens) > cut]
    continued = [
        Request(
            request.prompt_tokens + tokens[:cut],
            replace(request.params, max_tokens=request.params.max_tokens - cut),
            request.noise_key,
        )
        for request, tokens in begun
    ]
    assert len(continued) > 10
    rests = completions(sampler, continued)
    assert [rest.tokens for rest in rests] == [tokens[cut:] for _, tokens in begun]
    for rest, (request, _), whole in zip(rests, begun, [w for w in expected if len(w.tokens) > cut], strict=True):
        assert whole.logprobs is not None
        assert rest.logprobs == pytest.approx(whole.logprobs[cut:], abs=1e-5), request


def test_in_bf16_the_logits_that_are_drawn_from_are_not_rounded() -> None:
    decoder = tiny_decoder(dtype=torch.bfloat16)
    prompt = (5, 9, 2, 7)
    asked = Request(prompt, SamplingParams(max_tokens=1), 3)
    ((_, drawn),) = native_sampler(decoder, NumberRenderer()).generate([asked])
    with torch.no_grad():
        states = decoder.hidden(torch.tensor(prompt), torch.arange(4), PackedLayout([4], "cpu"))[-1]
    logprobs = torch.log_softmax(states.double() @ decoder.head_weight.detach().double().T, -1)
    assert drawn.logprobs is not None
    assert drawn.logprobs[0] == pytest.approx(float(logprobs[drawn.tokens[0]]), abs=1e-5)


def test_a_completion_carries_the_version_that_it_started_with() -> None:
    sampler = native_sampler(tiny_decoder(), NumberRenderer(), num_slots=2)
    asked = [Request((2, 3), SamplingParams(max_tokens=limit), 5) for limit in (1, 9, 9, 9)]
    running = sampler.generate(asked)
    first, _ = next(running)
    sampler.take(tiny_decoder(seed=1).network.named_parameters(), version=1)
    versions = {first: 0} | {index: completion.policy_version for index, completion in running}
    # Requests 0 and 1 held the two slots.
    assert versions == {0: 0, 1: 0, 2: 1, 3: 1}


def test_a_request_that_does_not_fit_the_context_is_refused_before_anything_is_drawn(decoder: Decoder) -> None:
    sampler = native_sampler(decoder, NumberRenderer())
    fits = Request((2,) * 120, SamplingParams(max_tokens=8), 0)
    assert len(completions(sampler, [fits])) == 1
    with pytest.raises(UnsupportedModel, match=r"120 and a completion of 9 tokens do not fit .* 128"):
        next(sampler.generate([fits, Request((2,) * 120, SamplingParams(max_tokens=9), 0)]))
