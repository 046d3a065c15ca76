"""Attention over sequences of any lengths that lie end to end, without padding: torch's own flash attention, on CUDA.

The kernels read a key head once for all query heads that share it, know windows, and keep an order of summing in the
backward pass where `torch.use_deterministic_algorithms` asks for one. They are operators of their own here, so that
compiled layers hold them; torch's `varlen_attn` has grouped heads in its newest versions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256
_HEAD_MULTIPLE = 8
_NO_WINDOW = -1


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
    states = (query.contiguous(), key.contiguous(), value.contiguous())
    before = _NO_WINDOW if window is None else window - 1
    out: Tensor = _forward(*states, extent.ends, extent.longest, scale, before)[0]
    return out


@torch.library.custom_op("reasonmill::flash", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, normalisers [H, N] and the state of a random generator that draws nothing; `before`: how many
    positions before its own each sees, -1 for all."""
    out, normalisers, state, _, _ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        *_geometry(ends, longest, before),
        False,
        scale=scale,
        **_window(before),
    )
    return out, normalisers, state


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    normalisers = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
    return torch.empty_like(query), normalisers, query.new_empty(2, dtype=torch.uint64)


@torch.library.custom_op("reasonmill::flash_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normalisers: Tensor,
    state: Tensor,
    ends: Tensor,
    longest: int,
    scale: float,
    before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = torch.ops.aten._flash_attention_backward(
        grad,
        query,
        key,
        value,
        out,
        normalisers,
        *_geometry(ends, longest, before),
        state,
        torch.empty(0, device=grad.device),
        scale=scale,
        **_window(before),
    )
    return of_query, of_key, of_value


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, normalisers: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, ends, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, ends)


def _gradients(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)


def _geometry(ends: Tensor, longest: int, before: int) -> tuple[Any, ...]:
    """Queries' and keys' ends and longest, no dropout, and whether all that came before is seen."""
    return ends, ends, longest, longest, 0.0, before == _NO_WINDOW


def _window(before: int) -> dict[str, int | None]:
    whole = before == _NO_WINDOW
    return {"window_size_left": None if whole else before, "window_size_right": None if whole else 0}
