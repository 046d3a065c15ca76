"""Attention over packed rows, registered with transformers under the name "reasonmill".

A model runs on one row of tokens that holds many sequences; the `layout` that goes with the call knows where each
sequence lies and which keys a token may see (model/packed.py and sample/ have them). Models pass the layout through to
this function untouched.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from reasonmill.errors import UnsupportedModel

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


def attend_causally(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """query [B, H, L, D], key [B, K, L, D], value [B, K, L, E] of the same positions -> [B, H, L, E]."""
    length = query.shape[2]
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_heads(key, repeats), repeat_heads(value, repeats)
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


def repeat_heads(states: Tensor, repeats: int) -> Tensor:
    """[B, K, L, D] -> [B, K * repeats, L, D], the copies of a head after each other."""
    if repeats == 1:
        return states
    batch, heads, length, dim = states.shape
    return states[:, :, None].expand(batch, heads, repeats, length, dim).reshape(batch, heads * repeats, length, dim)
