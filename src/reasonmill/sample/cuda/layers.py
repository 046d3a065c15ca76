"""What lies between the products of a layer, one kernel each, in Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_ACTIVATIONS = 2048


@dataclass(frozen=True)
class NormKind:
    """How an RMS norm multiplies by its weight.

    Attributes:
        adds_one: by 1 + the weight.
        rounds: what was normed is rounded before, as transformers does for most architectures.
    """

    adds_one: bool = False
    rounds: bool = True


@triton.jit
def _norm(
    states, change, weight, out, epsilon,
    H: tl.constexpr, TILE: tl.constexpr, CHANGES: tl.constexpr, ADDS_ONE: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, TILE)
    x = tl.load(states + row * H + h, mask=h < H, other=0.0)
    kind = x.dtype
    if CHANGES:
        x = (x.to(tl.float32) + tl.load(change + row * H + h, mask=h < H, other=0.0).to(tl.float32)).to(kind)
        tl.store(states + row * H + h, x, mask=h < H)
    x = x.to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / H + epsilon)
    if ROUNDS:
        x = x.to(kind).to(tl.float32)
    factor = tl.load(weight + h, mask=h < H, other=0.0).to(tl.float32)
    if ADDS_ONE:
        factor += 1.0
    tl.store(out + row * H + h, (x * factor).to(kind), mask=h < H)


def add_and_norm(
    states: Tensor, change: Tensor | None, weight: Tensor, epsilon: float, kind: NormKind = NormKind()
) -> Tensor:
    """Adds `change` to the states in place, if there is one; returns their RMS norm times `weight` [H].

    Args:
        states: [..., H], without gaps in memory; `change` as they lie.

    Returns:
        As the states lie.
    """
    out = torch.empty_like(states)
    hidden = states.shape[-1]
    _norm[(states.numel() // hidden,)](
        states, states if change is None else change, weight, out, epsilon,
        H=hidden, TILE=triton.next_power_of_2(hidden), CHANGES=change is not None,
        ADDS_ONE=kind.adds_one, ROUNDS=kind.rounds,
        num_warps=1 if hidden <= 256 else 4 if hidden <= 1024 else 8,
    )  # fmt: skip
    return out


@triton.jit
def _gate(both, out, SIZE: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    gate = tl.load(both + row * 2 * SIZE + i, mask=i < SIZE, other=0.0)
    up = tl.load(both + row * 2 * SIZE + SIZE + i, mask=i < SIZE, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * SIZE + i, gated.to(gate.dtype), mask=i < SIZE)


def gated(both: Tensor) -> Tensor:
    """silu(gate) * up of both [N, 2 I], the gate's I first."""
    size = both.shape[1] // 2
    out = both.new_empty((both.shape[0], size))
    _gate[(both.shape[0], triton.cdiv(size, _ACTIVATIONS))](both, out, SIZE=size, TILE=_ACTIVATIONS, num_warps=8)
    return out
