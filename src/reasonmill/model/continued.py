"""Attention of texts that begin with the same tokens, which a row holds once: each sees these, and its own before it.

A softmax over two sets of keys is put together from those over each, by their normalisers, so that no key is copied.
Backward, attention's own backward pass gives the gradients of each set from the output and normalisers of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reasonmill.model.attention import AttentionRule, attend_where, repeat_heads
from reasonmill.model.padding import Padding

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

States = tuple[Tensor, Tensor, Tensor]  # query [H, N, D], key [K, N, D] and value [K, N, E] of the same tokens


def attend_continuing(own: States, first: States, padding: Padding, rule: AttentionRule) -> Tensor:
    """Attention of sequences that continue the same one -> [N, H, E].

    Args:
        own: of the N tokens of the sequences, end to end; `padding` knows where each lies.
        first: of the sequence that they continue, all of which precedes each of them.
    """
    query, _, value = own
    _, first_key, first_value = first
    knows = query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and rule.softcap is None
    if knows and (rule.window is None or rule.window >= first_key.shape[1] + padding.longest):
        out: Tensor = _Continuing.apply(*own, first_key, first_value, padding, rule.scale)  # type: ignore[no-untyped-call]
        return out
    # The copies are made once more in the backward pass, one sequence's at a time, so that they take no memory of note.
    attend = partial(checkpoint, _attend_to_copies, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([attend(*states, first_key, first_value, rule) for states in split(own, padding.lengths)])


def split(states: States, lengths: Sequence[int]) -> list[States]:
    """The states of sequences of these lengths."""
    query, key, value = (of_all.split(list(lengths), 1) for of_all in states)
    return list(zip(query, key, value, strict=True))


def _attend_to_copies(
    query: Tensor, key: Tensor, value: Tensor, first_key: Tensor, first_value: Tensor, rule: AttentionRule
) -> Tensor:
    """Attention of one sequence [N, H, E] under a mask, to a copy of the first keys beside its own."""
    hidden = 0 if rule.window is None else max(0, first_key.shape[1] + 1 - rule.window)
    keys, values = (
        torch.cat(part, 1)[None] for part in ((first_key[:, hidden:], key), (first_value[:, hidden:], value))
    )
    places = torch.arange(keys.shape[2], device=query.device)
    distance = places[-query.shape[1] :, None] - places
    visible = (distance >= 0) & (distance < (rule.window or len(places)))
    repeats = query.shape[0] // key.shape[0]
    out = attend_where(query[None], repeat_heads(keys, repeats), repeat_heads(values, repeats), visible, rule)
    return out[0].transpose(0, 1)


class _Continuing(torch.autograd.Function):
    """On a CPU, by torch's flash attention: to the own keys, padded, and to the first ones as they lie.

    Query heads that share a key head are the rows of one query to the first keys, which are read once for all of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        first_key: Tensor,
        first_value: Tensor,
        padding: Padding,
        scale: float,
    ) -> Tensor:
        out, of_own = _flash(*_padded(query, key, value, padding), 0.0, True, scale=scale)
        own, of_own = padding.unpad(out), padding.unpad(of_own[..., None])  # [N, H, D] and [N, H, 1]
        out, of_first = _flash(_folded(query, key), first_key[None], first_value[None], 0.0, False, scale=scale)
        first, of_first = (_by_tokens(states, query) for states in (out, of_first[..., None]))
        normalisers = torch.logaddexp(of_own, of_first)
        out = own * torch.exp(of_own - normalisers) + first * torch.exp(of_first - normalisers)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, first_key, first_value, out, normalisers)
        ctx.padding, ctx.scale = padding, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, first_key, first_value, *whole = ctx.saved_tensors
        padding: Padding = ctx.padding
        grad, out, normalisers = (states.transpose(0, 1) for states in (grads[0], *whole))  # [H, N, ...]
        of_query, *of_first = _flash_backward(
            _folded(grad, key),
            _folded(query, key),
            first_key[None],
            first_value[None],
            _folded(out, key),
            _folded(normalisers, key).squeeze(-1),
            0.0,
            False,
            scale=ctx.scale,
        )
        of_queries, *of_own = _flash_backward(
            padding.pad_with_zeros(grad),
            *_padded(query, key, value, padding),
            padding.pad_with_zeros(out),
            padding.pad_with_zeros(normalisers).squeeze(-1),
            0.0,
            True,
            scale=ctx.scale,
        )
        of_query = (_by_tokens(of_query, query) + padding.unpad(of_queries)).transpose(0, 1)
        # [B, K * repeats, L, D]: the gradients of the copies of a key head are added up.
        of_own = [padding.unpad(g.unflatten(1, (len(key), -1)).sum(2)).transpose(0, 1) for g in of_own]
        return of_query, *of_own, *(gradient[0] for gradient in of_first), None, None


def _padded(query: Tensor, key: Tensor, value: Tensor, padding: Padding) -> States:
    """[B, H, L, D] each. Padding is 0, so that its scores, which the backward pass exponentiates, are 0 as well."""
    repeats = query.shape[0] // key.shape[0]
    keys, values = (repeat_heads(padding.pad_with_zeros(states), repeats) for states in (key, value))
    return padding.pad_with_zeros(query), keys, values


def _folded(states: Tensor, key: Tensor) -> Tensor:
    """[H, N, D] -> [1, K, H / K * N, D]: heads that share a key head, one after the other."""
    return states.reshape(1, len(key), -1, states.shape[-1])


def _by_tokens(folded: Tensor, query: Tensor) -> Tensor:
    """[1, K, H / K * N, D] -> [N, H, D]"""
    return folded.reshape(*query.shape[:2], folded.shape[-1]).transpose(0, 1)
