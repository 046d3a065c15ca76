"""Steps of sampling through layers like Llama's, by few operations.

On a CPU the many small ones of modules take a fifth as long as a large network's products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasonmill.model.attention import AttentionRule, Layout
from reasonmill.model.decoder import Decoder
from reasonmill.model.joined import is_like_llama, joined, joint_projections


class LeanSteps:
    """Reads one token of each sequence as the decoder's network would, by the weights that it has at the time."""

    def __init__(self, model: Any, head: nn.Linear, layers: Sequence[_Layer]) -> None:
        self._model = model
        self._layers = layers
        self.modules: list[nn.Module] = [head, *(module for layer in layers for module in layer.modules)]

    @classmethod
    def of(cls, decoder: Decoder) -> LeanSteps | None:
        """None where the layers compute something else, or do not have their projections side by side."""
        if not is_like_llama(decoder.network):
            return None
        model: Any = decoder.network.get_decoder()
        layers = []
        for number, module in enumerate(model.layers):
            joints = [_joint(linears) for linears in joint_projections(module)]
            if joints[0] is None or joints[1] is None:
                return None
            layers.append(_Layer(number, module, joints[0], joints[1]))
        head: Any = decoder.network.get_output_embeddings()
        return cls(model, head, layers)

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout, rows: int) -> Tensor:
        """Final hidden states [rows, H] of token ids [n] at the positions [n] of their sequences.

        Args:
            rows: that products are made of, n or more: of those behind the n, nothing is said.
        """
        states = _filled(F.embedding(tokens, self._model.embed_tokens.weight), rows)
        cosines, sines = self._model.rotary_emb(states, positions[None])
        half = sines.shape[-1] // 2
        signed = torch.cat([-sines[0, :, :half], sines[0, :, half:]], dim=-1)
        turn = cosines[0, :, None], signed[:, None]  # [n, 1, D] each
        for layer in self._layers:
            layer.add_to(states, tokens.shape[0], turn, layout)
        return _normed(self._model.norm, states)


class _Layer:
    """One layer.

    Attributes:
        modules: its linear layers.

    Args:
        number: its place among the layers.
        qkv: queries, keys and values in one; `gate_up` likewise.
    """

    def __init__(self, number: int, module: Any, qkv: nn.Linear, gate_up: nn.Linear) -> None:
        attention = module.self_attn
        self._number, self._qkv, self._gate_up = number, qkv, gate_up
        self._out, self._down = attention.o_proj, module.mlp.down_proj
        self.modules: list[nn.Module] = [qkv, self._out, gate_up, self._down]
        self._before, self._between = module.input_layernorm, module.post_attention_layernorm
        self._of_query, self._of_key = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._dim: int = attention.head_dim
        self._kv_heads: int = attention.k_proj.out_features // self._dim
        self._rule = AttentionRule(attention.scaling, getattr(attention, "sliding_window", None), None)

    def add_to(self, states: Tensor, count: int, turn: tuple[Tensor, Tensor], layout: Layout) -> None:
        """Adds what the layer says to the states [rows, H], of which the first `count` are of sequences."""
        heads = self._qkv(_normed(self._before, states))[:count].unflatten(1, (-1, self._dim))
        turning, value = heads[:, : -self._kv_heads], heads[:, -self._kv_heads :]
        if self._of_query is not None and self._of_key is not None:
            own = turning[:, : -self._kv_heads], turning[:, -self._kv_heads :]
            turning = torch.cat([self._of_query(own[0]), self._of_key(own[1])], dim=1)
        turned = _turned(turning, turn).transpose(0, 1)
        query, key = turned[: -self._kv_heads], turned[-self._kv_heads :]
        mixed = layout.attend(self._number, query, key, value.transpose(0, 1), self._rule)
        states.add_(self._out(_filled(mixed.flatten(1), states.shape[0])))
        gate, up = self._gate_up(_normed(self._between, states)).chunk(2, dim=1)
        states.add_(self._down(F.silu(gate).mul_(up)))


def _joint(linears: Sequence[nn.Linear]) -> nn.Linear | None:
    """One linear layer that makes what all of them make, of their own numbers; None where these are not in one place,
    or one of them has an adapter."""
    weight = joined([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears if linear.bias is not None]
    bias = joined(biases) if biases else None
    if weight is None or (biases and bias is None) or any(type(linear) is not nn.Linear for linear in linears):
        return None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


def _normed(norm: Any, states: Tensor) -> Tensor:
    """The RMS norm of states [n, H]: x / sqrt(|x|^2 / H + epsilon), times its weight, by five operations."""
    size = states.shape[-1]
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    root = torch.hypot(length, length.new_tensor(math.sqrt(size * norm.variance_epsilon))).div_(math.sqrt(size))
    return (states / root).mul_(norm.weight)


def _turned(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Heads [n, K, D] turned by their position, whose sines [n, 1, D] are negative in the first half."""
    cosines, sines = turn
    return torch.addcmul(heads * cosines, heads.roll(heads.shape[-1] // 2, -1), sines)


def _filled(states: Tensor, rows: int) -> Tensor:
    """States [n, H] with rows of zeros behind them."""
    missing = rows - states.shape[0]
    return F.pad(states, (0, 0, 0, missing)) if missing else states
