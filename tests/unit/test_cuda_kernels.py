"""The engine's kernels against plain references; on a CPU Triton's interpreter runs them."""

from contextlib import suppress

import pytest
import torch
from torch import Tensor

import on_triton  # before triton
from reasonmill.model.attention import AttentionRule
from reasonmill.model.joined import join_projections
from reasonmill.model.lora import Adapter
from reasonmill.sample.cuda.attention import Rotation, attend_new
from reasonmill.sample.cuda.border import Borders
from reasonmill.sample.cuda.chunks import Chunks
from reasonmill.sample.cuda.draw import Draw
from reasonmill.sample.cuda.engine import CudaEngine
from reasonmill.sample.cuda.layers import NormKind, add_and_norm, gated
from reasonmill.sample.cuda.modules import norms_by_kernel, replaced
from reasonmill.sample.cuda.rows import IDLE, NOT_FINITE, RUNNING, Rows
from reasonmill.sample.drawing import Filters, draw, uniform
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Request, SamplingParams
from tiny_models import NumberRenderer, tiny_decoder

# In the interpreter they take half a minute.
pytestmark = pytest.mark.check
DEVICE = torch.device(on_triton.DEVICE)


def generated(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_at(prompts: list[int], owns: list[int]) -> Rows:
    """Rows behind prompts that all begin at token 0, with `owns` tokens of their own; the third does not run."""
    rows = Rows(len(prompts), DEVICE)
    rows.running.fill_(RUNNING)
    rows.running[2] = IDLE
    rows.prompt_length.copy_(torch.tensor(prompts))
    rows.position.copy_(torch.tensor(prompts) + torch.tensor(owns))
    rows.start.copy_(torch.arange(len(prompts)) * 80 + 90)
    return rows


def attended(query: Tensor, keys: Tensor, values: Tensor, rule: AttentionRule) -> Tensor:
    """One query [H, D] to keys [K, L, D] and values [K, L, E], the last of which are its own, in fp64."""
    repeats = query.shape[0] // keys.shape[0]
    keys, values = keys.double().repeat_interleave(repeats, 0), values.double().repeat_interleave(repeats, 0)
    scores = torch.einsum("hd,hld->hl", query.double(), keys) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if rule.window is not None:
        scores[:, : -rule.window] = -torch.inf
    return torch.einsum("hl,hle->he", scores.softmax(-1), values)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((4, 2, 16, 16), AttentionRule(0.25, None, None)),
        ((3, 3, 12, 8), AttentionRule(0.3, None, None)),
        ((2, 1, 16, 16), AttentionRule(0.9, 37, 4.0)),
    ],
)
def test_a_new_token_attends_to_its_sequence_and_to_nothing_else(
    shape: tuple[int, int, int, int], rule: AttentionRule
) -> None:
    heads, kv_heads, dim, wide = shape
    prompts, owns = [0, 33, 5, 70, 4], [0, 1, 9, 40, 0]
    rows, random = rows_at(prompts, owns), generated(1)
    keys, values = torch.full((kv_heads, 600, dim), torch.nan), torch.full((kv_heads, 600, wide), torch.nan)
    for start, length in [(0, max(prompts)), *zip(rows.start.tolist(), owns, strict=True)]:
        keys[:, start : start + length] = torch.randn((kv_heads, length, dim), generator=random)
        values[:, start : start + length] = torch.randn((kv_heads, length, wide), generator=random)
    query, key = torch.randn((5, heads, dim), generator=random), torch.randn((5, kv_heads, dim), generator=random)
    value = torch.randn((5, kv_heads, wide), generator=random)
    moved = [tensor.to(DEVICE) for tensor in (query, key, value, keys, values)]
    out = attend_new(*moved, rows, rule).cpu()
    for row, (prompt, own) in enumerate(zip(prompts, owns, strict=True)):
        if row == 2:
            assert not out[row].any()
            continue
        start = int(rows.start[row])
        seen = [torch.cat([m[:, :prompt], m[:, start : start + own]], 1) for m in (keys, values)]
        wanted = attended(
            query[row], torch.cat([seen[0], key[row, :, None]], 1), torch.cat([seen[1], value[row, :, None]], 1), rule
        )
        torch.testing.assert_close(out[row].double(), wanted, rtol=0, atol=1e-5)
        assert torch.equal(moved[3][:, start + own].cpu(), key[row])
        assert torch.equal(moved[4][:, start + own].cpu(), value[row])


def test_places_beyond_2_to_the_31_numbers_of_a_memory_are_found() -> None:
    tokens, dim, owns = 2**27 + 4096, 16, 40
    rows, random = Rows(1, DEVICE), generated(4)
    rows.running.fill_(RUNNING)
    rows.prompt_start.fill_(tokens - 3000)
    rows.prompt_length.fill_(70)
    rows.start.fill_(tokens - 900)
    rows.position.fill_(70 + owns)
    # Keys and values in one, 8 GB, next to nothing of which is touched.
    memory = torch.empty((2, tokens, dim), dtype=torch.float16, device=DEVICE)
    runs = (slice(tokens - 3000, tokens - 2930), slice(tokens - 900, tokens - 900 + owns))
    for run in runs:
        memory[:, run] = torch.randn((2, run.stop - run.start, dim), generator=random).half().to(DEVICE)
    query, new = torch.randn((1, 2, dim), generator=random).half(), torch.randn((1, 2, dim), generator=random).half()
    rule = AttentionRule(0.3, None, None)
    out = attend_new(query.to(DEVICE), new.to(DEVICE), new.to(DEVICE), memory, memory, rows, rule)
    assert torch.equal(memory[:, tokens - 900 + owns].cpu(), new[0])
    seen = torch.cat([*(memory[:, run].cpu() for run in runs), new[0, :, None]], 1)
    torch.testing.assert_close(out[0].cpu().double(), attended(query[0], seen, seen, rule), rtol=0, atol=2e-3)


def test_queries_and_keys_are_normed_and_turned_on_the_way() -> None:
    random, rows = generated(2), rows_at([0, 0, 0], [0, 1, 0])
    query, key, value = (torch.randn((3, heads, 16), generator=random) for heads in (4, 2, 2))
    weights = torch.rand((2, 16), generator=random) + 0.5
    angles = torch.rand((9, 8), generator=random)
    keys = torch.randn((2, 400, 16), generator=random)
    rotation = Rotation(angles.cos().to(DEVICE), angles.sin().to(DEVICE), *weights.to(DEVICE), 1e-6)

    def turned(states: Tensor, weight: Tensor, at: int) -> Tensor:
        normed = torch.nn.functional.rms_norm(states, (16,), weight, 1e-6)
        first, second = normed[..., :8], normed[..., 8:]
        cosine, sine = angles[at].cos(), angles[at].sin()
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

    memory = keys.clone().to(DEVICE), keys.clone().to(DEVICE)
    rule = AttentionRule(0.25, None, None)
    out = attend_new(query.to(DEVICE), key.to(DEVICE), value.to(DEVICE), *memory, rows, rule, rotation).cpu()
    own = turned(key[1], weights[1], 1)
    seen = keys[:, 170:171]
    wanted = attended(
        turned(query[1], weights[0], 1),
        torch.cat([seen, own[:, None]], 1),
        torch.cat([seen, value[1, :, None]], 1),
        rule,
    )
    torch.testing.assert_close(out[1].double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(memory[0][:, 171].cpu(), own)


def test_norm_with_what_a_layer_adds_and_gated_states() -> None:
    random = generated(3)
    states, change, weight, both = (
        torch.randn(shape, generator=random) for shape in ((3, 20), (3, 20), (20,), (3, 14))
    )
    kept = states.to(DEVICE, copy=True)
    normed = add_and_norm(kept, change.to(DEVICE), weight.to(DEVICE), 1e-5).cpu()
    torch.testing.assert_close(kept.cpu(), states + change)
    torch.testing.assert_close(normed, torch.nn.functional.rms_norm(states + change, (20,), weight, 1e-5))
    torch.testing.assert_close(add_and_norm(kept, None, weight.to(DEVICE), 1e-5).cpu(), normed)
    torch.testing.assert_close(gated(both.to(DEVICE)).cpu(), torch.nn.functional.silu(both[:, :7]) * both[:, 7:])


@pytest.mark.parametrize("kind", [NormKind(), NormKind(rounds=False), NormKind(adds_one=True, rounds=False)])
def test_a_norm_multiplies_by_its_weight_as_its_kind_does_it(kind: NormKind) -> None:
    random = generated(6)
    # In fp16, because the interpreter rounds no fp32 to bf16, but cuts it off.
    states, weight = torch.randn((20, 64), generator=random).half(), torch.randn(64, generator=random).half()
    normed = torch.nn.functional.rms_norm(states.float(), (64,), None, 1e-6)
    factor = 1.0 + weight.float() if kind.adds_one else weight.float()
    wanted = ((normed.half().float() if kind.rounds else normed) * factor).half()
    got = add_and_norm(states.to(DEVICE), None, weight.to(DEVICE), 1e-6, kind).cpu()
    assert (got != wanted).float().mean() < 0.01  # rounded elsewhere, a third differs


# Each layer has its norms, some also of queries and keys; one is behind the last.
@pytest.mark.parametrize(
    ("architecture", "count"), [("llama", 5), ("qwen3", 9), ("gemma2", 9), ("gemma3", 13), ("deepseek_v3", 9)]
)
def test_norms_of_transformers_are_found_and_computed_by_a_kernel_only_where_they_are_to_be(
    architecture: str, count: int
) -> None:
    network = tiny_decoder(architecture).network.to(DEVICE)
    forwards = norms_by_kernel(network)
    assert len(forwards) == count
    for module, forward in forwards.items():
        width = module.weight.shape[0]  # type: ignore[union-attr,index]
        torch.nn.init.normal_(module.weight, generator=torch.Generator(DEVICE).manual_seed(1))  # type: ignore[arg-type]
        # As queries lie, as keys of few heads among others lie, and as a layer's states do.
        whole = torch.randn((1, 6, 3, 2 * width), generator=generated(7)).to(DEVICE)
        for states in (whole[..., :width].contiguous().transpose(1, 2), whole[..., :width], whole[0, 0, :, :width]):
            with torch.no_grad():
                wanted = module(states)
            torch.testing.assert_close(forward(states), wanted, rtol=1e-5, atol=1e-6)
    module, forward = next(iter(forwards.items()))
    with suppress(RuntimeError), replaced(forwards):
        assert module.forward is forward
        raise RuntimeError
    assert not any("forward" in vars(module) for module in forwards)


class Drawn:
    """A memory of drawn tokens alone."""

    def __init__(self, size: int) -> None:
        self.tokens = torch.zeros(size, dtype=torch.int32, device=DEVICE)
        self.logprobs = torch.zeros(size, dtype=torch.float32, device=DEVICE)


def drawing_rows(count: int) -> Rows:
    """Rows of all temperatures, about to draw token number 2 at position 9; the third does not run."""
    rows = rows_at([7] * count, [2] * count)
    rows.start.copy_(torch.arange(count) * 4)
    rows.limit.fill_(100)
    rows.noise_key.copy_(torch.randint(-(1 << 62), 1 << 62, (count,), generator=generated(4)))
    rows.temperature.copy_(torch.tensor([0.0, 1.0, 0.6, 1.3]).repeat(count // 4))
    return rows


@pytest.mark.parametrize(("top_k", "top_p"), [(False, False), (True, False), (False, True), (True, True)])
def test_tokens_and_log_probs_are_those_of_the_plain_draw(top_k: bool, top_p: bool) -> None:
    rows = drawing_rows(8)
    if top_k:
        rows.top_k.copy_(torch.tensor([0, 1, 3, 20, 59, 60, 70, 5]))
    if top_p:
        rows.top_p.copy_(torch.tensor([0.9, 0.5, 1.0, 0.95, 1e-6, 1.0, 0.3, 0.99]))
    logits = torch.randn((8, 61), generator=generated(5)).to(DEVICE) * 3
    filters = Filters(rows.temperature, rows.top_k, rows.top_p, top_k or top_p)
    tokens, logprobs = draw(20 * torch.tanh(logits / 20), filters, uniform(rows.noise_key, rows.position + 1))
    memory = Drawn(40)
    Draw(8, 61, [], 20.0, DEVICE)(logits, rows, memory, top_k=top_k, top_p=top_p)  # type: ignore[arg-type]
    for row in range(8):
        if row == 2:
            assert (rows.position[row], memory.tokens[4 * row + 2]) == (9, 0)
            continue
        assert memory.tokens[4 * row + 2] == tokens[row]
        assert float(memory.logprobs[4 * row + 2]) == pytest.approx(float(logprobs[row]), abs=1e-5)
        assert (rows.token[row], rows.position[row], rows.running[row]) == (tokens[row], 10, RUNNING)


def key_of_the_largest_number(position: int) -> int:
    """The key whose uniform number for the token behind a position is the largest below 1: SplitMix64 backwards."""
    bits = (1 << 64) - 1
    state = bits
    for shift, factor in ((31, 1), (27, 0x94D049BB133111EB), (30, 0xBF58476D1CE4E5B9)):
        state = state * pow(factor, -1, 1 << 64) & bits
        mixed = state
        for _ in range(64 // shift):
            mixed = state ^ (mixed >> shift)
        state = mixed
    return ((state - (position + 2) * 0x9E3779B97F4A7C15 + (1 << 63)) & bits) - (1 << 63)


def test_the_largest_number_draws_a_token_of_the_vocabulary() -> None:
    count, vocabulary = (512, 151_936) if on_triton.DEVICE == "cuda" else (8, 5_000)
    rows = drawing_rows(count)
    rows.noise_key.fill_(key_of_the_largest_number(9))
    assert float(uniform(rows.noise_key, rows.position + 1)[0]) == 1 - 2.0**-53
    # The last chunk has no weight: the last token that has any stands in an earlier one.
    logits = torch.randn((count, vocabulary), generator=generated(6))
    logits[1::2, 4096:] = -200.0
    memory = Drawn(4 * count)
    Draw(count, vocabulary, [], None, DEVICE)(logits.to(DEVICE), rows, memory, top_k=False, top_p=False)  # type: ignore[arg-type]
    drawn = memory.tokens.cpu()[2::4].long()
    assert int(drawn.max()) < vocabulary
    warm = rows.temperature.cpu() > 0
    warm[2] = False  # does not run
    near = torch.arange(count)[warm]
    behind = torch.stack([logits[row, drawn[row] + 1 :].double().exp().sum() for row in near.tolist()])
    whole = logits.double().exp().sum(1)[near]
    # Hot and cold rows too: what lies behind the token is a matter of rounding.
    assert float((behind / whole).max()) < 1e-3


def test_a_border_is_exact_also_where_a_sample_of_the_row_misleads() -> None:
    random, count, vocabulary = generated(8), 8, 20_000
    logits = torch.randn((count, vocabulary), generator=random) * 0.6
    logits[1] *= 5
    logits[1, 700:705] += 12
    # Of two heavy tokens in the sample, one in a thousand others that is not in it has more weight than all.
    is_sampled = torch.zeros(vocabulary, dtype=torch.bool)
    is_sampled[(torch.arange(8192) // 8 * vocabulary // 1024 // 8 * 8 + torch.arange(8192) % 8)] = True
    logits[3, is_sampled.nonzero()[::300, 0]] += 12
    logits[3, (~is_sampled).nonzero()[::3, 0]] += 9
    logits[4] = 0.25
    rows = rows_at([7] * count, [2] * count)
    rows.temperature.copy_(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.7, 1.3, 0.0]))
    top_k = torch.tensor([0, 0, 0, 0, 0, 0, 9000, 40])
    top_p = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.95, 0.3, 0.999, 0.8])
    rows.top_k.copy_(top_k)
    rows.top_p.copy_(top_p)
    chunks = Chunks(count, vocabulary, None, DEVICE)
    borders = Borders(count, vocabulary, chunks, DEVICE)
    chunks.take(logits.to(DEVICE), rows)
    borders.find(logits.to(DEVICE), rows, by_count=True, keeps_border=False)
    borders.find(logits.to(DEVICE), rows, by_count=False, keeps_border=True)
    for row in range(count):
        if row == 2:
            continue
        x = logits[row] / (rows.temperature[row].cpu() or 1.0)
        ordered = x.double().sort(descending=True).values[: int(top_k[row]) or vocabulary]
        mass = ordered.softmax(0)
        last = ordered[mass.cumsum(0) - mass < top_p[row]][-1]
        stays = x >= last
        assert torch.equal(x >= borders.of[row].cpu(), stays), row
        tops = chunks.tops[row].cpu().double()
        left = (chunks.sums[row].cpu().double() * (tops - tops.max()).exp()).sum()
        assert float(left) == pytest.approx(float((x[stays].double() - tops.max()).exp().sum()), rel=1e-5)


def test_a_row_is_over_with_a_stop_token_or_at_its_limit_and_says_what_is_not_finite() -> None:
    logits = torch.full((8, 61), -50.0)
    logits[:, 7] = 50.0
    logits[4, 3], logits[5, 60], logits[6, 0] = torch.nan, -torch.inf, torch.inf
    for stop_tokens, limits, wanted in [
        ([7, 9, 11], 100, [IDLE, IDLE, IDLE, IDLE]),
        ([9], 100, [RUNNING, RUNNING, IDLE, RUNNING]),
        ([9], 10, [IDLE, IDLE, IDLE, IDLE]),
    ]:
        for filters in (False, True):
            rows = drawing_rows(8)
            rows.limit.fill_(limits)
            rows.top_p.fill_(0.5 if filters else 1.0)
            draws = Draw(8, 61, stop_tokens, None, DEVICE)
            draws(logits.to(DEVICE), rows, Drawn(40), top_k=False, top_p=filters)  # type: ignore[arg-type]
            assert rows.running.tolist()[:7] == [*wanted, NOT_FINITE, NOT_FINITE, NOT_FINITE]


@pytest.mark.parametrize(
    ("architecture", "is_joined", "targets"),
    [
        *[("qwen3", is_joined, targets) for is_joined in (False, True) for targets in (None, ["k_proj", "o_proj"])],
        ("gemma2", False, None),
        ("gemma3", False, None),
    ],
)
def test_an_engine_of_them_gives_the_native_engines_completions(
    architecture: str, is_joined: bool, targets: list[str] | None
) -> None:
    decoder = tiny_decoder(architecture)
    decoder.network.to(DEVICE)
    if targets is not None:
        Adapter(decoder.network, 4, 8.0, targets, 1)
        for name, parameter in decoder.network.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator(DEVICE).manual_seed(1))
    asked = [Request((5, 9, 4) * (place // 2 + 1), SamplingParams(max_tokens=3 + place), place) for place in range(4)]
    wanted = dict(EngineSampler(NativeEngine(decoder, NumberRenderer(), num_slots=3)).generate(asked))
    if is_joined:
        join_projections(decoder.network)
    got = dict(EngineSampler(CudaEngine(decoder, NumberRenderer(), num_slots=3, stride=2)).generate(asked))
    for place, one in got.items():
        assert (one.tokens, one.finish) == (wanted[place].tokens, wanted[place].finish)
        assert one.logprobs == pytest.approx(wanted[place].logprobs, abs=1e-4)


class Lent:
    """Room for keys and values in which nothing stays that was given back."""

    size = 0

    def __init__(self, engine: CudaEngine) -> None:
        assert engine._parts is not None
        self.memory = engine._parts.memory
        self.is_there = True

    def take(self) -> None:
        self.is_there = True

    def give_back(self) -> None:
        self.is_there = False
        for part in (*self.memory.keys.values(), *self.memory.values.values()):
            part.fill_(torch.nan)


def test_an_engine_that_rested_reads_nothing_of_what_lay_in_its_memory_before() -> None:
    decoder = tiny_decoder("qwen2")
    decoder.network.to(DEVICE)
    engine = CudaEngine(decoder, NumberRenderer(), num_slots=3, stride=2)
    asked = [Request((5, 9, 4), SamplingParams(max_tokens=4 + place), place) for place in range(4)]
    wanted = dict(EngineSampler(engine).generate(asked))
    parts = engine._parts
    assert parts is not None
    parts.memory._lent = lent = Lent(engine)  # type: ignore[assignment]
    for _ in range(2):
        engine.rest()
    assert not lent.is_there
    assert dict(EngineSampler(engine).generate(asked)) == wanted
    assert lent.is_there
    assert engine._parts is parts
    for request in asked[:2]:
        engine.submit(request)
    engine.step()
    with pytest.raises(RuntimeError, match="while requests run"):
        engine.rest()
    assert lent.is_there
    given_up = EngineSampler(engine).generate(asked)
    next(given_up)
    given_up.close()
    for ticket in [one.ticket for one in parts.table.running()]:
        engine.cancel(ticket)
    engine.rest()  # what was given up runs no more
    assert not lent.is_there
    assert dict(EngineSampler(engine).generate(asked)) == wanted
