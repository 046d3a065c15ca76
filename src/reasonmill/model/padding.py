"""Sequences that lie end to end, padded on the right to the longest of them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Padding:
    """Sequences [H, N, D] that lie end to end, padded to [B, H, L, D] and back.

    Attributes:
        lengths: of the sequences.
        longest: that of the longest, L.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str) -> None:
        sizes = torch.tensor(lengths)
        self.lengths = lengths
        self.longest = int(sizes.max())
        self._shape = (len(lengths), self.longest)
        starts = torch.cumsum(sizes, 0) - sizes
        columns = torch.arange(self.longest)
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

    def pad_with_zeros(self, states: Tensor) -> Tensor:
        """As `pad`, with 0 as padding and without a gradient."""
        rows = states.transpose(0, 1)
        if not self._is_dense:
            rows = rows.index_select(0, self._row_index).mul_(self._inside[:, None, None])
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
