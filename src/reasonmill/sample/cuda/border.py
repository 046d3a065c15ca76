"""The border of what top-k or top-p lets stay, without sorting the vocabulary; in Triton.

A sample of a row's logits says between which two logits its border lies, all but certainly. One pass over the row takes
what lies above, and writes down the few thousand tokens between the two. Among those the border is found exactly.
Where the sample was wrong, or more tokens lie there than can be written down, the whole row is searched in their place:
that takes long, and is seldom. Tokens as likely as the last one that stays, stay with it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonmill.sample.cuda.chunks import CHUNK, Chunks, scaled
from reasonmill.sample.cuda.rows import Rows

# Tokens of the sample: runs of 8 side by side, 32 bytes, the least that is read at a time.
_SAMPLE, _RUN = 8192, tl.constexpr(8)
# How many standard errors the border may lie off what the sample says, and how many of the sample must lie above.
_ERRORS, _FEWEST = tl.constexpr(4.0), tl.constexpr(16)
# Halvings of the interval in which the sample looks, and steps that it goes upwards.
_HALVINGS, _STEPS = tl.constexpr(10), tl.constexpr(8)
# So many tokens of a row can be written down.
_CLOSE = 16384
_MASS_UNITS = tl.constexpr(float(1 << 40))
_LIST_TILE, _ROW_TILE, _SLOTS = 1024, 4096, 16
# Tiles of a row that are loaded ahead.
_STAGES = tl.constexpr(4)


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
def _below(x, weight, b, COUNT: tl.constexpr, REST: tl.constexpr):
    """Of what lies below a logit in the sample: its weight, how far that may be off, and whether enough lies above."""
    below = tl.where(x < b, weight, 0.0)
    weighed = tl.sum(below, 0)
    variance = tl.sum(below * below, 0) - weighed * weighed / COUNT
    return weighed, _ERRORS * tl.sqrt(tl.maximum(variance, 0.0) * REST), tl.sum(tl.where(x >= b, 1, 0), 0) >= _FEWEST


@triton.jit
def _enclose(
    logits, temperature, running, top_k, top_p, tops, lows, sums,
    border, top_of, needed, low_of, high_of, close, chunks,
    V: tl.constexpr, SOFTCAP: tl.constexpr, COUNT: tl.constexpr, TILE: tl.constexpr, CHUNKS_TILE: tl.constexpr,
    BY_COUNT: tl.constexpr, KEEPS_BORDER: tl.constexpr,
):  # fmt: skip
    """Two logits with the border between them, by a sample of COUNT tokens."""
    row = tl.program_id(0)
    if tl.load(running + row) != 1:
        return
    i = tl.arange(0, CHUNKS_TILE)
    at = row * chunks + i
    chunk_tops = tl.load(tops + at, mask=i < chunks, other=float("-inf"))
    top = tl.max(chunk_tops, 0)
    if KEEPS_BORDER:
        lowest = tl.load(border + row)
    else:
        lowest = tl.min(tl.load(lows + at, mask=i < chunks, other=float("inf")), 0)
        tl.store(border + row, lowest)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    # Weights are counts, or masses in units of the likeliest token's.
    if BY_COUNT:
        whole = V * 1.0
        need = tl.load(top_k + row).to(tl.float32)
    else:
        whole = tl.sum(tl.load(sums + at, mask=i < chunks, other=0.0) * tl.exp(chunk_tops - top), 0)
        need = tl.load(top_p + row) * whole
    tl.store(top_of + row, top)
    tl.store(needed + row, need)
    tl.store(close + row, 0)

    s = tl.arange(0, TILE)
    columns = s // _RUN * V // (COUNT // _RUN) // _RUN * _RUN + s % _RUN if COUNT < V else s
    x = scaled(logits, temperature, row, columns, V, SOFTCAP)
    stays = (s < COUNT) & (x >= lowest)
    x = tl.where(stays, x, float("-inf"))
    weight = tl.where(stays, 1.0, 0.0) if BY_COUNT else tl.where(stays, tl.exp(x - top), 0.0)
    REST: tl.constexpr = 1.0 - COUNT / V  # of the vocabulary that is not in the sample
    # What lies below the border weighs as much at most; in the sample, its share.
    room = whole - need
    share = room * (COUNT / V)
    # All tokens together weigh no more than there is room for, were each as heavy as that.
    low = lowest if BY_COUNT else tl.maximum(lowest, top + tl.log(room / V))
    above_low, likely, above_likely = top, low, top
    for _ in tl.range(0, _HALVINGS):
        middle = 0.5 * (low + above_low)
        weighed, error, is_known = _below(x, weight, middle, COUNT, REST)
        is_low = (weighed + error <= share) & is_known
        low = tl.where(is_low, middle, low)
        above_low = tl.where(is_low, above_low, middle)
        middle = 0.5 * (likely + above_likely)
        is_likely = tl.sum(tl.where(x < middle, weight, 0.0), 0) <= share
        likely = tl.where(is_likely, middle, likely)
        above_likely = tl.where(is_likely, above_likely, middle)
    # Upwards in steps: far above, a few heavy tokens of the sample make its error larger than all that it says.
    step = 0.25 * (above_likely - low)
    high = above_likely + 3.0 * step
    is_high = False
    for _ in tl.range(0, _STEPS):
        weighed, error, is_known = _below(x, weight, high, COUNT, REST)
        is_high = (weighed - error > share) & is_known
        high = tl.where(is_high, high, high + step)
    tl.store(low_of + row, low)
    tl.store(high_of + row, tl.where(is_high, high, float("inf")))


@triton.jit
def _gather(
    logits, temperature, running, top_k, top_p, tops, sums, low_of, high_of, counts, starts, lengths, close, keys,
    V: tl.constexpr, CHUNK: tl.constexpr, CLOSE: tl.constexpr, SOFTCAP: tl.constexpr, BY_COUNT: tl.constexpr,
):  # fmt: skip
    """Of each chunk the number and the mass of tokens above the two logits, and the tokens between them.

    In which order the chunks' tokens come does not matter; those of a chunk lie in order.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    # In fours, as a thread loads them: to count first in each is half of the work of counting along the chunk.
    fours = tl.arange(0, CHUNK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    x = scaled(logits, temperature, row, chunk * CHUNK + fours, V, SOFTCAP)
    at = row * tl.num_programs(0) + chunk
    is_above = x >= tl.load(high_of + row)
    mass = tl.sum(tl.sum(tl.where(is_above, tl.exp(x - tl.load(tops + at)), 0.0), 1), 0)
    whole = tl.load(sums + at)
    tl.store(sums + at, tl.where(whole == whole, mass, whole))  # NaN stays
    if BY_COUNT:
        tl.store(counts + at, tl.sum(tl.sum(is_above.to(tl.int32), 1), 0))
    is_close = (x >= tl.load(low_of + row)) & (is_above == 0)
    along = tl.cumsum(is_close.to(tl.int32), 1)
    of_fours = tl.sum(is_close.to(tl.int32), 1)
    until = tl.cumsum(of_fours, 0)
    length = tl.max(until, 0)
    start = tl.atomic_add(close + row, length, sem="relaxed")
    tl.store(starts + at, start)
    tl.store(lengths + at, length)
    place = (until - of_fours)[:, None] + along - 1
    fits = start + length <= CLOSE
    tl.store(keys + row.to(tl.int64) * CLOSE + start + place, _ordered(x), mask=is_close & fits)


@triton.jit
def _ordered(x):
    """Integers in the order of fp32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _number(ordered):
    """The fp32 numbers of ordered integers."""
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def _weights(keys, is_there, top, BY_COUNT: tl.constexpr):
    """As integers, whose sum does not depend on the order in which the tokens come."""
    if BY_COUNT:
        weight = tl.where(is_there, 1, 0).to(tl.int64)
    else:
        weight = tl.where(is_there, tl.exp(_number(keys) - top) * _MASS_UNITS, 0.0).to(tl.int64)
    return weight


@triton.jit
def _in_units(weight, BY_COUNT: tl.constexpr):
    """A weight in the units of `_weights`."""
    return weight.to(tl.int64) if BY_COUNT else (weight * _MASS_UNITS).to(tl.int64)


@triton.jit
def _loaded(
    logits, temperature, keys, row, offset, count,
    V: tl.constexpr, CLOSE: tl.constexpr, SOFTCAP: tl.constexpr, TILE: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """A tile of the tokens that were written down, or of the whole row."""
    place = offset + tl.arange(0, TILE)
    if LISTED:
        tile = tl.load(keys + row.to(tl.int64) * CLOSE + place, mask=place < count, other=0)
    else:
        tile = _ordered(scaled(logits, temperature, row, place, V, SOFTCAP))
    return tile, place < count


@triton.jit
def _highest(
    logits, temperature, keys, row, count, top, low, high, target,
    V: tl.constexpr, CLOSE: tl.constexpr, SOFTCAP: tl.constexpr, BY_COUNT: tl.constexpr, TILE: tl.constexpr,
    LISTED: tl.constexpr,
):  # fmt: skip
    """The highest key from `low` up to `high` on and above which tokens weigh the target; `low` if none is."""
    while high - low > 1:
        step = (high - low + 3) // 4
        first, second, third = low + step, low + 2 * step, low + 3 * step
        first_key, second_key, third_key = first.to(tl.int32), second.to(tl.int32), third.to(tl.int32)
        above_first = tl.zeros([TILE], tl.int64)
        above_second = tl.zeros([TILE], tl.int64)
        above_third = tl.zeros([TILE], tl.int64)
        for offset in tl.range(0, count, TILE, num_stages=1 if LISTED else _STAGES):
            tile, is_there = _loaded(logits, temperature, keys, row, offset, count, V, CLOSE, SOFTCAP, TILE, LISTED)
            weight = _weights(tile, is_there, top, BY_COUNT)
            above_first += tl.where(tile >= first_key, weight, 0)
            above_second += tl.where(tile >= second_key, weight, 0)
            above_third += tl.where(tile >= third_key, weight, 0)
        is_first = tl.sum(above_first, 0) >= target
        is_second = tl.sum(above_second, 0) >= target
        is_third = tl.sum(above_third, 0) >= target
        end = tl.where(is_third, high, tl.where(is_second, third, tl.where(is_first, second, first)))
        low = tl.where(is_third, third, tl.where(is_second, second, tl.where(is_first, first, low)))
        high = tl.minimum(high, end)
    return low


@triton.jit
def _close_masses(keys, starts, lengths, tops, border, SLOTS: tl.constexpr):
    """For each chunk the mass of those of its tokens that were written down and stay, in units of its likeliest's."""
    masses = tl.zeros_like(tops)
    for slot in tl.range(0, tl.max(lengths, 0), SLOTS):
        slots = slot + tl.arange(0, SLOTS)
        is_there = slots[None, :] < lengths[:, None]
        x = _number(tl.load(keys + starts[:, None] + slots[None, :], mask=is_there, other=0))
        masses += tl.sum(tl.where(is_there & (x >= border), tl.exp(x - tops[:, None]), 0.0), 1)
    return masses


@triton.jit
def _take(
    logits, temperature, running, top_k, top_p, tops, sums, border, top_of, needed, low_of, high_of,
    counts, starts, lengths, close, keys, chunks,
    V: tl.constexpr, CHUNKS_TILE: tl.constexpr, CLOSE: tl.constexpr, SOFTCAP: tl.constexpr, BY_COUNT: tl.constexpr,
    TILE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Takes the highest logit on and above which enough stays, and adds what stays between the two logits to sums.

    Where it does not lie between them, `close` is left at more than CLOSE.
    """
    row = tl.program_id(0)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    i = tl.arange(0, CHUNKS_TILE)
    at = row * chunks + i
    chunk_tops = tl.load(tops + at, mask=i < chunks, other=float("-inf"))
    chunk_sums = tl.load(sums + at, mask=i < chunks, other=0.0)
    top = tl.load(top_of + row)
    if BY_COUNT:
        above = tl.sum(tl.load(counts + at, mask=i < chunks, other=0), 0).to(tl.float32)
    else:
        above = tl.sum(chunk_sums * tl.exp(chunk_tops - top), 0)
    need = tl.load(needed + row)
    count = tl.load(close + row)
    if (above < need) & (count <= CLOSE):
        low = tl.load(low_of + row)
        first = _ordered(low).to(tl.int64)
        last = _ordered(tl.load(high_of + row)).to(tl.int64)
        missing = _in_units(need - above, BY_COUNT)
        found = _highest(
            logits, temperature, keys, row, count, top, first - 1, last, missing,
            V, CLOSE, SOFTCAP, BY_COUNT, TILE, True,
        )  # fmt: skip
        # Of all that there is, rounding may let too little weigh enough.
        if (found >= first) | (low <= tl.load(border + row)):
            new_border = _number(tl.maximum(found, first).to(tl.int32))
            tl.store(border + row, new_border)
            chunk_starts = tl.load(starts + at, mask=i < chunks, other=0)
            chunk_lengths = tl.load(lengths + at, mask=i < chunks, other=0)
            row_keys = keys + row.to(tl.int64) * CLOSE
            added = _close_masses(row_keys, chunk_starts, chunk_lengths, chunk_tops, new_border, SLOTS)
            tl.store(sums + at, chunk_sums + added, mask=i < chunks)
            return
    tl.store(close + row, CLOSE + 1)


@triton.jit
def _search(
    logits, temperature, running, top_k, top_p, tops, sums, border, top_of, needed, close, keys, chunks,
    V: tl.constexpr, CHUNK: tl.constexpr, CLOSE: tl.constexpr, SOFTCAP: tl.constexpr, BY_COUNT: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Searches whole rows where the border was not found, and sums what stays."""
    row = tl.program_id(0)
    if not _wants(running, top_k, top_p, row, V, BY_COUNT):
        return
    need = tl.load(needed + row)
    if (tl.load(close + row) <= CLOSE) | (need != need):  # NaN
        return
    top = tl.load(top_of + row)
    first = _ordered(tl.load(border + row)).to(tl.int64)
    last = _ordered(top).to(tl.int64) + 1
    found = _highest(
        logits, temperature, keys, row, V, top, first, last, _in_units(need, BY_COUNT),
        V, CLOSE, SOFTCAP, BY_COUNT, TILE, False,
    )  # fmt: skip
    new_border = _number(found.to(tl.int32))
    tl.store(border + row, new_border)
    for chunk in tl.range(0, chunks):
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        x = scaled(logits, temperature, row, columns, V, SOFTCAP)
        mass = tl.where(x >= new_border, tl.exp(x - tl.load(tops + row * chunks + chunk)), 0.0)
        tl.store(sums + row * chunks + chunk, tl.sum(mass, 0))


class Borders:
    """Finds the borders of up to `num_rows` rows.

    Attributes:
        of: [rows], the lowest logit that stays.
    """

    def __init__(self, num_rows: int, vocabulary: int, chunks: Chunks, device: torch.device) -> None:
        self._chunks = chunks
        self._count = min(_SAMPLE, vocabulary)
        self.of, self._top, self._needed, self._low, self._high = torch.zeros((5, num_rows), device=device)
        shape = num_rows, chunks.count
        self._counts, self._starts, self._lengths = torch.zeros((3, *shape), dtype=torch.int32, device=device)
        self._close = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._keys = torch.zeros((num_rows, _CLOSE), dtype=torch.int32, device=device)

    def find(self, logits: Tensor, rows: Rows, *, by_count: bool, keeps_border: bool) -> None:
        """Finds the lowest logit that stays, of as many tokens as top-k says or as much mass as top-p does.

        The sums of the chunks are of all tokens before, and afterwards of those that stay.

        Args:
            logits: [n, V] of the first n rows.
            keeps_border: whether some tokens are gone already, those below the borders.
        """
        chunks, count = self._chunks, logits.shape[0]
        scaled_rows = (logits, rows.temperature, rows.running, rows.top_k, rows.top_p)
        kind: dict[str, Any] = {**chunks.kind, "BY_COUNT": by_count}
        _enclose[(count,)](
            *scaled_rows, chunks.tops, chunks.lows, chunks.sums,
            self.of, self._top, self._needed, self._low, self._high, self._close, chunks.count,
            **kind, COUNT=self._count, TILE=triton.next_power_of_2(self._count), CHUNKS_TILE=chunks.tile,
            KEEPS_BORDER=keeps_border, num_warps=8,
        )  # fmt: skip
        listed = (self._counts, self._starts, self._lengths, self._close, self._keys)
        _gather[(chunks.count, count)](
            *scaled_rows, chunks.tops, chunks.sums, self._low, self._high, *listed,
            **kind, CHUNK=CHUNK, CLOSE=_CLOSE, num_warps=4,
        )  # fmt: skip
        found = (chunks.tops, chunks.sums, self.of, self._top, self._needed)
        _take[(count,)](
            *scaled_rows, *found, self._low, self._high, *listed, chunks.count,
            **kind, CHUNKS_TILE=chunks.tile, CLOSE=_CLOSE, TILE=_LIST_TILE, SLOTS=_SLOTS, num_warps=4,
        )  # fmt: skip
        _search[(count,)](
            *scaled_rows, *found, self._close, self._keys, chunks.count,
            **kind, CHUNK=CHUNK, CLOSE=_CLOSE, TILE=_ROW_TILE, num_warps=16,
        )  # fmt: skip
