"""What every engine promises, whatever runs in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import pytest
import torch

from reasonmill.protocols import Engine, MemoryNeed
from reasonmill.randomness import generator, key
from reasonmill.sample.engine import NativeEngine
from reasonmill.types import Completion, Request, SamplingParams
from scripted import ScriptedEngine
from tiny_models import VOCABULARY, NumberRenderer, tiny_decoder

SLOTS = 4


def native() -> Engine:
    return NativeEngine(tiny_decoder(), NumberRenderer(), num_slots=SLOTS)


def cuda() -> Engine:
    """One token a step, as the others draw."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder = tiny_decoder()
    decoder.network.to("cuda")
    return CudaEngine(decoder, NumberRenderer(), num_slots=SLOTS, stride=1)


def scripted() -> Engine:
    def script(request: Request, version: int) -> Sequence[int]:
        numbers = generator(request.noise_key, *request.prompt_tokens)
        return [numbers.randrange(12) for _ in range(40)]

    return ScriptedEngine(NumberRenderer(), script, num_slots=SLOTS)


@dataclass
class Case:
    """Makes engines that draw the same."""

    make: Callable[[], Engine]
    repeatable: bool = True
    tolerance: float = 1e-5

    def alone(self, request: Request) -> Completion:
        """The completion of a request that an engine has for itself."""
        (completion,) = drained(engine := self.make(), [engine.submit(request)]).values()
        return completion


@pytest.fixture(params=[native, cuda, scripted])
def case(request: pytest.FixtureRequest) -> Case:
    request.param()  # is skipped where it can't be made
    # On CUDA, products of other shapes are added up in another order.
    return Case(request.param, tolerance=1e-4 if request.param is cuda else 1e-5)


def requests(count: int = 20, *, longest: int = 30) -> list[Request]:
    """Ragged prompts, some of them shared, and ragged limits."""
    numbers = generator("engine")
    prompts = [tuple(numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(1, 9))) for _ in range(count)]
    limits = [numbers.choice([1, 5, longest]) for _ in range(count)]
    return [
        Request(prompts[index // 2], SamplingParams(max_tokens=limits[index]), key("engine", index))
        for index in range(count)
    ]


def long_ones(case: Case, count: int) -> list[Request]:
    """Requests that are not finished in their first step."""
    asked = (Request((2, 3), SamplingParams(max_tokens=30), place) for place in range(10 * count))
    return list(islice((request for request in asked if len(case.alone(request).tokens) > 3), count))


def drained(engine: Engine, tickets: Sequence[int]) -> dict[int, Completion]:
    """Steps until all of them are finished; what finished, by ticket."""
    finished: dict[int, Completion] = {}
    while set(tickets) - finished.keys():
        engine.step()
        arrived = engine.finished()
        assert not finished.keys() & {ticket for ticket, _ in arrived}
        finished |= arrived
    return finished


def assert_same(got: Completion, wanted: Completion, tolerance: float) -> None:
    assert (got.tokens, got.text, got.finish) == (wanted.tokens, wanted.text, wanted.finish)
    assert got.logprobs == pytest.approx(wanted.logprobs, abs=tolerance)


def test_requests_beside_others_are_completed_as_alone(case: Case) -> None:
    engine, asked = case.make(), requests()
    tickets = [engine.submit(request) for request in asked]
    assert len(set(tickets)) == len(tickets)
    finished = drained(engine, tickets)
    for ticket, request in zip(tickets, asked, strict=True):
        assert_same(finished[ticket], case.alone(request), case.tolerance)


def test_memory_that_is_made_beforehand_changes_no_completion(case: Case) -> None:
    engine, asked = case.make(), requests(6)
    assert engine.reserve(MemoryNeed(sequences=SLOTS, longest=60)) >= 0
    tickets = [engine.submit(request) for request in asked]
    finished = drained(engine, tickets)
    for ticket, request in zip(tickets, asked, strict=True):
        assert_same(finished[ticket], case.alone(request), case.tolerance)


def test_requests_that_come_while_others_run_are_completed_as_alone(case: Case) -> None:
    engine, asked = case.make(), requests()
    submitted: dict[int, Request] = {}
    finished: dict[int, Completion] = {}
    for step in range(400):
        if step % 3 == 0 and len(submitted) < len(asked):
            request = asked[len(submitted)]
            submitted[engine.submit(request)] = request
        engine.step()
        finished |= engine.finished()
    assert finished.keys() == submitted.keys()
    assert len(finished) == len(asked)
    for ticket, request in submitted.items():
        assert_same(finished[ticket], case.alone(request), case.tolerance)


def test_what_is_drawn_is_seen_token_by_token(case: Case) -> None:
    engine = case.make()
    request = next(request for request in requests() if len(case.alone(request).tokens) > 9)
    ticket = engine.submit(request)
    assert engine.drawn(ticket) == []
    seen: list[int] = []
    while not (finished := engine.finished()):
        assert engine.drawn(ticket) == seen
        assert engine.drawn(ticket, len(seen)) == []
        engine.step()
        new = engine.drawn(ticket, len(seen))
        assert len(new) <= 1
        seen += new
    ((told, completion),) = finished
    assert told == ticket
    assert completion.tokens[: len(seen)] == tuple(seen)
    assert len(completion.tokens) == len(seen) + 1
    assert engine.drawn(ticket) == []


def test_an_engine_without_requests_has_nothing_to_do(case: Case) -> None:
    engine = case.make()
    for _ in range(3):
        engine.step()
        assert engine.finished() == []


def test_nothing_more_is_heard_of_a_request_that_is_cancelled(case: Case) -> None:
    """One that waits, one that runs, one that has finished and was not asked for."""
    engine, asked = case.make(), requests(20, longest=40)
    tickets = [engine.submit(request) for request in asked]
    waiting = tickets[-1]
    engine.cancel(waiting)
    cancelled, finished = {waiting}, {}
    for _ in range(12):
        engine.step()
        running = [ticket for ticket in tickets if engine.drawn(ticket) and ticket not in cancelled]
        if running:
            engine.cancel(running[0])
            cancelled.add(running[0])
        finished |= engine.finished()
    finished |= drained(engine, [ticket for ticket in tickets if ticket not in cancelled | finished.keys()])
    assert len(cancelled) > 5
    assert finished.keys() == set(tickets) - cancelled
    for ticket in finished:
        assert_same(finished[ticket], case.alone(asked[tickets.index(ticket)]), case.tolerance)


def test_a_completion_that_nobody_asked_for_can_be_cancelled(case: Case) -> None:
    engine = case.make()
    gone, kept = (engine.submit(Request((3, 4), SamplingParams(max_tokens=1), place)) for place in range(2))
    engine.step()
    engine.cancel(gone)
    assert [ticket for ticket, _ in engine.finished()] == [kept]
    engine.cancel(kept)  # that nobody knows any more: nothing happens
    engine.step()
    assert engine.finished() == []


def test_cancelled_requests_free_their_slots(case: Case) -> None:
    engine = case.make()
    running = [engine.submit(request) for request in long_ones(case, SLOTS)]
    behind = engine.submit(Request((9,), SamplingParams(max_tokens=1), 9))
    engine.step()
    assert all(len(engine.drawn(ticket)) == 1 for ticket in running)
    assert engine.drawn(behind) == []
    for ticket in running:
        engine.cancel(ticket)
    engine.step()
    assert [ticket for ticket, _ in engine.finished()] == [behind]


def test_completions_carry_the_version_that_they_started_with(case: Case) -> None:
    engine = case.make()
    tickets = [engine.submit(request) for request in long_ones(case, SLOTS + 1)]
    engine.step()
    engine.take([], version=3)
    assert engine.version == 3
    finished = drained(engine, tickets)
    assert [finished[ticket].policy_version for ticket in tickets] == [0] * SLOTS + [3]


def test_an_engine_says_whether_it_is_repeatable(case: Case) -> None:
    assert case.make().repeatable == case.repeatable
