"""Log-probabilities of given tokens, without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reasonmill.algo.fused import fused

# Logits that exist at the same time: on a CPU what fits its cache, on a GPU a share of its memory, because each chunk
# reads and writes the gradient of the whole head once.
_CPU_LOGITS = 1 << 20
_GPU_SHARE = 40
# But so many positions at least: of a large vocabulary, what fits the cache are few, and for few positions a CPU's
# products take longer, and so does the head's gradient.
_CPU_POSITIONS = 512
# Tokens from which on a CPU's head is much of the work: SmolLM2's 49,152 are a fifth of it. Smaller ones keep the order
# of sums that decides the bits of the tiny world's recipes.
_LARGE_VOCABULARY = 8192
# Logits of a large vocabulary that a CPU keeps for the backward pass: 512 MiB. Those of more positions are made again.
_CPU_KEPT = 1 << 27
# A matrix product on a GPU is cut into tiles of so many rows.
_TILE = 128
# Rows of a head in bf16 that a CPU, which has no product of bf16 into fp32, holds in fp32 at the same time.
_CPU_ROWS = 4096


class _ChunkedLogprobs(torch.autograd.Function):
    """Forward keeps each position's normaliser and entropy; backward recomputes the logits chunk by chunk.

    Of a large vocabulary on a CPU, whose logits take longer to make than to keep, it keeps those of some chunks, too.
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
        goes_backward: bool,
    ) -> tuple[Tensor, Tensor]:
        parts = []
        ctx.kept = {}  # logits [N, V] of chunks by their first position, which the backward pass takes out
        room = _CPU_KEPT if goes_backward and is_large_on_cpu(weight) else 0
        for part in chunks(hidden, weight):
            product = product_in_fp32(hidden[part], weight.T)
            for rows in _in_cache(product):
                parts.append(_of_targets(product[rows], targets[part][rows], temperature, softcap, with_entropies))
            room -= product.numel()
            if room >= 0:
                ctx.kept[part.start] = product
        normalisers, logprobs, entropies = (torch.cat(values) for values in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, targets, normalisers, entropies)
        ctx.temperature, ctx.softcap, ctx.with_entropies = temperature, softcap, with_entropies
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers, entropies = ctx.saved_tensors
        of_entropies = grads[1] if ctx.with_entropies else None

        def of_part(part: slice) -> Tensor:
            product: Tensor | None = ctx.kept.pop(part.start, None)
            if product is None:
                product = product_in_fp32(hidden[part], weight.T)
            in_cache = _in_cache(product)
            for rows in in_cache:
                own = product[rows]
                gradient = _product_gradient(
                    own,
                    targets[part][rows],
                    normalisers[part][rows],
                    entropies[part][rows],
                    grads[0][part][rows],
                    None if of_entropies is None else of_entropies[part][rows],
                    ctx.temperature,
                    ctx.softcap,
                    hidden.dtype,
                )
                if len(in_cache) == 1:
                    return gradient
                if gradient is not own:
                    own.copy_(gradient)
            return product.to(hidden.dtype)

        gradients = head_gradients(hidden, weight, of_part, of_weight=ctx.needs_input_grad[1])
        return *gradients, None, None, None, None, None


@fused
def _of_targets(
    product: Tensor, targets: Tensor, temperature: float, softcap: float | None, with_entropies: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalisers [N], log-probs [N] of the targets and entropies [N] from a chunk's raw logits [N, V]."""
    logits, _ = scaled(product, temperature, softcap)
    normaliser = _normaliser(logits)
    logprobs = logits.gather(1, targets[:, None]).squeeze(1) - normaliser
    if not with_entropies:
        return normaliser, logprobs, torch.zeros_like(logprobs)
    of_all = logits - normaliser[:, None]  # not in their place, which may be kept
    return normaliser, logprobs, -(of_all.exp() * of_all).sum(dim=-1)


@fused
def _product_gradient(
    product: Tensor,
    targets: Tensor,
    normaliser: Tensor,
    entropy: Tensor,
    of_target: Tensor,
    of_entropy: Tensor | None,
    temperature: float,
    softcap: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient [N, V] of a chunk's raw logits, from those [N] of its log-probs and entropies.

    On a CPU it may take their place.
    """
    logits, slope = scaled(product, temperature, softcap)
    # d logprob / d logit = [is target] - probability; d entropy / d logit = -probability (logprob + entropy)
    # New memory takes a CPU as long as the sum.
    of_all = logits.sub_(normaliser[:, None]) if logits.device.type == "cpu" else logits - normaliser[:, None]
    above = of_target[:, None]
    if of_entropy is not None:
        above = above + of_entropy[:, None] * (of_all + entropy[:, None])
    spread = of_all.exp_().mul_(-above)
    return to_product(_add_at(spread, targets, of_target), slope, temperature, dtype)


def _normaliser(logits: Tensor) -> Tensor:
    if logits.device.type == "cpu":
        return torch.logsumexp(logits, dim=-1)
    # In these words a compiler finds that one reading of the logits is enough.
    highest = logits.amax(dim=-1, keepdim=True)
    return (highest + (logits - highest).exp().sum(dim=-1, keepdim=True).log()).squeeze(1)


def _add_at(values: Tensor, targets: Tensor, added: Tensor) -> Tensor:
    """Adds `added` [N] to the numbers at `targets` [N] of values [N, V]."""
    if values.device.type == "cpu":
        return values.scatter_add_(1, targets[:, None], added[:, None])
    # A comparison is fused with what stands around it, a scatter is not.
    columns = torch.arange(values.shape[1], device=values.device)
    return torch.where(columns == targets[:, None], values + added[:, None], values)


def chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Runs of positions whose logits are made together; the same in forward and backward."""
    size = max(_CPU_POSITIONS if hidden.device.type == "cpu" else 1, _logits_at_once(hidden.device) // weight.shape[0])
    if hidden.device.type == "cuda" and size > _TILE:
        size -= size % _TILE
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def is_large_on_cpu(weight: Tensor) -> bool:
    """Whether a head [V, H] is much of the work of a network on a CPU."""
    return weight.device.type == "cpu" and weight.shape[0] >= _LARGE_VOCABULARY


def _in_cache(logits: Tensor) -> list[slice]:
    """Rows of a chunk's logits [N, V] that are gone over together: on a CPU few enough to stay in its cache."""
    size = logits.shape[0] if logits.device.type == "cuda" else max(1, _CPU_LOGITS // logits.shape[1])
    return [slice(start, start + size) for start in range(0, logits.shape[0], size)]


def _logits_at_once(device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_LOGITS
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return memory // _GPU_SHARE // torch.float32.itemsize


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


def scaled(product: Tensor, temperature: float, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """fp32 logits [N, V] after soft-capping and temperature, from raw ones; with a soft cap their slope, too."""
    if softcap is None:
        return (product if temperature == 1.0 else product / temperature), None
    bounded = torch.tanh(product / softcap)
    return bounded * (softcap / temperature), (1 - bounded**2) / temperature


def scaled_logits(
    hidden: Tensor, weight: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """fp32 logits [N, V] and their slope, as `scaled` gives them, of hidden states [N, H] under a head [V, H]."""
    return scaled(product_in_fp32(hidden, weight.T), temperature, softcap)


def to_product(gradient: Tensor, slope: Tensor | None, temperature: float, dtype: torch.dtype) -> Tensor:
    """The gradient of raw logits, in `dtype`, from that of scaled ones."""
    if slope is not None:
        gradient = gradient * slope
    elif temperature != 1.0:
        gradient = gradient / temperature
    return gradient.to(dtype)


def head_gradients(
    hidden: Tensor, weight: Tensor, of_part: Callable[[slice], Tensor], *, of_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `hidden`, in its type, and of `weight`, in fp32, chunk by chunk.

    Args:
        of_part: the gradient of a chunk's raw logits, in the type of `hidden`, from its place.
        of_weight: whether that of `weight` is asked for; a frozen head has none.
    """
    grad_hidden = torch.empty_like(hidden)
    grad_weight: Tensor | None = None
    for part in chunks(hidden, weight):
        grad = of_part(part)
        grad_hidden[part] = grad @ weight
        if of_weight:
            grad_weight = _with_product(grad_weight, grad.T, hidden[part])
    return grad_hidden, grad_weight


def _with_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left @ right in fp32, in the memory of the total."""
    if left.device.type == "cuda" and left.dtype != torch.float32:
        if total is None:
            total = left.new_zeros(left.shape[0], right.shape[1], dtype=torch.float32)
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
        return total
    if left.dtype == torch.float32 and is_large_on_cpu(left):
        return left @ right if total is None else total.addmm_(left, right)
    if total is None:
        total = left.new_zeros(left.shape[0], right.shape[1], dtype=torch.float32)
    return total.add_(product_in_fp32(left, right))


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Log-probabilities [N] of `targets`, differentiable in `hidden` and `weight`.

    Args:
        hidden: [N, H] final hidden states.
        weight: [V, H] of the language-model head.
        targets: [N] token ids.
        temperature: that of the distribution that is scored.
        softcap: bound of the logits (Gemma 2), or None.
        places: indices of the positions that are asked for, each once; 0 is returned for the others. None: all.
    """
    return _scored(hidden, weight, targets, places, temperature, softcap, False)[0]


def token_logprobs_and_entropies(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities as of `token_logprobs`, and the entropies [N] of the distributions, in nats; both
    differentiable."""
    return _scored(hidden, weight, targets, places, temperature, softcap, True)


def _scored(
    hidden: Tensor, weight: Tensor, targets: Tensor, places: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    if places is None:
        return _of_all(hidden, weight, targets, *settings)
    found = _of_all(hidden.index_select(0, places), weight, targets[places], *settings)
    nothing = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
    return nothing.index_copy(0, places, found[0]), nothing.index_copy(0, places, found[1])


def _of_all(*arguments: Any) -> tuple[Tensor, Tensor]:
    goes_backward = torch.is_grad_enabled()  # which it is not within the function
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(*arguments, goes_backward)  # type: ignore[no-untyped-call]
    return result
