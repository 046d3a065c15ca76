"""How new tokens are read: by transformers' own modules, their norms by a kernel each; or by few kernels, where we know
what those compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasonmill.algo.logprobs import product_in_fp32
from reasonmill.model.attention import AttentionRule
from reasonmill.model.decoder import Decoder
from reasonmill.model.joined import is_like_llama, joined, joint_projections
from reasonmill.model.lora import LoraLinear
from reasonmill.sample.cuda.attention import Rotation, attend_new
from reasonmill.sample.cuda.layers import add_and_norm, gated
from reasonmill.sample.cuda.memory import Memory
from reasonmill.sample.cuda.modules import norms_by_kernel, replaced
from reasonmill.sample.cuda.rows import Rows

Logits = Callable[[int], Tensor]
"""Reads the new token of each of the first n rows; fp32 logits [n, V] of the next, before any soft cap."""


def logits_of(decoder: Decoder, memory: Memory, rows: Rows) -> Logits:
    """By the fewest kernels for a decoder like Llama whose projections lie side by side, else by its modules."""
    hidden = _by_kernels(decoder, memory, rows) or _by_modules(decoder, memory, rows)

    def logits(count: int) -> Tensor:
        return product_in_fp32(hidden(count), decoder.head_weight.T)

    return logits


class NewTokenLayout:
    """One new token of each of the first n rows, after what their sequences have in memory."""

    def __init__(self, memory: Memory, rows: Rows) -> None:
        self._memory = memory
        self._rows = rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        query, key, value = (_rows_first(states) for states in (query, key, value))
        return attend_new(query, key, value, self._memory.keys[layer], self._memory.values[layer], self._rows, rule)


def _rows_first(states: Tensor) -> Tensor:
    """[H, N, D] -> [N, H, D], the numbers of a head side by side."""
    return (states if states.stride(2) == 1 else states.contiguous()).transpose(0, 1)


def _by_modules(decoder: Decoder, memory: Memory, rows: Rows) -> Callable[[int], Tensor]:
    layout = NewTokenLayout(memory, rows)
    forwards = norms_by_kernel(decoder.network.get_decoder())

    def hidden(count: int) -> Tensor:
        with replaced(forwards):
            return decoder.hidden(rows.token[:count], rows.position[:count], layout)

    return hidden


def _by_kernels(decoder: Decoder, memory: Memory, rows: Rows) -> Callable[[int], Tensor] | None:
    """None where the network is none that this is right for."""
    if not is_like_llama(decoder.network):
        return None
    model: Any = decoder.network.get_decoder()
    positions = torch.arange(decoder.config.max_position_embeddings, device=decoder.device)[None]
    cosines, sines = model.rotary_emb(decoder.head_weight[:1], positions)
    half = cosines.shape[-1] // 2
    tables = cosines[0, :, :half].float().contiguous(), sines[0, :, :half].float().contiguous()
    layers: list[_Layer] = []
    for module in model.layers:
        attention, (projections, gates) = module.self_attn, joint_projections(module)
        qkv, gate_up = joined([p.weight for p in projections]), joined([p.weight for p in gates])
        bias = None if projections[0].bias is None else joined([p.bias for p in projections])
        if qkv is None or gate_up is None or (bias is None) != (projections[0].bias is None):
            return None
        if 2 * half != attention.head_dim:
            return None
        norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        query_norm, key_norm = (None if norm is None else norm.weight for norm in norms)
        epsilon = 0.0 if norms[0] is None else norms[0].variance_epsilon
        layers.append(_Layer(module, qkv, bias, gate_up, Rotation(*tables, query_norm, key_norm, epsilon)))

    def hidden(count: int) -> Tensor:
        states = F.embedding(rows.token[:count], model.embed_tokens.weight)
        change: Tensor | None = None
        for number, layer in enumerate(layers):
            change = layer(states, change, memory.keys[number], memory.values[number], rows)
        return add_and_norm(states, change, model.norm.weight, model.norm.variance_epsilon)

    return hidden


class _Layer:
    """A layer like Llama's: four products and four kernels.

    Args:
        qkv: weight of the joined projections of queries, keys and values, with their `bias`; `gate_up` likewise.
    """

    def __init__(self, module: Any, qkv: Tensor, bias: Tensor | None, gate_up: Tensor, rotation: Rotation) -> None:
        attention = module.self_attn
        self._qkv, self._bias, self._gate_up, self._rotation = qkv.T, bias, gate_up.T, rotation
        self._dim: int = attention.head_dim
        self._kv_heads: int = attention.k_proj.weight.shape[0] // self._dim
        self._rule = AttentionRule(attention.scaling, getattr(attention, "sliding_window", None), None)
        self._adapted = [_adapted(linears) for linears in joint_projections(module)]
        self._out: nn.Linear = attention.o_proj
        self._down: nn.Linear = module.mlp.down_proj
        self._norms = module.input_layernorm, module.post_attention_layernorm

    def __call__(self, states: Tensor, change: Tensor | None, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
        """Adds to the states [N, H] what the layer before left to add, and what attention adds; returns the rest."""
        first, second = self._norms
        normed = add_and_norm(states, change, first.weight, first.variance_epsilon)
        qkv = normed @ self._qkv if self._bias is None else torch.addmm(self._bias, normed, self._qkv)
        _add(qkv, normed, self._adapted[0])
        heads = qkv.unflatten(1, (-1, self._dim))
        query, key, value = heads.split([heads.shape[1] - 2 * self._kv_heads, self._kv_heads, self._kv_heads], dim=1)
        mixed = attend_new(query, key, value, keys, values, rows, self._rule, self._rotation)
        normed = add_and_norm(states, self._out(mixed.flatten(1)), second.weight, second.variance_epsilon)
        gate_up = normed @ self._gate_up
        _add(gate_up, normed, self._adapted[1])
        rest: Tensor = self._down(gated(gate_up))
        return rest


def _adapted(linears: Sequence[nn.Linear]) -> list[tuple[LoraLinear, int]]:
    """Those of joined projections that have an adapter, with the column of the joint product where each begins."""
    ends = accumulate(linear.out_features for linear in linears)
    pairs = zip(linears, ends, strict=True)
    return [(linear, end - linear.out_features) for linear, end in pairs if isinstance(linear, LoraLinear)]


def _add(product: Tensor, states: Tensor, adapted: Sequence[tuple[LoraLinear, int]]) -> None:
    """Adds what adapters say of the states to the columns of their projections."""
    for linear, first in adapted:
        product[:, first : first + linear.out_features] += linear.added(states)
