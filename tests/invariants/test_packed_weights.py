"""Copies of weights that a CPU's products read faster: the same numbers, of the weights as they are now."""

import pytest
import torch
from torch import nn

from reasonmill.model import joined
from reasonmill.model.decoder import Decoder
from reasonmill.model.lora import Adapter
from reasonmill.randomness import generator, key
from reasonmill.sample import packed
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.lean import LeanSteps
from reasonmill.types import Completion, Request, SamplingParams
from tiny_models import VOCABULARY, NumberRenderer, tiny_decoder

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")  # type: ignore[no-untyped-call]


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are copied however small they are."""
    monkeypatch.setattr(joined, "_LARGE", 0)


def drained(engine: NativeEngine, count: int = 24) -> list[Completion]:
    """Of more requests than there are slots, of ragged lengths, so that the number of rows falls and rises."""
    numbers = generator("packed")
    for index in range(count):
        prompt = tuple(numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(1, 9)))
        engine.submit(Request(prompt, SamplingParams(max_tokens=numbers.choice([2, 9, 30])), key("packed", index)))
    found: list[tuple[int, Completion]] = []
    while len(found) < count:
        engine.step()
        found += engine.finished()
    return [completion for _, completion in sorted(found, key=lambda pair: pair[0])]


def engine(decoder: Decoder) -> NativeEngine:
    return NativeEngine(decoder, NumberRenderer(), num_slots=16)


def same(found: list[Completion], expected: list[Completion]) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "qwen3_moe"])
def test_completions_are_those_of_the_weights_themselves(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = drained(engine(tiny_decoder(architecture)))
    monkeypatch.setattr(joined, "_LARGE", 0)
    used: list[int] = []
    product = packed._Packed.product
    monkeypatch.setattr(packed._Packed, "product", lambda self, x: used.append(self.rows) or product(self, x))
    same(drained(engine(tiny_decoder(architecture))), expected)
    assert {16} <= set(used) <= {8, 16}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_steps_of_few_operations_are_those_of_the_network(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With biases, norms of heads, and neither."""

    def made() -> Decoder:
        decoder = tiny_decoder(architecture)
        for parameter in decoder.network.parameters():
            if parameter.ndim == 1:  # biases are all 0 else, and norms 1
                parameter.data = torch.linspace(0.5, 1.5, len(parameter))
        return decoder

    expected = drained(engine(made()))
    monkeypatch.setattr(joined, "_LARGE", 0)
    lean = made()
    assert LeanSteps.of(lean) is None  # as long as the projections are not side by side
    joined.join_projections(lean.network)
    rows: list[int] = []
    hidden = LeanSteps.hidden
    monkeypatch.setattr(LeanSteps, "hidden", lambda self, *read: rows.append(read[-1]) or hidden(self, *read))
    same(drained(engine(lean)), expected)
    assert {16} <= set(rows) <= {8, 16}


def test_steps_of_few_operations_read_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are no plain ones: the network reads them itself."""
    monkeypatch.setattr(joined, "_LARGE", 0)
    decoder = tiny_decoder("llama")
    joined.join_projections(decoder.network)
    Adapter(decoder.network, 4, 1.0, [], 0)
    assert LeanSteps.of(decoder) is None


@pytest.mark.usefixtures("of_any_size")
def test_weights_that_a_learner_has_changed_are_read() -> None:
    """It changes them in their place, between two calls."""
    ours, others = tiny_decoder(), tiny_decoder(seed=1)
    sampler = engine(ours)
    drained(sampler)
    ours.take(others.network.named_parameters())
    same(drained(sampler), drained(engine(others)))


@pytest.mark.usefixtures("of_any_size")
def test_weights_that_are_published_while_something_runs_are_read() -> None:
    def run(published: int) -> list[int]:
        sampler = engine(tiny_decoder())
        tickets = [sampler.submit(Request((2, 3), SamplingParams(max_tokens=30), place)) for place in range(16)]
        for step in range(6):
            if step == published:
                sampler.take(tiny_decoder(seed=1).network.named_parameters(), 1)
            sampler.step()
        return [token for ticket in tickets for token in sampler.drawn(ticket)]

    of_old, of_new = run(6), run(3)
    assert of_old != of_new
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(joined, "_LARGE", 1 << 25)
        assert (of_old, of_new) == (run(6), run(3))


@pytest.mark.usefixtures("of_any_size")
def test_nothing_is_kept_where_nothing_runs() -> None:
    """The learner has the memory, and modules have their own products."""
    decoder = tiny_decoder()
    sampler = engine(decoder)
    drained(sampler)
    assert not sampler._packed._packed
    assert not any("forward" in vars(module) for module in decoder.network.modules() if isinstance(module, nn.Linear))


def test_small_networks_are_left_as_they_are() -> None:
    small = tiny_decoder()
    with packed.PackedWeights(small, small.network.modules()).used(16) as packed_rows:
        assert not packed_rows
