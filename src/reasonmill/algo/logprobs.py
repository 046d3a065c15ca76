"""Log-probabilities of given tokens, without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Logits that exist at the same time: what fits a CPU's cache, and what keeps a GPU busy (256 MiB in fp32).
_CPU_LOGITS, _GPU_LOGITS = 1 << 20, 1 << 26
# Rows of a head in bf16 that a CPU, which has no product of bf16 into fp32, holds in fp32 at the same time.
_CPU_ROWS = 4096


class _ChunkedLogprobs(torch.autograd.Function):
    """Forward keeps each position's normaliser and entropy; backward recomputes the logits chunk by chunk.

    Entropies are all 0 unless they are asked for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        softcap: float | None,
        with_entropies: bool,
    ) -> tuple[Tensor, Tensor]:
        normalisers, logprobs, entropies = [], [], []
        for part in chunks(hidden, weight):
            logits, _ = scaled_logits(hidden[part], weight, temperature, softcap)
            normaliser = torch.logsumexp(logits, dim=-1)
            chosen = logits.gather(1, targets[part, None]).squeeze(1)
            normalisers.append(normaliser)
            logprobs.append(chosen - normaliser)
            if with_entropies:
                of_all = logits.sub_(normaliser[:, None])
                entropies.append(-(of_all.exp() * of_all).sum(dim=-1))
        entropy = torch.cat(entropies) if with_entropies else torch.zeros_like(logprobs[0])
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers), entropy)
        ctx.temperature, ctx.softcap, ctx.with_entropies = temperature, softcap, with_entropies
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers, entropy = ctx.saved_tensors

        def of_logits(part: slice, logits: Tensor) -> Tensor:
            # d logprob / d logit = [is target] - probability; d entropy / d logit = -probability (logprob + entropy)
            of_target = grads[0][part, None]
            of_all = logits - normalisers[part, None]
            above = of_target
            if ctx.with_entropies:
                above = of_target + grads[1][part, None] * (of_all + entropy[part, None])
            return torch.exp(of_all).mul_(-above).scatter_add_(1, targets[part, None], of_target)

        return *head_gradients(hidden, weight, ctx.temperature, ctx.softcap, of_logits), None, None, None, None


def chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Runs of positions whose logits are made together; the same in forward and backward."""
    size = max(1, (_CPU_LOGITS if hidden.device.type == "cpu" else _GPU_LOGITS) // weight.shape[0])
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def product_in_fp32(left: Tensor, right: Tensor) -> Tensor:
    """left [N, H] @ right [H, V] in fp32, whatever type both are of: no number of it is ever rounded to theirs.

    Rounded to bf16, logits of 20 are multiples of 1/8, and so are the log-probs that come of them.
    """
    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cuda":
        product: Tensor = torch.mm(left, right, out_dtype=torch.float32)
        return product
    wide = left.float()
    return torch.cat([wide @ part.float() for part in right.split(_CPU_ROWS, dim=1)], dim=1)


def scaled_logits(
    hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor | float]:
    """fp32 logits [N, V] after soft-capping and temperature, and their slope over the raw logits (softcap only)."""
    logits = product_in_fp32(hidden, weight.T)
    if softcap is None:
        return (logits if temperature == 1.0 else logits / temperature), 1.0
    bounded = torch.tanh(logits / softcap)
    return bounded * (softcap / temperature), (1 - bounded**2) / temperature


def head_gradients(
    hidden: Tensor,
    weight: Tensor,
    temperature: float,
    softcap: float | None,
    of_logits: Callable[[slice, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients of `hidden`, in its type, and of `weight`, in fp32; logits are recomputed chunk by chunk.

    Args:
        of_logits: the gradient of a chunk's scaled logits, from its place and these logits.
    """
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    for part in chunks(hidden, weight):
        logits, slope = scaled_logits(hidden[part], weight, temperature, softcap)
        grad = of_logits(part, logits)
        grad = (grad * slope if softcap else grad / temperature).to(hidden.dtype)
        grad_hidden[part] = grad @ weight
        grad_weight += product_in_fp32(grad.T, hidden[part])
    return grad_hidden, grad_weight


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> Tensor:
    """Log-probabilities [N] of `targets`, differentiable in `hidden` and `weight`.

    Args:
        hidden: [N, H] final hidden states.
        weight: [V, H] of the language-model head.
        targets: [N] token ids.
        temperature: that of the distribution that is scored.
        softcap: bound of the logits (Gemma 2), or None.
    """
    return _scored(hidden, weight, targets, temperature, softcap, False)[0]


def token_logprobs_and_entropies(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities as of `token_logprobs`, and the entropies [N] of the distributions, in nats; both
    differentiable."""
    return _scored(hidden, weight, targets, temperature, softcap, True)


def _scored(hidden: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(hidden, *arguments)  # type: ignore[no-untyped-call]
    return result
