"""The batches of a rehearsal: as large as a stage's largest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reasonmill.algo.packing import SHARED_FROM, Batch, pack
from reasonmill.placement import Largest
from reasonmill.types import Example

# Token ids that every vocabulary has.
_IDS = 32
_SMALLEST, _SHORTEST = 16, 5  # positions of a row, and of the longest sequence in it
# The fewest positions that are shared: what is left of a row, its queries, attends twice.
_CONTEXT = SHARED_FROM - 1


def rehearsal_batches(largest: Largest, least: int) -> Iterator[Batch]:
    """A batch of sizes that are all different, the fullest one, of sequences as long as they may be, and ever smaller
    ones, as code may be for lengths of some magnitude only. Where texts are long enough to share a context, one is full
    of texts that do, whose attention takes more memory. The fullest comes once more at the end: code that was made for
    smaller ones may be what it is run by from then on, and take more memory.

    Compiled code takes sizes that are equal in the first batch to be equal in all: the number of positions, of
    sequences, the longest of these, the widths of the network. So these are odd in that one, which no width is.

    Args:
        least: positions that every row is filled up to.
    """
    row, text = max(largest.row, _SMALLEST), max(largest.text - 1, _SHORTEST)
    odd = row - 1 + row % 2
    yield _batch(_unlike(odd, text), largest)
    yield _batch(filled(row, text), largest)
    while (odd := odd // 2 | 1) >= max(_SMALLEST, least):
        yield _batch(_unlike(odd, text), largest)
    own = min(text - _CONTEXT, (row - _CONTEXT) // 2)  # positions of each that are not shared
    if own > 0:
        yield _batch([_CONTEXT + own] * ((row - _CONTEXT) // own), largest, context=_CONTEXT)
    yield _batch(filled(row, text), largest)


def _unlike(row: int, longest: int) -> list[int]:
    """Lengths that fill a row, no longer than that; evenly many, so that their borders are an odd number."""
    longest = min(longest - 1 + longest % 2, 2 * (row // 3) + 1)
    lengths = filled(row, longest)
    while len(lengths) % 2 or len(lengths) + 1 in (row, longest):
        place = max(place for place, length in enumerate(lengths) if length > 1)
        half = lengths[place] // 2
        lengths[place : place + 1] = [lengths[place] - half, half]
    return lengths


def filled(row: int, longest: int) -> list[int]:
    """Lengths of sequences that fill a row, all but the last as long as they may be."""
    whole, rest = divmod(row, longest)
    return [longest] * whole + [rest] * (rest > 0)


def _batch(lengths: list[int], largest: Largest, *, context: int = 0) -> Batch:
    """A batch of sequences with so many positions each, which share the first `context` of them."""
    examples = []
    for length in lengths:
        numbers = np.zeros(length + 1, np.float32)
        weights = np.ones(length + 1, np.float32)
        weights[: context + 1] = 0.0
        is_pg = largest.kind == "pg"
        examples.append(
            Example(
                np.arange(length + 1) % _IDS,
                weights,
                largest.kind,
                advantages=numbers if is_pg else None,
                sampler_logprobs=numbers if is_pg else None,
                old_logprobs=numbers if is_pg else None,
                ref_logprobs=numbers if is_pg and largest.loss.kl_coefficient else None,
            )
        )
    (batch,) = pack(examples, sum(lengths))
    return batch
