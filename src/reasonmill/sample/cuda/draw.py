"""One token for each running row, drawn by inversion in Triton; what follows from it for the row is done on the way.

The logits of a row are cut into chunks. First the sums of exponentials of all chunks are taken, of those tokens that
stay where rows filter by top-k or top-p; then the row's uniform number, the same that `sample.drawing.uniform` gives,
finds its chunk and in it its token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonmill.sample.cuda.border import Borders
from reasonmill.sample.cuda.chunks import CHUNK, Chunks, scaled
from reasonmill.sample.cuda.memory import Memory
from reasonmill.sample.cuda.rows import Rows

# SplitMix64 as in sample.drawing.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 30)) * _MIX1
    x = (x ^ (x >> 27)) * _MIX2
    return x ^ (x >> 31)


@triton.jit
def _choose(
    logits, tops, sums, border, stop_tokens, drawn_tokens, drawn_logprobs,
    running, position, token, prompt_length, start, noise_key, limit, temperature, chunks,
    V: tl.constexpr, CHUNK: tl.constexpr, CHUNKS_TILE: tl.constexpr, STOPS: tl.constexpr,
    SOFTCAP: tl.constexpr, FILTERED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if tl.load(running + row) != 1:
        return
    i = tl.arange(0, CHUNKS_TILE)
    chunk_tops = tl.load(tops + row * chunks + i, mask=i < chunks, other=float("-inf"))
    chunk_sums = tl.load(sums + row * chunks + i, mask=i < chunks, other=0.0)
    top = tl.max(chunk_tops, 0)
    weights = chunk_sums * tl.exp(chunk_tops - top)
    cumulative = tl.cumsum(weights, 0)
    total = tl.sum(weights, 0)
    if total != total:  # NaN
        tl.store(running + row, 2)
        return
    reached = tl.max(cumulative, 0)
    at = tl.load(position + row)
    state = _mixed(tl.load(noise_key + row).to(tl.uint64) + (at + 2).to(tl.uint64) * _GOLDEN)
    # All 53 bits of it in fp64, then fp32: what it falls short of 1 must not be lost by the product.
    noise = (state >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)
    target = tl.minimum(noise.to(tl.float32) * reached, reached * (1.0 - 1.0 / 8388608.0))
    greedy = tl.load(temperature + row) == 0
    hit = tl.where(greedy, chunk_tops == top, (cumulative > target) & (weights > 0))
    # Sums are added up in another order for each place, and may be a rounding larger behind the last chunk than at it:
    # a number within that of 1 finds none, and takes the last that has any weight.
    last_chunk = tl.max(tl.where(weights > 0, i, 0), 0)
    chunk = tl.minimum(tl.min(tl.where(hit, i, CHUNKS_TILE), 0), last_chunk)
    before = tl.max(tl.where(i < chunk, cumulative, 0.0), 0)

    c = tl.arange(0, CHUNK)
    x = scaled(logits, temperature, row, chunk * CHUNK + c, V, SOFTCAP)
    mass = tl.exp(x - top)
    if FILTERED:
        mass = tl.where(x >= tl.load(border + row), mass, 0.0)
    within = before + tl.cumsum(mass, 0)
    inside = tl.where(greedy, x == top, (within > target) & (mass > 0))
    # Added up in another order, the chunk may end below the target: then it is the last that stays.
    last = tl.max(tl.where(mass > 0, c, 0), 0)
    place = tl.minimum(tl.min(tl.where(inside, c, CHUNK), 0), last)
    logprob = tl.sum(tl.where(c == place, x, 0.0), 0) - top - tl.log(total)
    chosen = (chunk * CHUNK + place).to(tl.int64)
    out = tl.load(start + row) + at - tl.load(prompt_length + row)
    tl.store(drawn_tokens + out, chosen.to(tl.int32))
    tl.store(drawn_logprobs + out, logprob)
    tl.store(token + row, chosen)
    tl.store(position + row, at + 1)
    stops = tl.load(stop_tokens + tl.arange(0, STOPS))
    is_over = (tl.max(tl.where(stops == chosen, 1, 0), 0) > 0) | (at + 1 >= tl.load(limit + row))
    tl.store(running + row, tl.where(is_over, 0, 1).to(tl.int64))


class Draw:
    """Draws for up to `num_rows` rows.

    Args:
        stop_tokens: those that end a sequence.
        softcap: bound of the logits, or None.
    """

    def __init__(
        self, num_rows: int, vocabulary: int, stop_tokens: Sequence[int], softcap: float | None, device: torch.device
    ) -> None:
        self._chunks = Chunks(num_rows, vocabulary, softcap, device)
        self._borders = Borders(num_rows, vocabulary, self._chunks, device)
        padding = triton.next_power_of_2(max(1, len(stop_tokens))) - len(stop_tokens)
        self._stop_tokens = torch.tensor([*stop_tokens, *[-1] * padding], dtype=torch.int64, device=device)

    def __call__(self, logits: Tensor, rows: Rows, memory: Memory, *, top_k: bool, top_p: bool) -> None:
        """Draws for the first n rows, notes tokens and log-probs in memory, and moves the rows on.

        Args:
            logits: [n, V] in fp32.
            top_k, top_p: whether any row has the filter.
        """
        chunks = self._chunks
        chunks.take(logits, rows)
        if top_k:
            self._borders.find(logits, rows, by_count=True, keeps_border=False)
        if top_p:
            self._borders.find(logits, rows, by_count=False, keeps_border=top_k)
        _choose[(logits.shape[0],)](
            logits, chunks.tops, chunks.sums, self._borders.of, self._stop_tokens, memory.tokens, memory.logprobs,
            rows.running, rows.position, rows.token, rows.prompt_length, rows.start, rows.noise_key, rows.limit,
            rows.temperature, chunks.count,
            **chunks.kind, CHUNK=CHUNK, CHUNKS_TILE=chunks.tile, STOPS=self._stop_tokens.shape[0],
            FILTERED=top_k or top_p, num_warps=8,
        )  # fmt: skip
