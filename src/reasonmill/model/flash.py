"""Attention over sequences of any lengths that lie end to end, without padding: torch's own flash attention, on CUDA.

The kernels read a key head once for all query heads that share it, know windows, and keep an order of summing in the
backward pass where `torch.use_deterministic_algorithms` asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256
_HEAD_MULTIPLE = 8


@dataclass(frozen=True)
class Extent:
    """Where sequences lie: `ends` [B + 1] int32 on the device, 0 first, and the length of the longest."""

    ends: Tensor
    longest: int


def runs_flash(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether the kernels know this attention: on CUDA, in half precision, without a soft cap, and with heads that are
    equally wide in query [H, N, D] and value [K, N, E], by 8, and no wider than 256."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in _DTYPES
        and softcap is None
        and width == value.shape[-1]
        and width % _HEAD_MULTIPLE == 0
        and width <= _WIDEST_HEAD
    )


def attend_flash(query: Tensor, key: Tensor, value: Tensor, extent: Extent, scale: float, window: int | None) -> Tensor:
    """query [N, H, D], key and value [N, K, D] of the same positions -> [N, H, D]; a position sees itself and those
    before it in its sequence, at most `window` in all."""
    result: Tensor = _Flash.apply(query, key, value, extent, scale, window)  # type: ignore[no-untyped-call]
    return result


class _Flash(torch.autograd.Function):
    """Written against the operators, because torch's `varlen_attn` has grouped heads in its newest versions only."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, extent: Extent, scale: float, window: int | None
    ) -> Tensor:
        ctx.geometry = (extent.ends, extent.ends, extent.longest, extent.longest, 0.0, window is None)
        ctx.options = {
            "scale": scale,
            "window_size_left": None if window is None else window - 1,
            "window_size_right": None if window is None else 0,
        }
        out, normalisers, noise, unused, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, *ctx.geometry, False, **ctx.options
        )
        ctx.save_for_backward(query, key, value, out, normalisers, noise, unused)
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *states, noise, unused = ctx.saved_tensors
        gradients = torch.ops.aten._flash_attention_backward(
            grads[0].contiguous(), *states, *ctx.geometry, noise, unused, **ctx.options
        )
        return *gradients, None, None, None
