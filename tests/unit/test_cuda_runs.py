"""Runs of the CUDA engine's memory, and which request lies where: the host's side, which needs no GPU."""

import pytest

from reasonmill.errors import OutOfMemory
from reasonmill.protocols import MemoryNeed
from reasonmill.randomness import generator
from reasonmill.sample.cuda.memory import PREFILL_TOKENS, Memory, _needed
from reasonmill.sample.cuda.runs import UNIT, Runs, run_length, sequence_tokens
from reasonmill.sample.cuda.table import Running, Table
from reasonmill.types import Request, SamplingParams
from tiny_models import tiny_decoder


def test_runs_never_overlap_and_all_comes_back() -> None:
    numbers, runs = generator("runs"), Runs(1000)
    taken: list[tuple[int, int]] = []
    refused = 0
    for _ in range(2000):
        if taken and numbers.random() < 0.5:
            runs.give(*taken.pop(numbers.randrange(len(taken))))
            continue
        length = numbers.randint(1, 200)
        start = runs.take(length)
        if start is None:
            refused += 1
            continue
        assert start >= 0
        assert start + length <= 1000
        assert all(start + length <= other or other + size <= start for other, size in taken)
        taken.append((start, length))
    assert refused
    for run in taken:
        runs.give(*run)
    assert runs.take(1000) == 0
    assert runs.take(1) is None


def test_runs_begin_at_odd_multiples_and_hold_what_they_are_for() -> None:
    assert run_length(0) == 0
    for tokens in range(1, 300):
        assert tokens <= run_length(tokens) < tokens + 2 * UNIT
        assert run_length(tokens) // UNIT % 2 == 1
        assert all(run_length(n) + run_length(tokens - n) <= sequence_tokens(tokens) for n in range(tokens))


def a_request(prompt: int, most: int = 10) -> Request:
    return Request((prompt,) * 40, SamplingParams(max_tokens=most), 0)


def placed(table: Table, ticket: int, prompt: int, version: int = 0) -> Running:
    running = table.place(ticket, a_request(prompt), version)
    assert running is not None
    return running


def test_requests_share_a_prompt_that_the_same_weights_read_and_free_it_with_the_last_of_them() -> None:
    runs = Runs(10_000)
    table = Table(4, runs)
    first, second, other, later = (placed(table, n, *where) for n, where in enumerate([(5,), (5,), (6,), (5, 1)]))
    assert first.prompt is second.prompt
    assert len({first.prompt.start, other.prompt.start, later.prompt.start}) == 3
    assert len({one.start for one in (first, second, other, later)}) == 4
    assert table.place(9, a_request(5), 0) is None  # no row is free
    for one in (first, other, later):
        table.release(one)
    assert placed(table, 9, 5).prompt is second.prompt
    for one in list(table.running()):
        table.release(one)
    assert runs.take(10_000) == 0


def test_as_many_run_together_as_there_are_rows_or_as_there_is_memory() -> None:
    request = a_request(5, most=1000)
    assert Table(4, Runs(100_000)).most_like(request) == 4
    table = Table(512, Runs(run_length(39) + 3 * run_length(1000)))
    assert table.most_like(request) == 3
    assert [table.place(ticket, request, 0) is not None for ticket in range(4)] == [True, True, True, False]
    assert table.most_like(a_request(5, most=100_000)) == 1


def test_what_finds_no_memory_takes_none() -> None:
    runs = Runs(run_length(10) + run_length(39) - 1)
    table = Table(4, runs)
    assert table.place(0, a_request(5), 0) is None
    assert table.num_free == 4
    assert runs.take(runs.size) == 0


def test_gaps_are_closed_by_the_last_rows() -> None:
    table = Table(6, Runs(10_000))
    every = [placed(table, ticket, ticket) for ticket in range(6)]
    for row in (0, 2, 4):
        table.release(every[row])
    sources, targets = table.close_gaps()
    assert sorted(targets) == [0, 2][: len(targets)]
    assert {one.ticket: one.row for one in table.running()} == {
        1: 1, **{every[source].ticket: target for source, target in zip(sources, targets, strict=True)},
    }  # fmt: skip
    assert table.end == 3


def size_of(*, free: int, tokens: int | None = None, beside: int = 0) -> int:
    """For 4 sequences of 100 tokens, 10 bytes each, on a card of 160,000 bytes, 10,000 of which stay free."""
    return _needed(free - beside, 160_000, 500, 10, MemoryNeed(4, 100, beside=beside, tokens=tokens))


def test_memory_is_for_what_is_needed_or_what_is_left_and_stays_so() -> None:
    assert size_of(free=160_000) == (4 * (100 + 4 * UNIT) + (500 + 4 * UNIT)) // UNIT * UNIT
    assert size_of(free=36_000, beside=20_000) == 600 // UNIT * UNIT
    assert size_of(free=36_000, beside=20_000, tokens=640) == 640
    assert size_of(free=160_000, tokens=640) == 640  # though there is more now
    with pytest.raises(OutOfMemory, match="have other bits"):
        size_of(free=6_399, tokens=640)
    with pytest.raises(OutOfMemory, match="sequence of 100 tokens") as caught:
        size_of(free=32_000, beside=20_000)
    assert "lora" in caught.value.fix


def test_keys_and_values_of_all_layers_lie_beside_each_other() -> None:
    decoder = tiny_decoder("qwen2")
    memory = Memory(decoder, 4, MemoryNeed(4, 100, tokens=3 * UNIT))
    parts = [*memory.keys.values(), *memory.values.values()]
    assert len(parts) == 2 * decoder.config.num_hidden_layers
    for number, part in enumerate(parts):
        assert part.shape[1] == memory.runs.size == 3 * UNIT
        assert part.dtype == decoder.dtype
        assert part.is_contiguous()
        part.fill_(number)
    assert all((part == number).all() for number, part in enumerate(parts))


def test_room_stays_free_for_prompts_that_are_too_long_to_be_read_within_the_margin() -> None:
    decoder = tiny_decoder("qwen2")
    short, long = (
        Memory(decoder, 512, MemoryNeed(4096, 5000, prompt)) for prompt in (PREFILL_TOKENS, PREFILL_TOKENS + 5000)
    )
    config = decoder.config
    more = 5000 * 4 * (12 * config.hidden_size + 4 * config.intermediate_size)
    assert short.runs.size - long.runs.size == pytest.approx(more / short.bytes_per_token, abs=2 * UNIT)
