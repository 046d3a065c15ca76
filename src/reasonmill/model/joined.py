"""Weights of projections that read the same states, side by side, so that one product does for all of them.

The parameters stay what they are, by name and shape: each is a part of one longer tensor. Whoever trains, saves or
copies them sees no difference, and a sampler needs no copy of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Weights of linear layers from which on a sampler on a CPU reads copies of them (`sample/packed.py`): fewer stay in a
# processor's cache as they are.
_LARGE = 1 << 25
# Decoders whose layers are those of Llama: norm, attention, norm, gated product; biases and norms of heads as may be.
_LIKE_LLAMA = {f"transformers.models.{name}.modeling_{name}" for name in ("llama", "qwen2", "qwen3")}


def is_like_llama(network: PreTrainedModel) -> bool:
    """Whether the network's layers compute what those of Llama do."""
    config: Any = network.config
    return (
        type(network).__module__ in _LIKE_LLAMA
        and config.hidden_act == "silu"
        and not getattr(config, "mlp_bias", False)
    )


def is_large(network: PreTrainedModel) -> bool:
    """Whether a CPU reads the network's weights from its memory at each step."""
    linears = (module for module in network.modules() if isinstance(module, nn.Linear))
    return sum(linear.weight.numel() for linear in linears) >= _LARGE


@torch.no_grad()
def join_projections(network: PreTrainedModel) -> None:
    """Puts weights and biases side by side: of queries, keys and values, and of the gate and what it gates."""
    if not is_like_llama(network):
        return
    for layer in network.get_decoder().layers:
        for linears in joint_projections(layer):
            _join([linear.weight for linear in linears])
            if linears[0].bias is not None:
                _join([linear.bias for linear in linears])


def joint_projections(layer: Any) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Projections of a layer that read the same states."""
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def _join(parts: Sequence[Tensor]) -> None:
    whole = torch.cat([part.data for part in parts])
    for part, data in zip(parts, whole.split([part.shape[0] for part in parts]), strict=True):
        part.data = data


def joined(parts: Sequence[Tensor]) -> Tensor | None:
    """The one tensor that has all the parts in order; None where they do not lie side by side."""
    first = parts[0].detach()
    place = first.storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or part.storage_offset() != place:
            return None
        place += part.numel()
    rows = sum(part.shape[0] for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
