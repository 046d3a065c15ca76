"""Log-probabilities together with the entropies of the distributions that they are of, for an entropy bonus."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reasonmill.algo.logprobs import chunks, head_gradients, scaled_logits


class _ChunkedEntropies(torch.autograd.Function):
    """Forward keeps each position's normaliser and entropy; backward recomputes the logits chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        logprobs, normalisers, entropies = [], [], []
        for part in chunks(hidden, weight):
            logits, _ = scaled_logits(hidden[part], weight, temperature, softcap)
            normaliser = torch.logsumexp(logits, dim=-1)
            normalisers.append(normaliser)
            logprobs.append(logits.gather(1, targets[part, None]).squeeze(1) - normaliser)
            all_logprobs = logits - normaliser[:, None]
            entropies.append(-(all_logprobs.exp() * all_logprobs).sum(dim=-1))
        entropy = torch.cat(entropies)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers), entropy)
        ctx.temperature, ctx.softcap = temperature, softcap
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers, entropy = ctx.saved_tensors

        def of_logits(part: slice, logits: Tensor) -> Tensor:
            logprobs = logits - normalisers[part, None]
            of_target, of_entropy = grads[0][part, None], grads[1][part, None]
            # d logprob / d logit = [is target] - probability; d entropy / d logit = -probability (logprob + entropy)
            grad = -logprobs.exp() * (of_target + of_entropy * (logprobs + entropy[part, None]))
            found: Tensor = grad.scatter_add_(1, targets[part, None], of_target)
            return found

        return *head_gradients(hidden, weight, ctx.temperature, ctx.softcap, of_logits), None, None, None


def token_logprobs_and_entropies(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """(log-probabilities [N] of `targets`, entropies [N] in nats), both differentiable in `hidden` and `weight`.

    Arguments as of `token_logprobs`.
    """
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    result: tuple[Tensor, Tensor] = _ChunkedEntropies.apply(hidden, weight, targets, temperature, softcap)  # type: ignore[no-untyped-call]
    return result
