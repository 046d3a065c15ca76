"""The engine on CUDA: the completions of the native engine, whatever the stride, the filters and the stop strings."""

import gc
from dataclasses import replace

import pytest
import torch

from reasonmill import peak_memory
from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import Decoder, new_decoder
from reasonmill.model.joined import join_projections
from reasonmill.peak_memory import used_bytes
from reasonmill.protocols import MemoryNeed
from reasonmill.randomness import generator, key
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Completion, Request, SamplingParams
from tiny_models import ARCHITECTURES, VOCABULARY, NumberRenderer, tiny_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def on_card(architecture: str = "qwen2", dtype: torch.dtype = torch.float32) -> Decoder:
    model_type, settings = ARCHITECTURES[architecture]
    return new_decoder(tiny_config(model_type, **settings), seed=0, device="cuda", dtype=dtype)


def requests(*, stop: tuple[str, ...] = ()) -> list[Request]:
    """Groups of three behind prompts of 1 to 40 tokens: greedy, by top-p, by top-k."""
    numbers = generator("cuda engine")
    prompts = [tuple(numbers.randrange(2, VOCABULARY) for _ in range((1, 14, 6, 40)[n % 4])) for n in range(12)]
    ways = [
        SamplingParams(temperature=0.0, stop=stop),
        SamplingParams(top_p=0.8, stop=stop),
        SamplingParams(temperature=0.7, top_k=7, stop=stop),
    ]
    return [
        Request(prompt, replace(way, max_tokens=numbers.randint(3, 60)), key("cuda engine", place, index))
        for place, prompt in enumerate(prompts)
        for index, way in enumerate(ways)
    ]


def completions(engine: object, asked: list[Request]) -> list[Completion]:
    done = dict(EngineSampler(engine).generate(asked))  # type: ignore[arg-type]
    return [done[index] for index in range(len(asked))]


def assert_alike(got: list[Completion], wanted: list[Completion]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_completions_are_those_of_the_native_engine(architecture: str, is_joined: bool) -> None:
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder, asked = on_card(architecture), requests(stop=("44 ",))
    wanted = completions(NativeEngine(decoder, NumberRenderer(), num_slots=9), asked)
    if is_joined:
        join_projections(decoder.network)
    engine = CudaEngine(decoder, NumberRenderer(), num_slots=9)
    first = completions(engine, asked)
    assert_alike(first, wanted)
    assert completions(engine, asked) == first


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="the card looks at no groups"
)
@pytest.mark.parametrize("architecture", ["qwen3_moe", "deepseek_v3"])
def test_graphs_of_experts_change_no_bit(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonmill.sample.cuda import steps
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder, asked = on_card(architecture, torch.bfloat16), requests()
    assert not steps.looks_at_experts(decoder)
    in_graphs = completions(CudaEngine(decoder, NumberRenderer(), num_slots=9), asked)
    monkeypatch.setattr(steps, "looks_at_experts", lambda decoder: True)
    assert completions(CudaEngine(decoder, NumberRenderer(), num_slots=9), asked) == in_graphs


@pytest.mark.parametrize("stride", [1, 3, 16])
def test_how_often_the_host_looks_changes_nothing(stride: int) -> None:
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder, asked = on_card(), requests(stop=("44 ", "7 2"))
    wanted = completions(CudaEngine(decoder, NumberRenderer(), num_slots=9), asked)
    assert_alike(completions(CudaEngine(decoder, NumberRenderer(), num_slots=9, stride=stride), asked), wanted)


def test_new_weights_are_drawn_from_also_where_they_lie_elsewhere() -> None:
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder, asked = on_card(), requests()
    engine = CudaEngine(decoder, NumberRenderer(), num_slots=9)
    before = completions(engine, asked)
    with torch.no_grad():
        for parameter in decoder.network.parameters():
            parameter.data = parameter * 1.25
    wanted = completions(NativeEngine(decoder, NumberRenderer(), num_slots=9), asked)
    assert [one.tokens for one in wanted] != [one.tokens for one in before]
    assert_alike(completions(engine, asked), wanted)


def test_logits_that_are_not_finite_are_refused() -> None:
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder = on_card()
    with torch.no_grad():
        decoder.head_weight[5] = torch.inf
    with pytest.raises(UnsupportedModel, match="not finite for 9 of 9"):
        completions(CudaEngine(decoder, NumberRenderer(), num_slots=9), requests())


def test_an_idle_engine_gives_the_same_bits_whatever_it_did_before_and_whoever_made_its_memory() -> None:
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder, asked = on_card(), requests(stop=("44 ",))
    wanted = completions(CudaEngine(decoder, NumberRenderer(), num_slots=9), asked)
    engine = CudaEngine(decoder, NumberRenderer(), num_slots=9)
    completions(engine, asked[5:20])
    assert completions(engine, asked) == wanted
    reserved = CudaEngine(decoder, NumberRenderer(), num_slots=9)
    tokens = reserved.reserve(MemoryNeed(sequences=36, longest=100))
    assert tokens == reserved.memory_tokens > 9 * 100
    assert completions(reserved, asked) == wanted
    again = CudaEngine(decoder, NumberRenderer(), num_slots=9)
    assert again.reserve(MemoryNeed(36, 100, tokens=64 * 9)) == 64 * 9
    assert {one.finish for one in completions(again, asked[:9])} <= {"stop", "length"}


def test_memory_that_was_given_back_is_the_cards_and_graphs_find_it_again_where_it_was() -> None:
    from reasonmill.sample.cuda.engine import CudaEngine

    decoder, asked = on_card(), requests(stop=("44 ",))
    engine = CudaEngine(decoder, NumberRenderer(), num_slots=9)
    tokens = engine.reserve(MemoryNeed(sequences=9, longest=100, tokens=1 << 20))
    wanted = completions(engine, asked)
    for _ in range(2):
        free, used = torch.cuda.mem_get_info()[0], used_bytes("cuda") or 0
        engine.rest()
        given_back = torch.cuda.mem_get_info()[0] - free
        assert abs(given_back - (used - (used_bytes("cuda") or 0))) < 4 << 20 < tokens * 100 < given_back
        # A half of it becomes something else meanwhile.
        others = torch.full((given_back // 8,), torch.nan, device="cuda")
        del others
        assert completions(engine, asked) == wanted
    fresh = CudaEngine(decoder, NumberRenderer(), num_slots=9)
    fresh.reserve(MemoryNeed(sequences=9, longest=100, tokens=tokens))
    assert completions(fresh, asked) == wanted


def test_an_engine_that_is_dropped_leaves_no_memory_behind() -> None:
    from reasonmill.sample.cuda.engine import CudaEngine

    before = peak_memory._beside.held
    engine = CudaEngine(on_card(), NumberRenderer(), num_slots=9)
    engine.reserve(MemoryNeed(sequences=9, longest=100, tokens=1 << 16))
    assert peak_memory._beside.held > before + (1 << 16) * 100
    del engine
    gc.collect()
    assert peak_memory._beside.held == before
