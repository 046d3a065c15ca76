"""Attention of texts that begin with the same tokens, which a row holds once: each sees these, and its own before it.

A softmax over two sets of keys is put together from those over each, by their normalisers, so that no key is copied.
Backward, attention's own backward pass gives the gradients of each set from the output and normalisers of the whole.
"""

from __future__ import annotations

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
    knows = query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and rule.softcap is None
    if knows and not _hides(rule, first, padding):
        out: Tensor = _Continuing.apply(*own, *first[1:], padding, rule.scale)  # type: ignore[no-untyped-call]
        return out
    # Copies of keys for each sequence take no memory until the backward pass, which makes them once more.
    made: Tensor = checkpoint(
        _attend_to_copies, *own, *first[1:], padding, rule, use_reentrant=False, preserve_rng_state=False
    )
    return made


def _hides(rule: AttentionRule, first: States, padding: Padding) -> bool:
    """Whether the window of the last token does not reach back to the first."""
    return rule.window is not None and rule.window < first[1].shape[1] + padding.longest


def _attend_to_copies(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first_key: Tensor,
    first_value: Tensor,
    padding: Padding,
    rule: AttentionRule,
) -> Tensor:
    queries, repeats = padding.pad(query), query.shape[0] // key.shape[0]
    keys, values = (
        repeat_heads(torch.cat([first.expand(len(queries), *first.shape), padding.pad(own)], dim=2), repeats)
        for first, own in ((first_key, key), (first_value, value))
    )
    places = torch.arange(keys.shape[2], device=query.device)
    distance = places[first_key.shape[1] :, None] - places
    visible = (distance >= 0) & (distance < (rule.window or len(places)))
    return padding.unpad(attend_where(queries, keys, values, visible, rule))


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
