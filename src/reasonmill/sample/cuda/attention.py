"""Attention of one new token a row over what the row's sequence has, and nothing else; written in Triton.

A sequence lies in two runs of the memory: its prompt, which rows of a group share, and its own tokens. A program
serves one key head of one row, with all query heads that share it: keys and values are read once, and what is not the
sequence's is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonmill.model.attention import AttentionRule
from reasonmill.sample.cuda.rows import Rows

# Scores are taken in units of log2 e, where exponentials are powers of 2.
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _kernel(
    query, key, value, keys, values, out,
    running, position, prompt_length, prompt_start, start,
    cosines, sines, query_norm, key_norm,
    scale, epsilon, window, head_tokens,
    query_row, query_head, key_row, key_head, value_row, value_head,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    GROUP_TILE: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, KEYS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ROTATE: tl.constexpr, NORM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // KV_HEADS
    head = tl.program_id(0) % KV_HEADS
    kind = query.dtype.element_ty
    g = tl.arange(0, GROUP_TILE)
    d = tl.arange(0, D_TILE)
    e = tl.arange(0, E_TILE)
    heads = head * GROUP + g
    out_at = out + (row * KV_HEADS * GROUP + heads)[:, None] * E + e[None, :]
    out_mask = (g < GROUP)[:, None] & (e < E)[None, :]
    if tl.load(running + row) != 1:
        tl.store(out_at, tl.zeros([GROUP_TILE, E_TILE], kind), mask=out_mask)
        return
    at = tl.load(position + row).to(tl.int32)
    shared = tl.load(prompt_length + row).to(tl.int32)
    shared_start = tl.load(prompt_start + row)
    own_start = tl.load(start + row)
    own = at - shared  # tokens of its own before this one

    query_mask = (g < GROUP)[:, None] & (d < D)[None, :]
    query_at = query + row * query_row + heads[:, None] * query_head
    key_at = key + row * key_row + head * key_head
    q = tl.load(query_at + d[None, :], mask=query_mask, other=0.0)
    k_new = tl.load(key_at + d, mask=d < D, other=0.0)
    v_new = tl.load(value + row * value_row + head * value_head + e, mask=e < E, other=0.0)
    if ROTATE:
        HALF: tl.constexpr = D // 2
        other = tl.where(d < HALF, d + HALF, d - HALF)
        q_other = tl.load(query_at + other[None, :], mask=query_mask, other=0.0)
        k_other = tl.load(key_at + other, mask=d < D, other=0.0)
        if NORM:
            qf = q.to(tl.float32)
            kf = k_new.to(tl.float32)
            q_size = tl.rsqrt(tl.sum(qf * qf, 1) / D + epsilon)[:, None]
            k_size = tl.rsqrt(tl.sum(kf * kf, 0) / D + epsilon)
            q_weight = tl.load(query_norm + d, mask=d < D, other=0.0).to(tl.float32)
            k_weight = tl.load(key_norm + d, mask=d < D, other=0.0).to(tl.float32)
            q_weight_other = tl.load(query_norm + other, mask=d < D, other=0.0).to(tl.float32)
            k_weight_other = tl.load(key_norm + other, mask=d < D, other=0.0).to(tl.float32)
            # Rounded where transformers rounds.
            q = ((qf * q_size).to(kind).to(tl.float32) * q_weight[None, :]).to(kind)
            k_new = ((kf * k_size).to(kind).to(tl.float32) * k_weight).to(kind)
            q_other = ((q_other.to(tl.float32) * q_size).to(kind).to(tl.float32) * q_weight_other[None, :]).to(kind)
            k_other = ((k_other.to(tl.float32) * k_size).to(kind).to(tl.float32) * k_weight_other).to(kind)
        cosine = tl.load(cosines + at * HALF + d % HALF, mask=d < D, other=0.0)
        sine = tl.load(sines + at * HALF + d % HALF, mask=d < D, other=0.0) * tl.where(d < HALF, -1.0, 1.0)
        q = (q.to(tl.float32) * cosine[None, :] + q_other.to(tl.float32) * sine[None, :]).to(kind)
        k_new = (k_new.to(tl.float32) * cosine + k_other.to(tl.float32) * sine).to(kind)

    # Of this key head, on memory's side.
    keys += head.to(tl.int64) * head_tokens * D
    values += head.to(tl.int64) * head_tokens * E
    tl.store(keys + (own_start + own) * D + d, k_new, mask=d < D)
    tl.store(values + (own_start + own) * E + e, v_new, mask=e < E)

    # The new token sees itself: the sums begin with it, so that none is ever empty.
    best = tl.sum(q.to(tl.float32) * k_new.to(tl.float32)[None, :], 1) * scale
    if SOFTCAP > 0:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        best = SOFTCAP * _LOG2_E * (1.0 - 2.0 / (tl.exp2(best * (2.0 / SOFTCAP)) + 1.0))
    total = tl.zeros([GROUP_TILE], tl.float32) + 1.0
    mixed = tl.zeros([GROUP_TILE, E_TILE], tl.float32) + v_new.to(tl.float32)[None, :]

    n = tl.arange(0, KEYS)
    prompt_tiles = tl.cdiv(shared, KEYS)
    tiles = prompt_tiles + tl.cdiv(own, KEYS)
    first_tile = 0
    first = 0
    if WINDOW:
        first = tl.maximum(0, at - window + 1)
        first_tile = tl.where(first < shared, first // KEYS, prompt_tiles + (first - shared) // KEYS)
    for tile in tl.range(first_tile, tiles, num_stages=STAGES):
        is_own = tile >= prompt_tiles
        offset = tl.where(is_own, tile - prompt_tiles, tile) * KEYS
        end = tl.where(is_own, own, shared)
        base = tl.where(is_own, own_start, shared_start) + offset
        visible = offset + n < end
        if WINDOW:
            visible &= offset + n + tl.where(is_own, shared, 0) >= first
        k = tl.load(keys + base * D + n[:, None] * D + d[None, :], mask=visible[:, None] & (d < D)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if SOFTCAP > 0:
            scores = SOFTCAP * _LOG2_E * (1.0 - 2.0 / (tl.exp2(scores * (2.0 / SOFTCAP)) + 1.0))
        scores = tl.where(visible[None, :], scores, float("-inf"))
        v = tl.load(
            values + base * E + n[:, None] * E + e[None, :], mask=visible[:, None] & (e < E)[None, :], other=0.0
        )
        higher = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(best - higher)
        total = total * fade + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(kind), v, mixed * fade[:, None], input_precision="ieee")
        best = higher
    tl.store(out_at, (mixed / total[:, None]).to(kind), mask=out_mask)


@dataclass(frozen=True)
class Rotation:
    """What turns queries and keys on their way into the attention.

    Attributes:
        cosines, sines: [positions, D / 2] in fp32.
        query_norm, key_norm: [D] weights of an RMS norm over each head before the rotation, or None.
    """

    cosines: Tensor
    sines: Tensor
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    epsilon: float = 0.0


def attend_new(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Rows,
    rule: AttentionRule,
    rotation: Rotation | None = None,
) -> Tensor:
    """Attention of the first N rows' new tokens, whose keys and values go to the memory on the way.

    Args:
        query: [N, H, D]; `key` [N, K, D] and `value` [N, K, E]: each with any strides but the last.
        keys: [K, tokens, D] memory of the layer, `values` [K, tokens, E].
        rotation: None where queries and keys are turned already.

    Returns:
        [N, H, E]; zeros for rows that do not run.
    """
    count, heads, dim = query.shape
    kv_heads, wide = key.shape[1], value.shape[2]
    group = heads // kv_heads
    out = torch.empty((count, heads, wide), dtype=query.dtype, device=query.device)
    tile = triton.next_power_of_2(max(16, dim))
    narrow = tile <= 64
    num_keys = 32 if narrow or query.element_size() > 2 or tile > 128 else 64
    unused = rows.reals
    norms = (rotation.query_norm, rotation.key_norm) if rotation and rotation.query_norm is not None else None
    _kernel[(count * kv_heads,)](
        query, key, value, keys, values, out,
        rows.running, rows.position, rows.prompt_length, rows.prompt_start, rows.start,
        rotation.cosines if rotation else unused, rotation.sines if rotation else unused,
        *(norms or (unused, unused)),
        rule.scale * _LOG2_E.value, rotation.epsilon if rotation else 0.0, rule.window or 0, keys.shape[1],
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        KV_HEADS=kv_heads, GROUP=group, D=dim, E=wide,
        GROUP_TILE=triton.next_power_of_2(max(16, group)), D_TILE=tile, E_TILE=triton.next_power_of_2(max(16, wide)),
        KEYS=num_keys, WINDOW=rule.window is not None, SOFTCAP=rule.softcap or 0.0, ROTATE=rotation is not None,
        NORM=norms is not None, STAGES=3 if query.element_size() == 2 else 2,
        num_warps=1 if narrow else 2 if tile <= 128 else 4,
    )  # fmt: skip
    return out
