"""Logits in chunks: of each its largest and smallest one, and the sum of its exponentials; in Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonmill.sample.cuda.rows import Rows

CHUNK = 2048


@triton.jit
def scaled(logits, temperature, row, columns, V: tl.constexpr, SOFTCAP: tl.constexpr):
    """A row's logits after soft cap and temperature; -inf behind the vocabulary."""
    x = tl.load(logits + row.to(tl.int64) * V + columns, mask=columns < V, other=float("-inf"))
    if SOFTCAP > 0:
        x = SOFTCAP * (1.0 - 2.0 / (tl.exp(x * (2.0 / SOFTCAP)) + 1.0))
        x = tl.where(columns < V, x, float("-inf"))
    heat = tl.load(temperature + row)
    return x * (1.0 / tl.where(heat > 0, heat, 1.0))  # a greedy row has the log-probs of temperature 1


@triton.jit
def _sum_chunks(
    logits, temperature, running, tops, lows, sums, V: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr
):  # fmt: skip
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    if tl.load(running + row) != 1:
        return
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    x = scaled(logits, temperature, row, columns, V, SOFTCAP)
    top = tl.max(x, 0)
    at = row * tl.num_programs(0) + chunk
    tl.store(tops + at, top)
    tl.store(lows + at, tl.min(tl.where(columns < V, x, float("inf")), 0))
    # What is not finite makes the sum NaN: an exponential of -inf would be a plain 0.
    is_finite = (columns >= V) | (tl.abs(x) < float("inf"))
    tl.store(sums + at, tl.sum(tl.where(is_finite, tl.exp(x - top), float("nan")), 0))


class Chunks:
    """What is known of the chunks of each row.

    Attributes:
        count: chunks of a row.
        tops, lows: [rows, count] largest and smallest logit.
        sums: [rows, count] exponentials of what the logits fall short of the largest in their chunk, added up; NaN
            where a logit is not finite.
        kind: what kernels are compiled for.
    """

    def __init__(self, num_rows: int, vocabulary: int, softcap: float | None, device: torch.device) -> None:
        self.count = triton.cdiv(vocabulary, CHUNK)
        self.tops, self.lows, self.sums = torch.zeros((3, num_rows, self.count), device=device)
        self.kind: dict[str, Any] = {"V": vocabulary, "SOFTCAP": softcap or 0.0}
        self.tile = triton.next_power_of_2(self.count)

    def take(self, logits: Tensor, rows: Rows) -> None:
        """Looks at logits [n, V] of the first n rows."""
        _sum_chunks[(self.count, logits.shape[0])](
            logits, rows.temperature, rows.running, self.tops, self.lows, self.sums,
            CHUNK=CHUNK, **self.kind, num_warps=4,
        )  # fmt: skip
