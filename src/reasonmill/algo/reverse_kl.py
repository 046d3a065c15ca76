"""Reverse KL from a policy to a teacher over the whole vocabulary, without ever holding the logits of a whole batch.

On-policy distillation (Agarwal et al., arXiv 2306.13649; Thinking Machines, 2025) minimises KL(policy || teacher) at
the positions of the policy's own samples. The per-token reward log teacher - log policy estimates its gradient from
the one token that was drawn. The sum over the vocabulary is the mean of that over all draws: the same gradient without
the noise, for one more product with the teacher's head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reasonmill.algo.logprobs import chunks, head_gradients, scaled_logits, to_product


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: `weight` [V, H], and a bound of the logits (Gemma 2) or None."""

    weight: Tensor
    softcap: float | None = None


@dataclass(frozen=True)
class _Scales:
    temperature: float
    softcap: float | None
    teacher_softcap: float | None


class _ChunkedReverseKL(torch.autograd.Function):
    """Forward keeps each position's divergence; backward recomputes both models' logits chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, scales: _Scales
    ) -> Tensor:
        divergences = []
        for part in chunks(hidden, weight):
            logits, _ = scaled_logits(hidden[part], weight, scales.temperature, scales.softcap)
            logprobs = torch.log_softmax(logits, dim=-1)
            gap = logprobs - _teacher_logprobs(teacher_hidden[part], teacher_weight, scales)
            divergences.append((logprobs.exp() * gap).sum(dim=-1))
        divergence = torch.cat(divergences)
        ctx.save_for_backward(hidden, weight, teacher_hidden, teacher_weight, divergence)
        ctx.scales = scales
        return divergence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, teacher_hidden, teacher_weight, divergence = ctx.saved_tensors
        scales: _Scales = ctx.scales

        def of_part(part: slice) -> Tensor:
            logits, slope = scaled_logits(hidden[part], weight, scales.temperature, scales.softcap)
            logprobs = torch.log_softmax(logits, dim=-1)
            gap = logprobs - _teacher_logprobs(teacher_hidden[part], teacher_weight, scales)
            # d KL / d logit = probability * (log policy - log teacher - KL)
            gradient = logprobs.exp() * (gap - divergence[part, None]) * grads[0][part, None]
            return to_product(gradient, slope, scales.temperature, hidden.dtype)

        gradients = head_gradients(hidden, weight, of_part, of_weight=ctx.needs_input_grad[1])
        return *gradients, None, None, None


def _teacher_logprobs(hidden: Tensor, weight: Tensor, scales: _Scales) -> Tensor:
    logits, _ = scaled_logits(hidden, weight, scales.temperature, scales.teacher_softcap)
    return torch.log_softmax(logits, dim=-1)


def reverse_kl(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, *, temperature: float = 1.0
) -> Tensor:
    """KL(policy || teacher) [N] of the next token, differentiable in `hidden` and the policy's head.

    The heads may have different numbers of rows, as models of one family and tokenizer do that pad them differently:
    the distributions are those over the rows that both have.

    Args:
        hidden: [N, H] final hidden states of the policy.
        teacher_hidden: [N, H'] those of the teacher at the same positions; they get no gradient.
        temperature: that of the policy's and of the teacher's distribution.
    """
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    shared = min(head.weight.shape[0], teacher_head.weight.shape[0])
    result: Tensor = _ChunkedReverseKL.apply(  # type: ignore[no-untyped-call]
        hidden,
        head.weight[:shared],
        teacher_hidden.detach(),
        teacher_head.weight[:shared].detach(),
        _Scales(temperature, head.softcap, teacher_head.softcap),
    )
    return result
