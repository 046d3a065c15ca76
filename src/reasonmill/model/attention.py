"""Attention over packed rows, registered with transformers under the name "reasonmill".

A model runs on one row of tokens that holds many sequences; the `layout` that goes with the call knows where each
sequence lies and which keys a token may see. Models pass the layout through to this function untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from reasonmill.errors import UnsupportedModel
from reasonmill.model.flash import Extent, attend_flash, runs_flash

NAME = "reasonmill"
# What some architectures pass along and our attention honours or may ignore; anything else is refused by name.
_HARMLESS = frozenset(
    {"dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits",
     "cache_position", "logits_to_keep", "position_embeddings", "past_key_values", "num_items_in_batch",
     "input_ids", "return_dict"}
)  # fmt: skip


class Layout(Protocol):
    """Where the sequences of a row lie."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """query [H, N, D], key [K, N, D], value [K, N, E] of the row's tokens; returns [N, H, E]."""


@dataclass(slots=True)
class AttentionRule:
    """How one layer attends: scale, sliding window (None: everything before) and soft cap of the scores."""

    scale: float
    window: int | None
    softcap: float | None


def _reasonmill_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    layer = 0
    # One compiled layer serves all of a network: what differs between them must not be looked at in it. Compiled are
    # only layers that ran before as they are (learn/layers.py), and no layout that asks for a layer's number.
    if not torch.compiler.is_compiling():
        layer = cast(int, module.layer_idx)
        refused = _refused_parts(module, attention_mask, sliding_window, others)
        if refused:
            raise UnsupportedModel(
                f"{type(module).__name__} uses {', '.join(refused)} in its attention, which the native engine can't "
                "run",
                fix="use another sampler backend, or another model",
            )
    rule = AttentionRule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return layout.attend(layer, query[0], key[0], value[0], rule)[None], None


def _refused_parts(
    module: nn.Module, attention_mask: Tensor | None, sliding_window: int | None, others: dict[str, Any]
) -> list[str]:
    """What the call asks for beyond a causal mask, a window, a scale and a soft cap."""
    others = dict(others)
    refused = []
    if others.pop("is_causal", None) is False:
        refused.append("is_causal=False")
    # transformers builds no mask for an attention function that it does not know: this one is the model's own.
    if attention_mask is not None:
        refused.append("attention_mask")
    if sliding_window is None and _mask_has_window(module):
        refused.append("a sliding window by mask alone")
    return refused + sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)


def _mask_has_window(module: nn.Module) -> bool:
    config: Any = getattr(module, "config", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return bool(layer_types[module.layer_idx] == "sliding_attention")
    kind: Any = type(config)
    return _knows_window(kind) and config.sliding_window is not None


@cache
def _knows_window(config: type) -> bool:
    """Whether a window is a setting of the architecture, and not one that a checkpoint happens to carry along."""
    return "sliding_window" in inspect.signature(config).parameters


AttentionInterface.register(NAME, _reasonmill_attention)


class PackedLayout:
    """Whole sequences end to end: each token sees those before it in its own sequence.

    On CUDA they attend as they lie, where flash attention knows how (`runs_flash`). Elsewhere they are padded on the
    right to the longest of the row while they attend. Causal attention never looks to the right, so that the padding
    needs no mask.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str) -> None:
        self._lengths = lengths
        self._device = torch.device(device)
        self._extent = self._on_device() if self._device.type == "cuda" else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        if self._extent is not None and runs_flash(query, value, rule.softcap):
            states = (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))
            return attend_flash(*states, self._extent, rule.scale, rule.window)
        padded: Tensor = self._attend_padded(query, key, value, rule)
        return padded

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _attend_padded(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        padding = self._padding
        out = attend_causally(padding.pad(query), padding.pad(key), padding.pad(value), rule)  # [B, H, L, E]
        return padding.unpad(out)

    def _on_device(self) -> Extent:
        ends = torch.zeros(len(self._lengths) + 1, dtype=torch.int32)
        ends[1:] = torch.cumsum(torch.tensor(self._lengths), 0)
        return Extent(ends.to(self._device), max(self._lengths))

    @cached_property
    def _padding(self) -> _Padding:
        return _Padding(self._lengths, self._device)


class _Padding:
    """Sequences [H, N, D] that lie end to end, padded to [B, H, L, D] and back."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str) -> None:
        sizes = torch.tensor(lengths)
        self._shape = (len(lengths), int(sizes.max()))
        starts = torch.cumsum(sizes, 0) - sizes
        columns = torch.arange(self._shape[1])
        inside = columns < sizes[:, None]
        self._is_dense = bool(inside.all())
        # Padding reads token 0 of the row: any real number would do, since nothing looks at the result.
        self._row_index = torch.where(inside, starts[:, None] + columns, 0).flatten().to(device)
        self._inside = inside.flatten().to(device)
        self._kept = inside.flatten().nonzero().squeeze(1).to(device)

    def pad(self, states: Tensor) -> Tensor:
        """[H, N, D] -> [B, H, L, D]"""
        rows = states.transpose(0, 1)
        if not self._is_dense:
            rows = _Pad.apply(rows, self._row_index, self._kept)  # type: ignore[no-untyped-call]
        return rows.reshape(*self._shape, *rows.shape[1:]).transpose(1, 2)

    def unpad(self, out: Tensor) -> Tensor:
        """[B, H, L, E] -> [N, H, E]"""
        out = out.transpose(1, 2).flatten(0, 1)
        if self._is_dense:
            return out
        kept: Tensor = _Unpad.apply(out, self._kept, self._row_index, self._inside)  # type: ignore[no-untyped-call]
        return kept


class _Pad(torch.autograd.Function):
    """Rows [N, H, D] to padded ones [B * L, H, D].

    The gradient of the padding is 0 and is left out. Left to autograd it would be added to that of token 0, which takes
    long, as all of it meets in one place.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, row_index: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return rows.index_select(0, row_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return grads[0].index_select(0, kept), None, None


class _Unpad(torch.autograd.Function):
    """Padded rows [B * L, H, E] to those of tokens [N, H, E]; its gradient is copied, and nothing is added up."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, kept: Tensor, row_index: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(row_index, inside)
        return padded.index_select(0, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        row_index, inside = ctx.saved_tensors
        return grads[0].index_select(0, row_index).mul_(inside[:, None, None]), None, None, None


def attend_causally(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """query [B, H, L, D], key [B, K, L, D], value [B, K, L, E] of the same positions -> [B, H, L, E]."""
    length = query.shape[2]
    repeats = query.shape[1] // key.shape[1]
    key, value = _repeat_heads(key, repeats), _repeat_heads(value, repeats)
    if rule.softcap is None and (rule.window is None or rule.window >= length):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=rule.scale)
    offsets = torch.arange(length, device=query.device)
    distance = offsets[:, None] - offsets
    visible = (distance >= 0) & (distance < (rule.window or length))
    return attend_where(query, key, value, visible, rule)


def attend_where(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rule: AttentionRule) -> Tensor:
    """Attention of query [B, H, Q, D] to key [B, H, L, D] where `visible` (broadcast to [B, H, Q, L]) is True."""
    if rule.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=rule.scale)
    scores = rule.softcap * torch.tanh(query @ key.transpose(2, 3) * (rule.scale / rule.softcap))
    scores = scores.float().masked_fill(~visible, float("-inf"))
    return torch.softmax(scores, dim=-1).to(value.dtype) @ value


def _repeat_heads(states: Tensor, repeats: int) -> Tensor:
    if repeats == 1:
        return states
    batch, heads, length, dim = states.shape
    return states[:, :, None].expand(batch, heads, repeats, length, dim).reshape(batch, heads * repeats, length, dim)
