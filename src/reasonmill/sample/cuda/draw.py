"""One token for each running row, drawn by inversion in Triton; what follows from it for the row is done on the way.

The logits of a row are cut into chunks. First the sums of exponentials of all chunks are taken; then the row's uniform
number, the same that `sample.drawing.uniform` gives, finds its chunk and in it its token.

Where rows filter by top-k or top-p, the border of what stays is searched for in between, without sorting the
vocabulary: three passes over it make the interval that the border lies in 512 times smaller, and what lies in there is
looked at alone. Tokens as likely as the last one that stays, stay with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonmill.sample.cuda.memory import Memory
from reasonmill.sample.cuda.rows import Rows

_CHUNK = 2048
_SEARCH_CHUNK, _SEARCH_TILE = 4096, 128
_PASSES, _THRESHOLDS = 3, tl.constexpr(8)
# So many tokens of a row are looked at one by one. Where more lie that close to the border, all of those stay.
_CLOSE = 2048
_MASS_UNITS = tl.constexpr(float(1 << 40))
# SplitMix64 as in sample.drawing.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _scaled(logits, temperature, row, columns, V: tl.constexpr, SOFTCAP: tl.constexpr):
    """A row's logits after soft cap and temperature; -inf behind the vocabulary."""
    x = tl.load(logits + row.to(tl.int64) * V + columns, mask=columns < V, other=float("-inf"))
    if SOFTCAP > 0:
        x = SOFTCAP * (1.0 - 2.0 / (tl.exp(x * (2.0 / SOFTCAP)) + 1.0))
        x = tl.where(columns < V, x, float("-inf"))
    heat = tl.load(temperature + row)
    return x * (1.0 / tl.where(heat > 0, heat, 1.0))  # a greedy row has the log-probs of temperature 1


@triton.jit
def _chunk_sums(
    logits, temperature, running, border, tops, lows, sums,
    V: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, FILTERED: tl.constexpr,
):  # fmt: skip
    """Largest and smallest logit of each chunk, and the sum of its exponentials, of those that stay."""
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    if tl.load(running + row) != 1:
        return
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _scaled(logits, temperature, row, columns, V, SOFTCAP)
    top = tl.max(x, 0)
    mass = tl.exp(x - top)
    if FILTERED:
        mass = tl.where(x >= tl.load(border + row), mass, 0.0)
    # What is not finite makes the sum NaN: an exponential of -inf would be a plain 0, and NaN lies above no border.
    is_finite = (columns >= V) | (tl.abs(x) < float("inf"))
    at = row * tl.num_programs(0) + chunk
    tl.store(tops + at, top)
    tl.store(lows + at, tl.min(tl.where(columns < V, x, float("inf")), 0))
    tl.store(sums + at, tl.sum(tl.where(is_finite, mass, float("nan")), 0))


@triton.jit
def _begin_search(
    running, border, above, mass_above, masses, top_of, close, tops, lows, sums, chunks,
    CHUNKS_TILE: tl.constexpr, KEEPS_BORDER: tl.constexpr,
):  # fmt: skip
    """Between the lowest logit that stays and the largest one; the mass that stays, in units of the likeliest's."""
    row = tl.program_id(0)
    if tl.load(running + row) != 1:
        return
    i = tl.arange(0, CHUNKS_TILE)
    at = row * chunks + i
    chunk_tops = tl.load(tops + at, mask=i < chunks, other=float("-inf"))
    chunk_sums = tl.load(sums + at, mask=i < chunks, other=0.0)
    top = tl.max(chunk_tops, 0)
    tl.store(top_of + row, top)
    tl.store(above + row, top)
    tl.store(mass_above + row, 0.0)
    tl.store(masses + row, tl.sum(chunk_sums * tl.exp(chunk_tops - top), 0))
    tl.store(close + row, 0)
    if not KEEPS_BORDER:
        tl.store(border + row, tl.min(tl.load(lows + at, mask=i < chunks, other=float("inf")), 0))


@triton.jit
def _wants(running, top_k, top_p, row, V: tl.constexpr, BY_COUNT: tl.constexpr):
    """Whether the row runs and has the filter."""
    if BY_COUNT:
        k = tl.load(top_k + row)
        wants = (k > 0) & (k < V)
    else:
        wants = tl.load(top_p + row) < 1
    return (tl.load(running + row) == 1) & wants


@triton.jit
def _thresholds(border, above, row):
    """Evenly spread over the interval that the border lies in; the last one is its upper end."""
    t = tl.arange(0, _THRESHOLDS)
    low = tl.load(border + row)
    high = tl.load(above + row)
    return tl.where(t == _THRESHOLDS - 1, high, low + (high - low) * ((t + 1) / _THRESHOLDS)), low, high


@triton.jit
def _masses_above(
    logits, temperature, running, top_k, top_p, border, above, top_of, partial,
    V: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, SOFTCAP: tl.constexpr, BY_COUNT: tl.constexpr,
):  # fmt: skip
    """For each chunk and threshold: how many tokens lie on or above it, or their mass."""
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    thresholds, _low, _high = _thresholds(border, above, row)
    top = tl.load(top_of + row)
    masses = tl.zeros([_THRESHOLDS, TILE], tl.float32)
    for offset in tl.range(0, CHUNK, TILE):
        columns = chunk * CHUNK + offset + tl.arange(0, TILE)
        x = _scaled(logits, temperature, row, columns, V, SOFTCAP)
        weight = tl.where(columns < V, 1.0, 0.0) if BY_COUNT else tl.exp(x - top)
        masses += tl.where(x[None, :] >= thresholds[:, None], weight[None, :], 0.0)
    at = partial + (row * tl.num_programs(0) + chunk) * _THRESHOLDS + tl.arange(0, _THRESHOLDS)
    tl.store(at, tl.sum(masses, 1))


@triton.jit
def _needed(top_k, top_p, masses, row, BY_COUNT: tl.constexpr):
    """How many tokens, or how much mass, must stay."""
    return tl.load(top_k + row).to(tl.float32) if BY_COUNT else tl.load(top_p + row) * tl.load(masses + row)


@triton.jit
def _narrow(
    running, top_k, top_p, border, above, mass_above, masses, partial, chunks,
    V: tl.constexpr, CHUNKS_TILE: tl.constexpr, BY_COUNT: tl.constexpr,
):  # fmt: skip
    """Takes the part of the interval that the border lies in: on its lower end and above enough stays, on its upper
    end and above not."""
    row = tl.program_id(0)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    i = tl.arange(0, CHUNKS_TILE)
    at = partial + (row * chunks + i[:, None]) * _THRESHOLDS + tl.arange(0, _THRESHOLDS)[None, :]
    stays = tl.sum(tl.load(at, mask=i[:, None] < chunks, other=0.0), 0)
    enough = stays >= _needed(top_k, top_p, masses, row, BY_COUNT)
    thresholds, low, high = _thresholds(border, above, row)
    tl.store(border + row, tl.max(tl.where(enough, thresholds, low), 0))
    tl.store(above + row, tl.min(tl.where(enough, high, thresholds), 0))
    tl.store(mass_above + row, tl.max(tl.where(enough, tl.load(mass_above + row), stays), 0))


@triton.jit
def _gather_close(
    logits, temperature, running, top_k, top_p, border, above, close, keys,
    V: tl.constexpr, CHUNK: tl.constexpr, CLOSE: tl.constexpr, SOFTCAP: tl.constexpr, BY_COUNT: tl.constexpr,
):  # fmt: skip
    """The tokens in the interval as integers in the order of their logits; in which order they come does not matter."""
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _scaled(logits, temperature, row, columns, V, SOFTCAP)
    is_close = (x >= tl.load(border + row)) & (x < tl.load(above + row)) & (columns < V)
    place = tl.atomic_add(close + row + tl.zeros([CHUNK], tl.int32), 1, mask=is_close)
    tl.store(keys + row * CLOSE + place, _ordered(x), mask=is_close & (place < CLOSE))


@triton.jit
def _ordered(x):
    """Integers in the order of fp32 numbers; its own inverse, on their bits."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _take_border(
    running, top_k, top_p, border, above, mass_above, masses, top_of, close, keys,
    V: tl.constexpr, CLOSE: tl.constexpr, BY_COUNT: tl.constexpr,
):  # fmt: skip
    """Takes the highest logit on and above which enough stays."""
    row = tl.program_id(0)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    count = tl.load(close + row)
    if (count == 0) | (count > CLOSE):
        return
    i = tl.arange(0, CLOSE)
    ordered = tl.load(keys + row * CLOSE + i, mask=i < count, other=0)
    missing = _needed(top_k, top_p, masses, row, BY_COUNT) - tl.load(mass_above + row)
    # Masses as integers, whose sum does not depend on the order in which the tokens came.
    if BY_COUNT:
        weight = tl.where(i < count, 1, 0).to(tl.int64)
        target = missing.to(tl.int64)
    else:
        x = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
        weight = tl.where(i < count, tl.exp(x - tl.load(top_of + row)) * _MASS_UNITS, 0.0).to(tl.int64)
        target = (missing * _MASS_UNITS).to(tl.int64)
    low = _ordered(tl.load(border + row)).to(tl.int64)
    high = _ordered(tl.load(above + row)).to(tl.int64)
    for _ in tl.range(0, 32):
        middle = low + (high - low) // 2
        is_enough = tl.sum(tl.where(ordered >= middle, weight, 0), 0) >= target
        low = tl.where(is_enough, middle, low)
        high = tl.where(is_enough, high, middle)
    found = low.to(tl.int32)
    tl.store(border + row, tl.where(found < 0, found ^ 0x7FFFFFFF, found).to(tl.float32, bitcast=True))


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
    chunk = tl.min(tl.where(hit, i, CHUNKS_TILE - 1), 0)
    before = tl.max(tl.where(i < chunk, cumulative, 0.0), 0)

    c = tl.arange(0, CHUNK)
    x = _scaled(logits, temperature, row, chunk * CHUNK + c, V, SOFTCAP)
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
        self._vocabulary = vocabulary
        self._softcap = softcap or 0.0
        self._chunks = triton.cdiv(vocabulary, _CHUNK)
        self._search_chunks = triton.cdiv(vocabulary, _SEARCH_CHUNK)

        def reals(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        self._tops, self._lows, self._sums = (reals(num_rows, self._chunks) for _ in range(3))
        self._border, self._above, self._mass_above, self._masses, self._top = (reals(num_rows) for _ in range(5))
        self._partial = reals(num_rows, self._search_chunks, _THRESHOLDS.value)
        self._close = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._keys = torch.zeros((num_rows, _CLOSE), dtype=torch.int32, device=device)
        padding = triton.next_power_of_2(max(1, len(stop_tokens))) - len(stop_tokens)
        self._stop_tokens = torch.tensor([*stop_tokens, *[-1] * padding], dtype=torch.int64, device=device)

    def __call__(self, logits: Tensor, rows: Rows, memory: Memory, *, top_k: bool, top_p: bool) -> None:
        """Draws for the first n rows, notes tokens and log-probs in memory, and moves the rows on.

        Args:
            logits: [n, V] in fp32.
            top_k, top_p: whether any row has the filter.
        """
        self._sum_chunks(logits, rows, filtered=False)
        if top_k:
            self._search(logits, rows, by_count=True, keeps_border=False)
            self._sum_chunks(logits, rows, filtered=True)
        if top_p:
            self._search(logits, rows, by_count=False, keeps_border=top_k)
            self._sum_chunks(logits, rows, filtered=True)
        _choose[(logits.shape[0],)](
            logits, self._tops, self._sums, self._border, self._stop_tokens, memory.tokens, memory.logprobs,
            rows.running, rows.position, rows.token, rows.prompt_length, rows.start, rows.noise_key, rows.limit,
            rows.temperature, self._chunks,
            V=self._vocabulary, CHUNK=_CHUNK, CHUNKS_TILE=triton.next_power_of_2(self._chunks),
            STOPS=self._stop_tokens.shape[0], SOFTCAP=self._softcap, FILTERED=top_k or top_p, num_warps=8,
        )  # fmt: skip

    def _sum_chunks(self, logits: Tensor, rows: Rows, *, filtered: bool) -> None:
        _chunk_sums[(self._chunks, logits.shape[0])](
            logits, rows.temperature, rows.running, self._border, self._tops, self._lows, self._sums,
            V=self._vocabulary, CHUNK=_CHUNK, SOFTCAP=self._softcap, FILTERED=filtered, num_warps=4,
        )  # fmt: skip

    def _search(self, logits: Tensor, rows: Rows, *, by_count: bool, keeps_border: bool) -> None:
        """Finds the lowest logit that stays, of as many tokens as top-k says or as much mass as top-p does."""
        count = logits.shape[0]
        wanted = (rows.running, rows.top_k, rows.top_p, self._border)
        scaled = (logits, rows.temperature, *wanted, self._above)
        kind: dict[str, Any] = {"V": self._vocabulary, "BY_COUNT": by_count}
        _begin_search[(count,)](
            rows.running, self._border, self._above, self._mass_above, self._masses, self._top, self._close,
            self._tops, self._lows, self._sums, self._chunks,
            CHUNKS_TILE=triton.next_power_of_2(self._chunks), KEEPS_BORDER=keeps_border,
        )  # fmt: skip
        for _ in range(_PASSES):
            _masses_above[(self._search_chunks, count)](
                *scaled, self._top, self._partial,
                **kind, CHUNK=_SEARCH_CHUNK, TILE=_SEARCH_TILE, SOFTCAP=self._softcap, num_warps=1,
            )  # fmt: skip
            _narrow[(count,)](
                *wanted, self._above, self._mass_above, self._masses, self._partial, self._search_chunks,
                **kind, CHUNKS_TILE=triton.next_power_of_2(self._search_chunks),
            )  # fmt: skip
        _gather_close[(self._chunks, count)](
            *scaled, self._close, self._keys,
            **kind, CHUNK=_CHUNK, CLOSE=_CLOSE, SOFTCAP=self._softcap,
        )  # fmt: skip
        _take_border[(count,)](
            *wanted, self._above, self._mass_above, self._masses, self._top, self._close, self._keys,
            **kind, CLOSE=_CLOSE, num_warps=8,
        )  # fmt: skip
