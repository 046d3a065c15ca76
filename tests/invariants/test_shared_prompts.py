"""Completions of one prompt that share it in a row: the same numbers as each in a row of its own."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo_config
from torch import Tensor

from reasonmill.algo import packing
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack, unpack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.scoring import scored
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model import continued, flash
from reasonmill.model.attention import AttentionRule
from reasonmill.model.decoder import new_decoder
from reasonmill.model.flash import attend_flash, extent_of
from reasonmill.model.packed import PackedLayout
from reasonmill.randomness import generator
from reasonmill.types import Example
from tiny_models import ARCHITECTURES, VOCABULARY, tiny_config, tiny_decoder
from training import WHOLE, gradients, ragged_examples

PROMPTS = (9, 12)
LOSS = LossSettings(kl_coefficient=0.1, entropy_coefficient=0.1)


def groups() -> list[Example]:
    """Two groups of ragged completions, and a text that shares nothing."""
    numbers = generator("shared prompts")
    texts = []
    for length, count in zip((*PROMPTS, 11), (3, 2, 1), strict=True):
        prompt = [numbers.randrange(2, VOCABULARY) for _ in range(length)]
        for _ in range(count):
            own = [numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(1, 8))]
            texts.append((length, prompt + own))
    examples = []
    for place, (length, tokens) in enumerate(texts):
        rest = len(tokens) - length
        numbers_of = [0.0] * length + [-1.0 - place] * rest
        examples.append(
            Example(
                tokens,
                [0.0] * length + [1.0 / rest] * rest,
                "pg",
                advantages=[0.0] * length + [1.0 - 0.5 * place] * rest,
                sampler_logprobs=numbers_of,
                ref_logprobs=numbers_of,
            )
        )
    return examples


@pytest.fixture(autouse=True)
def _short_prompts_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARED_FROM", min(PROMPTS))


def assert_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.detach().abs().max()) + 1e-9)


# Two attentions made one; copies for a window, for a soft cap and for values of another width; experts.
ALWAYS = ("qwen2", "mistral", "gemma2", "deepseek_v3", "qwen3_moe")


@pytest.mark.parametrize(
    "architecture",
    [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.check) for name in ARCHITECTURES],
)
def test_log_probs_and_all_gradients_are_those_of_rows_of_their_own(architecture: str) -> None:
    decoder, examples = tiny_decoder(architecture), groups()
    shared, alone = pack(examples, WHOLE), pack(examples, 1)
    assert [batch.continued for batch in shared] == [(2, 3)]
    assert sum(batch.num_tokens for batch in alone) - shared[0].num_tokens == (PROMPTS[0] - 1) * 2 + PROMPTS[1] - 1
    learner = LocalLearner(decoder, OptimizerSettings())
    scores = [unpack(torch.cat(list(map(learner.logprobs, rows))), rows, examples) for rows in (shared, alone)]
    assert_close(*([torch.tensor(row) for row in rows] for rows in scores))
    assert_close(gradients(decoder, examples, WHOLE, LOSS), gradients(decoder, examples, 1, LOSS))


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_before_an_update_nothing_is_apart_from_what_was_scored(architecture: str) -> None:
    learner = LocalLearner(tiny_decoder(architecture), OptimizerSettings())
    score = partial(scored, name="old_logprobs", tokens_per_batch=WHOLE)
    (examples,) = score([groups()], score=lambda batches: torch.cat(list(map(learner.logprobs, batches))))
    (batch,) = pack(examples, WHOLE)
    assert batch.continued
    assert learner.forward_backward(batch, LossSettings(drift_coefficient=1.0), 1.0)["policy/drift"] == 0.0


def test_a_window_that_hides_nothing_of_a_row_takes_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that does is honoured, by way of copies."""
    made: list[int] = []
    attend = continued.attend_where
    monkeypatch.setattr(continued, "attend_where", lambda *a: made.append(1) or attend(*a))
    numbers = torch.Generator().manual_seed(0)
    states = [torch.randn(heads, 9, 8, generator=numbers) for heads in (4, 2, 2)]
    rows = {}
    for window in (None, 7, 6):
        layout = PackedLayout([4, 3, 2], "cpu", [2])  # texts of 7 and 6 positions
        rows[window] = layout.attend(0, *states, AttentionRule(0.3, window, None))
    assert len(made) == 2  # one of each text
    torch.testing.assert_close(rows[None], rows[7])
    different = (rows[None] - rows[6]).abs().amax((1, 2)) > 1e-3
    assert different.nonzero().flatten().tolist() == [6]  # the last of the longer one


# Flash attention, whose kernels run on GPUs alone: all around them


def _borders(ends: Tensor) -> list[slice]:
    return [slice(*pair) for pair in pairwise(ends.tolist())]


def _as_flash(query: Tensor, key: Tensor, value: Tensor, borders: Any, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel computes, causal masks aligned at the end."""
    out, normalisers = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
    for queries, keys in zip(_borders(borders.queries), _borders(borders.keys), strict=True):
        assert queries.stop - queries.start <= borders.longest_query
        assert keys.stop - keys.start <= borders.longest_key
        scores = _scores(query[queries], key[keys], borders, scale)
        normalisers[:, queries] = scores.logsumexp(-1)
        out[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _repeated(value[keys], query))
    return out, normalisers, torch.empty(2, dtype=torch.uint64)


def _as_flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normalisers: Tensor,
    state: Tensor,
    borders: Any,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = (torch.zeros_like(states) for states in (query, key, value))
    for queries, keys in zip(_borders(borders.queries), _borders(borders.keys), strict=True):
        q, k, v = query[queries], _repeated(key[keys], query), _repeated(value[keys], query)
        probabilities = (_scores(q, key[keys], borders, scale) - normalisers[:, queries, None]).exp()
        above = torch.einsum("qhd,khd->hqk", grad[queries], v) - (grad[queries] * out[queries]).sum(-1).T[:, :, None]
        of_scores = probabilities * above * scale
        of_query[queries] = torch.einsum("hqk,khd->qhd", of_scores, k)
        of_key[keys] = _summed(torch.einsum("hqk,qhd->khd", of_scores, q), key)
        of_value[keys] = _summed(torch.einsum("hqk,qhd->khd", probabilities, grad[queries]), key)
    return of_query, of_key, of_value


def _scores(query: Tensor, key: Tensor, borders: Any, scale: float) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", query, _repeated(key, query)) * scale
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(key) - len(query))
    return scores.masked_fill(hidden, float("-inf")) if borders.is_causal else scores


def _repeated(states: Tensor, query: Tensor) -> Tensor:
    return states.repeat_interleave(query.shape[1] // states.shape[1], 1)


def _summed(gradients: Tensor, key: Tensor) -> Tensor:
    return gradients.unflatten(1, (key.shape[1], -1)).sum(2)


@pytest.mark.parametrize(
    ("lengths", "following"), [((4, 6, 3, 2, 1, 5, 7, 2), (2, 2)), ((4, 3, 2), (2,)), ((5, 1, 3), ())]
)
def test_around_flash_attention_a_row_is_put_together_as_on_a_cpu(
    lengths: tuple[int, ...], following: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "_attend", _as_flash)
    monkeypatch.setattr(flash, "_gradients_of", _as_flash_backward)
    numbers = torch.Generator().manual_seed(0)
    states = [torch.randn(heads, sum(lengths), 8, generator=numbers, requires_grad=True) for heads in (4, 2, 2)]
    above = torch.randn(sum(lengths), 4, 8, generator=numbers)
    expected = PackedLayout(lengths, "cpu", following).attend(0, *states, AttentionRule(0.3, None, None))
    extent = extent_of(lengths, following, torch.device("cpu"))
    found = attend_flash(*(rows.transpose(0, 1) for rows in states), extent, 0.3, None)
    assert_close([found], [expected])
    assert_close(*(torch.autograd.grad(out, states, above) for out in (found, expected)))
    reach = max((4 + 3, 6 + 5)[: len(following)], default=1)
    assert [extent.knows(window) for window in (None, reach, reach - 1)] == [True, True, not following]


# Flash attention; a window; a soft cap and narrow heads, which are padded.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2"])
def test_a_gpu_shares_prompts_as_a_cpu_does_in_fp32(architecture: str) -> None:
    exact, rounded = tiny_decoder(architecture), tiny_decoder(architecture, dtype=torch.bfloat16)
    exact.network.load_state_dict(rounded.network.state_dict())
    rounded.network.to("cuda")
    (batch,) = pack(groups(), WHOLE)
    trained = batch.weights > 0
    wanted, found = (LocalLearner(d, OptimizerSettings()).logprobs(batch).cpu()[trained] for d in (exact, rounded))
    assert float((wanted - found).abs().mean()) < 0.05
    expected = gradients(exact, groups(), WHOLE, LossSettings())
    first, again = (gradients(rounded, groups(), WHOLE, LossSettings()) for _ in range(2))
    assert all(map(torch.equal, first, again))
    squares = [sum(float(g.double().square().sum()) for g in gs) for gs in (map(_gap, first, expected), expected)]
    assert squares[0] < 0.1**2 * squares[1]


def _gap(found: Tensor, expected: Tensor) -> Tensor:
    return found.cpu() - expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_with_and_without_a_shared_prompt_are_run_by_the_same_compiled_code() -> None:
    config = tiny_config("qwen2", num_hidden_layers=3, hidden_size=64)
    decoder = new_decoder(config, seed=0, device="cuda", dtype=torch.bfloat16)
    gradients(decoder, ragged_examples(8), WHOLE, LossSettings())
    with dynamo_config.patch(error_on_recompile=True):
        gradients(decoder, groups(), WHOLE, LossSettings())
