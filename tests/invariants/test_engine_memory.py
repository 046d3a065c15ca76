"""The native engine's memory: made once, kept, made anew for longer requests only, and nothing of it shows."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reasonmill.model.decoder import Decoder, new_decoder
from reasonmill.randomness import generator, key
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Completion, Request, SamplingParams
from tiny_models import ARCHITECTURES, VOCABULARY, NumberRenderer, tiny_config, tiny_decoder


def memory(engine: NativeEngine) -> list[Tensor]:
    """Keys and values of all layers."""
    cache = engine._slots.cache
    return [*cache._keys.values(), *cache._values.values()]


def places(engine: NativeEngine) -> list[int]:
    rows = vars(engine._slots.rows).values()
    return [tensor.data_ptr() for tensor in (*memory(engine), *rows)]


def requests(count: int, seed: int = 0, *, longest: int = 40) -> list[Request]:
    numbers = generator("memory", seed)
    return [
        Request(
            tuple(numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(1, 12))),
            SamplingParams(max_tokens=numbers.randint(1, longest)),
            key("memory", seed, index),
        )
        for index in range(count)
    ]


def drawn(engine: NativeEngine, asked: Sequence[Request]) -> list[Completion]:
    finished = dict(EngineSampler(engine).generate(asked))
    return [finished[index] for index in range(len(asked))]


def an_engine(decoder: Decoder, num_slots: int = 5) -> NativeEngine:
    return NativeEngine(decoder, NumberRenderer(), num_slots=num_slots)


def test_memory_is_made_by_the_first_request_and_kept() -> None:
    engine = an_engine(tiny_decoder())
    assert memory(engine) == []
    drawn(engine, requests(1, longest=3))
    kept = places(engine)
    assert {tuple(tensor.shape[::2]) for tensor in memory(engine)} == {(5, 128)}
    for seed in range(3):
        drawn(engine, requests(12, seed))
        list(EngineSampler(engine).stream(requests(1, seed)[0]))
        assert places(engine) == kept


@pytest.mark.parametrize(("needed", "length"), [(100, 128), (128, 128), (129, 256), (300, 300)])
def test_a_slot_holds_a_multiple_of_128_tokens_up_to_the_context(needed: int, length: int) -> None:
    engine = an_engine(a_decoder(context=300))
    asked = [
        Request((2, 3), SamplingParams(max_tokens=4), 1),
        Request((2,), SamplingParams(max_tokens=needed - 1), 2),
        Request((2, 4), SamplingParams(max_tokens=9), 3),
    ]
    drawn(engine, asked)
    assert {tensor.shape[2] for tensor in memory(engine)} == {length}


def test_a_longer_request_waits_until_nothing_runs_and_gets_new_memory() -> None:
    decoder = a_decoder(context=512)
    engine = an_engine(decoder)
    asked = [
        Request((2, 3), SamplingParams(max_tokens=20), 4),
        Request((5,) * 140, SamplingParams(max_tokens=9), 5),
        Request((6,), SamplingParams(max_tokens=2), 6),  # that nobody passes who waits for memory
    ]
    alone = [drawn(an_engine(decoder), [request])[0] for request in asked]
    assert len(alone[0].tokens) > 5
    first = engine.submit(asked[0])
    engine.step()
    others = [engine.submit(request) for request in asked[1:]]
    finished: dict[int, Completion] = {}
    while first not in finished:
        assert [engine.drawn(ticket) for ticket in others] == [[], []]
        assert {tensor.shape[2] for tensor in memory(engine)} == {128}
        engine.step()
        finished |= engine.finished()
    while len(finished) < 3:
        engine.step()
        finished |= engine.finished()
    assert {tensor.shape[2] for tensor in memory(engine)} == {256}
    for ticket, completion in zip([first, *others], alone, strict=True):
        assert finished[ticket].tokens == completion.tokens
        assert finished[ticket].logprobs == pytest.approx(completion.logprobs, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_earlier_requests_left_does_not_matter(architecture: str) -> None:
    """Not even numbers that are not finite, as of weights that diverged: 0 times those is not 0."""
    decoder = tiny_decoder(architecture)
    asked = requests(14, seed=1, longest=20)
    expected = drawn(an_engine(decoder), asked)
    engine = an_engine(decoder)
    # Longer ones before, the last of which are cut off one by one, so that others move into their places.
    before = [engine.submit(request) for request in requests(11, seed=2, longest=50)]
    while len(engine._waiting) > 2:
        engine.step()
    tickets = [engine.submit(request) for request in asked]
    finished: dict[int, Completion] = {}
    while not finished.keys() >= set(tickets):
        if before:
            engine.cancel(before.pop(0))
        spoil(engine)
        engine.step()
        finished |= engine.finished()
    for ticket, completion in zip(tickets, expected, strict=True):
        assert finished[ticket].tokens == completion.tokens
        assert finished[ticket].logprobs == pytest.approx(completion.logprobs, abs=1e-5)


def test_a_call_that_is_given_up_leaves_no_request_behind() -> None:
    engine = an_engine(tiny_decoder())
    running = EngineSampler(engine).generate(requests(20))
    next(running)
    running.close()
    assert not engine._waiting
    engine.step()
    assert (engine._slots.running, engine.finished()) == ([], [])


def a_decoder(context: int) -> Decoder:
    config = tiny_config("qwen2", max_position_embeddings=context)
    return new_decoder(config, seed=0, device="cpu", dtype=torch.float32)


@torch.inference_mode()
def spoil(engine: NativeEngine) -> None:
    """Leaves in each free slot what a sequence there could have left."""
    for slot in range(engine._slots.cache.num_slots):
        if slot >= len(engine._slots.running):
            left = engine._slots.cache.used[slot]
        elif engine._slots.running[slot].is_cancelled:
            left = engine._slots.running[slot].length
        else:
            continue
        for tensor in memory(engine):
            tensor[slot, :, :left] = torch.nan
