"""Chunked log-probs against a plain log-softmax in double precision, values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from reasonmill.algo import logprobs
from reasonmill.algo.logprobs import token_logprobs

POSITIONS, WIDTH, VOCABULARY = 7, 5, 11


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets, and the gradient that comes from above."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    # The first and the last token of the vocabulary, and one twice.
    targets = torch.tensor([0, VOCABULARY - 1, 4, 4, 7, 1, 9])
    return hidden, weight, targets, torch.randn(POSITIONS, generator=generator)


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, above: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    values = torch.log_softmax(logits / temperature, -1)[torch.arange(len(targets)), targets]
    grads = torch.autograd.grad(values, (hidden, weight), above.double())
    return values.detach(), *grads


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("softcap", [None, 2.5])
# Chunks of one position, of three (7 leaves a last one), of all but one, and a single one.
@pytest.mark.parametrize("chunk", [1, 3, 6, 100])
def test_log_probs_are_those_of_a_plain_softmax(
    case: tuple[Tensor, Tensor, Tensor, Tensor],
    temperature: float,
    softcap: float | None,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "_CPU_LOGITS", chunk * VOCABULARY)
    monkeypatch.setattr(logprobs, "_CPU_POSITIONS", 1)
    hidden, weight, targets, above = case
    expected = plain(hidden, weight, targets, above, temperature, softcap)
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    values = token_logprobs(hidden, weight, targets, temperature=temperature, softcap=softcap)
    grads = torch.autograd.grad(values, (hidden, weight), above)
    for got, wanted in zip((values, *grads), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("softcap", [None, 2.5])
# Logits of no chunk, of the first of three, and of all of them are kept; rows go through the cache two at a time.
@pytest.mark.parametrize("kept", [0, 3, 100])
def test_a_large_vocabulary_s_logits_are_kept_for_one_backward_pass(
    case: tuple[Tensor, Tensor, Tensor, Tensor],
    temperature: float,
    softcap: float | None,
    kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "_LARGE_VOCABULARY", 1)
    monkeypatch.setattr(logprobs, "_CPU_POSITIONS", 3)
    monkeypatch.setattr(logprobs, "_CPU_LOGITS", 2 * VOCABULARY)
    monkeypatch.setattr(logprobs, "_CPU_KEPT", kept * VOCABULARY)
    made: list[int] = []
    product = logprobs.product_in_fp32
    monkeypatch.setattr(logprobs, "product_in_fp32", lambda *of: made.append(len(of[0])) or product(*of))
    hidden, weight, targets, above = case
    expected = plain(hidden, weight, targets, above, temperature, softcap)
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    values, _ = logprobs.token_logprobs_and_entropies(hidden, weight, targets, temperature=temperature, softcap=softcap)
    torch.testing.assert_close(values.double(), expected[0], rtol=1e-5, atol=2e-6)
    for again in (0, 1):  # the second time there is nothing left that was kept
        del made[:]
        grads = torch.autograd.grad(values, (hidden, weight), above, retain_graph=True)
        assert sum(made) == (POSITIONS if again else {0: 7, 3: 4, 100: 0}[kept])
        for got, wanted in zip(grads, expected[1:], strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=2e-6)


def test_nothing_is_kept_where_nothing_goes_backward(
    case: tuple[Tensor, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "_LARGE_VOCABULARY", 1)
    contexts: list[dict[int, Tensor]] = []
    forward = logprobs._ChunkedLogprobs.forward

    def noted(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        found = forward(ctx, *arguments)
        contexts.append(ctx.kept)
        return found

    monkeypatch.setattr(logprobs._ChunkedLogprobs, "forward", staticmethod(noted))
    hidden, weight, targets, _ = case
    token_logprobs(hidden, weight.requires_grad_(), targets)
    with torch.no_grad():
        token_logprobs(hidden, weight, targets)
    assert [len(kept) for kept in contexts] == [1, 0]


def test_positions_that_are_not_asked_for_have_no_part(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, above = case
    places = torch.tensor([1, 4, 6])
    asked = torch.zeros(POSITIONS).index_fill(0, places, 1.0)
    found = []
    for asked_for in (None, places):
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        values = token_logprobs(states, head, targets, places=asked_for)
        found.append((values * asked, *torch.autograd.grad(values, (states, head), above * asked)))
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole)
    assert values.count_nonzero() == len(places)


def test_a_vocabulary_larger_than_a_chunk_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_CPU_POSITIONS", 1)
    vocabulary = logprobs._CPU_LOGITS + 1
    hidden = torch.tensor([[1.0], [-1.0]])
    weight = torch.zeros(vocabulary, 1)
    weight[5] = 3.0
    values = token_logprobs(hidden, weight, torch.tensor([5, 5]))
    rest = torch.tensor(float(vocabulary - 1)).double()
    expected = [3.0 - torch.log(rest + torch.tensor(3.0).double().exp()), -3.0 - torch.log(rest + 0.049787068)]
    assert values.tolist() == pytest.approx([float(value) for value in expected], rel=1e-6)


def test_chunks_fit_the_cache_or_have_positions_enough_for_a_large_vocabulary() -> None:
    """Those of the tiny world's vocabulary decide the bits of its recipes."""
    hidden = torch.zeros(3000, 1)
    assert logprobs.chunks(hidden, torch.zeros(896, 1))[:1] == [slice(0, 1170)]
    assert logprobs.chunks(hidden, torch.zeros(49_152, 1))[:1] == [slice(0, 512)]


def test_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[3e4], [-3e4], [0.0]], requires_grad=True)
    values = token_logprobs(hidden, weight, torch.tensor([0, 1]))
    values.sum().backward()
    assert values.tolist() == [0.0, -6e4]
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.tolist() == [[0.0], [-6e4]]
    assert weight.grad.tolist() == [[-1.0], [1.0], [0.0]]


def test_bf16_states_give_fp32_log_probs_and_gradients_of_their_own_type(
    case: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    hidden, weight, targets, above = case
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    expected = plain(hidden, weight, targets, above, 1.0, None)
    hidden.requires_grad_()
    weight.requires_grad_()
    values = token_logprobs(hidden, weight, targets)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.detach().double(), expected[0], rtol=1e-5, atol=2e-6)
    for got, wanted in zip(torch.autograd.grad(values, (hidden, weight), above), expected[1:], strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), wanted, rtol=0.05, atol=0.05)


def test_logits_of_bf16_states_are_not_rounded_to_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around 64 the numbers of bf16 are a quarter apart. The head's rows come in several parts."""
    monkeypatch.setattr(logprobs, "_CPU_ROWS", 2)
    hidden = torch.full((1, 64), 1.0).bfloat16()
    weight = 1 + torch.arange(5)[:, None] * torch.tensor([2.0**-7] + [0.0] * 63)
    expected = torch.log_softmax(torch.arange(5) * 2.0**-7, -1)
    values = token_logprobs(hidden.expand(5, -1), weight.bfloat16(), torch.arange(5))
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_the_gradient_of_a_bf16_head_is_fp32_where_it_is_gathered_in_fp32() -> None:
    hidden = torch.tensor([[1.0], [2.0**-9]]).bfloat16()
    weight = torch.zeros(2, 1).bfloat16().requires_grad_()
    weight.grad_dtype = torch.float32
    token_logprobs(hidden, weight, torch.tensor([0, 0])).sum().backward()
    assert weight.grad is not None
    # Half of each state, whose sum bf16 does not have.
    assert weight.grad.tolist() == [[0.5 + 2.0**-10], [-0.5 - 2.0**-10]]


def test_no_positions_give_no_log_probs() -> None:
    assert token_logprobs(torch.zeros(0, 4), torch.zeros(9, 4), torch.zeros(0, dtype=torch.int64)).shape == (0,)
