"""Products with a large network's weights on a CPU, for the few rows that a step of sampling has.

MKL reads a weight for so few rows in pieces that it arranges anew each time. A copy that is arranged once is read a
third faster (SmolLM2-135M, 8 to 16 rows; docs/performance.md), and costs the weights' memory while something runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasonmill.model.decoder import Decoder
from reasonmill.model.joined import is_large

# For fewer rows a product waits for the memory alone.
_FEWEST = 4


class PackedWeights:
    """Copies of the weights of linear layers, made when they are first used and kept until `drop`.

    Layers with an adapter are left as they are.

    Args:
        decoder: what samples; nothing is copied of it where that would not pay.
        modules: those whose layers are used in a step.
    """

    def __init__(self, decoder: Decoder, modules: Iterable[nn.Module]) -> None:
        linears = [module for module in modules if type(module) is nn.Linear]
        pays = (
            decoder.device.type == "cpu"
            and decoder.dtype == torch.float32
            and torch.backends.mkl.is_available()
            and is_large(decoder.network)
        )
        self._linears = linears if pays else []
        self._packed: list[_Packed] = []
        self._rows = 0

    def num_bytes(self, rows: int) -> int:
        """Bytes of all copies where so many rows are read."""
        weights = [linear.weight for linear in self._linears] if rows >= _FEWEST else []
        return sum(weight.numel() * weight.element_size() for weight in weights)

    def drop(self) -> None:
        """Lets go of the copies: they are of no use, or of weights that have changed."""
        self._packed.clear()
        self._rows = 0

    @contextmanager
    def used(self, rows: int) -> Iterator[int]:
        """In the block, linear layers that read so many rows or fewer use the copies.

        Yields:
            The number of rows that the copies are made for, which is read fastest; 0 where there are none.
        """
        if not self._linears or rows < _FEWEST:
            yield 0
            return
        # Copies are made for a number of rows. Few sequences less don't pay for new ones.
        if not 3 * self._rows <= 4 * rows <= 4 * self._rows:
            self.drop()
            self._rows = _rounded(rows)
            self._packed = [_Packed.of(linear, self._rows) for linear in self._linears]
        replaced: list[Any] = list(self._linears)
        for linear, packed in zip(replaced, self._packed, strict=True):
            linear.forward = packed.product
        try:
            yield self._rows
        finally:
            for linear in replaced:
                del linear.forward


@dataclass(frozen=True)
class _Packed:
    """A linear layer, and a copy of its weight [O, I] for products of so many rows."""

    linear: nn.Linear
    weight: Tensor
    rows: int

    @classmethod
    def of(cls, linear: nn.Linear, rows: int) -> _Packed:
        return cls(linear, torch.ops.mkl._mkl_reorder_linear_weight(linear.weight.detach(), rows), rows)

    def product(self, states: Tensor) -> Tensor:
        """What the layer makes of states [..., I]: [..., O]."""
        linear = self.linear
        if states.ndim == 2 and states.shape[0] == self.rows:
            whole: Tensor = torch.ops.mkl._mkl_linear(states, self.weight, linear.weight, linear.bias, self.rows)
            return whole
        flat = states.reshape(-1, states.shape[-1])
        rows = flat.shape[0]
        if rows > self.rows:
            return F.linear(states, linear.weight, linear.bias)
        if rows < self.rows:
            flat = F.pad(flat, (0, 0, 0, self.rows - rows))
        out: Tensor = torch.ops.mkl._mkl_linear(flat, self.weight, linear.weight, linear.bias, self.rows)
        return out[:rows].view(*states.shape[:-1], -1)


def _rounded(rows: int) -> int:
    """The number of rows that copies are made for: up to an eighth more."""
    unit = max(8, (1 << (rows - 1).bit_length()) // 8)
    return -(-rows // unit) * unit
