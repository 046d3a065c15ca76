"""Examples to packed batches. The only file that shifts, pads or packs.

Sequences lie end to end in one row of N positions. An example of T tokens takes T - 1 of them: position t reads
token t and predicts token t + 1, so every tensor of a Batch speaks of the predicted token.

Completions of one problem begin with the same prompt. A row holds it once where it is long: as a sequence of its own,
all but its last token, which several sequences continue. Their positions go on from there.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reasonmill.types import Example, LossKind, Numbers

# Tokens of context from which on examples that begin with it share it (docs/performance.md has what that is worth).
SHARED_FROM = 128


class Piece(NamedTuple):
    """The positions `start` to `stop` of an example, counted among those that were packed."""

    example: int
    start: int
    stop: int


@dataclass(frozen=True)
class Batch:
    """Packed examples of one loss; every tensor has length N.

    Attributes:
        loss: what is summed over the positions.
        pieces: what each sequence is of its example, in the row's order. A context that is shared is that of the first
            example that has it, and comes before all else.
        continued: how many sequences continue each of these contexts; those of the first one come right after the
            contexts, then those of the second, and at the end the sequences that share nothing.
        inputs, targets: token ids read and predicted.
        positions: place of the input in its example.
        sequence: index of the sequence that a position belongs to.
        weights: a position's share in the loss; 0 for context.
    """

    loss: LossKind
    pieces: tuple[Piece, ...]
    continued: tuple[int, ...]
    inputs: Tensor
    targets: Tensor
    positions: Tensor
    sequence: Tensor
    weights: Tensor
    advantages: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.inputs.numel())

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of each sequence, in the row's order."""
        return tuple(piece.stop - piece.start for piece in self.pieces)

    @property
    def longest(self) -> int:
        """Positions of the longest example, a shared context included."""
        return max(piece.stop for piece in self.pieces)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**{**vars(self), **moved})


def pack(examples: Sequence[Example], tokens_per_batch: int) -> list[Batch]:
    """Packs examples into batches of at most `tokens_per_batch` positions; a longer example gets a batch of its own.

    Examples are ordered by length (then by where they stood), so that the sequences of a batch are about equally
    long and attention, which pads them, wastes little. Those that begin with the same context of at least SHARED_FROM
    tokens, which the loss does not weigh, follow the longest of them, and share it if they are in one batch: they are,
    unless they are too many for one. The result depends on nothing but the arguments.

    Raises:
        ValueError: examples of different losses, or fields that only some of them have.
    """
    if len({example.loss for example in examples}) > 1:
        raise ValueError("a batch holds examples of one loss only")
    parts = [part for family in _families(examples) for part in family.divided(tokens_per_batch)]
    rows = _filled([part.size for part in parts], tokens_per_batch)
    return [_pack_row(examples, [parts[place] for place in row]) for row in rows]


def _filled(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """The places of the sizes in rows, each filled up to the limit before the next is begun; one that is too large
    stands alone."""
    rows: list[list[int]] = []
    filled = 0
    for place, size in enumerate(sizes):
        if not rows or filled + size > limit:
            rows.append([])
            filled = 0
        rows[-1].append(place)
        filled += size
    return rows


@dataclass(frozen=True)
class _Family:
    """Examples that begin with the same positions, or one example alone.

    Attributes:
        places, sizes: where they stand, and their positions.
        context: the positions that they share.
    """

    places: tuple[int, ...]
    sizes: tuple[int, ...]
    context: int

    @property
    def size(self) -> int:
        """Positions in a row."""
        return sum(self.sizes) - self.context * (len(self.sizes) - 1)

    def divided(self, limit: int) -> list[_Family]:
        """Its examples in parts of at most `limit` positions in a row, each filled up before the next is begun; one
        that is too large is a part of its own."""
        parts: list[_Family] = []
        for place, size in zip(self.places, self.sizes, strict=True):
            if parts and parts[-1].size + size - self.context <= limit:
                parts[-1] = _Family((*parts[-1].places, place), (*parts[-1].sizes, size), self.context)
            else:
                parts.append(_Family((place,), (size,), self.context))
        return parts


def _families(examples: Sequence[Example]) -> list[_Family]:
    """The examples that predict something, in the order in which they are packed."""
    places = [place for place, example in enumerate(examples) if len(example.tokens) > 1]
    found: dict[Hashable, list[int]] = {}
    contexts: dict[Hashable, int] = {}
    for place in sorted(places, key=lambda place: -len(examples[place].tokens)):
        context = _context(examples[place])
        name: Hashable = context or place
        found.setdefault(name, []).append(place)
        contexts[name] = max(0, len(context) - 1)  # whose last token predicts what differs
    return [
        _Family(tuple(own), tuple(len(examples[place].tokens) - 1 for place in own), contexts[name])
        for name, own in found.items()
    ]


def _context(example: Example) -> tuple[int, ...]:
    """The tokens before the first that the loss weighs, if they are enough to be shared; else none."""
    last = len(example.tokens) - 1
    count = next((place for place in range(last) if example.weights[place]), last)
    return tuple(example.tokens[:count]) if count >= SHARED_FROM else ()


def _pack_row(examples: Sequence[Example], row: Sequence[_Family]) -> Batch:
    sharing = [family for family in row if len(family.places) > 1]
    alone = [family for family in row if len(family.places) == 1]
    pieces = (
        *(Piece(family.places[0], 0, family.context) for family in sharing),
        *(Piece(p, family.context, s) for family in sharing for p, s in zip(family.places, family.sizes, strict=True)),
        *(Piece(family.places[0], 0, family.sizes[0]) for family in alone),
    )
    starts = torch.tensor([piece.start for piece in pieces])
    sizes = torch.tensor([piece.stop for piece in pieces]) - starts
    sequence = torch.repeat_interleave(torch.arange(len(pieces)), sizes)
    begins = torch.cumsum(sizes, 0) - sizes - starts
    return Batch(
        loss=examples[0].loss,
        pieces=pieces,
        continued=tuple(len(family.places) for family in sharing),
        inputs=_join([examples[example].tokens[start:stop] for example, start, stop in pieces], np.int64),
        targets=_join(_predicted(examples, pieces, "tokens"), np.int64),
        positions=torch.arange(int(sizes.sum())) - begins[sequence],
        sequence=sequence,
        weights=_join(_predicted(examples, pieces, "weights"), np.float32),
        advantages=_optional(examples, pieces, "advantages"),
        sampler_logprobs=_optional(examples, pieces, "sampler_logprobs"),
        old_logprobs=_optional(examples, pieces, "old_logprobs"),
        ref_logprobs=_optional(examples, pieces, "ref_logprobs"),
    )


def _predicted(examples: Sequence[Example], pieces: Sequence[Piece], name: str) -> list[Numbers]:
    """What the examples' rows of that name say of the tokens that the pieces predict."""
    return [getattr(examples[example], name)[start + 1 : stop + 1] for example, start, stop in pieces]


def _join(rows: Sequence[Numbers], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype) for row in rows]))


def _optional(examples: Sequence[Example], pieces: Sequence[Piece], name: str) -> Tensor | None:
    rows = [getattr(examples[place], name) for place in {piece.example for piece in pieces}]
    present = [row for row in rows if row is not None]
    if not present:
        return None
    if len(present) < len(rows):
        raise ValueError(f"only {len(present)} of {len(rows)} examples of a batch have {name}")
    return _join(_predicted(examples, pieces, name), np.float32)


def group_positions(completions: float, prompt: float, completion: float, tokens_per_batch: int) -> float:
    """About how many positions the completions of one problem are packed into, each of `completion` tokens."""
    if prompt < SHARED_FROM or completions <= 1:
        return completions * (prompt + completion)
    together = max(1, (tokens_per_batch - prompt) // max(completion, 1))
    return ceil(completions / together) * prompt + completions * completion


def unpack(values: Tensor, batches: Sequence[Batch], examples: Sequence[Example]) -> list[list[float]]:
    """Per-position values of packed batches, given back to the examples in their own order.

    Args:
        values: one value for each position of all batches, joined in order.

    Returns:
        For each example a list of its T tokens' values, 0.0 for the first token, which nothing predicts. Values of a
        context that is shared are those of all who share it.
    """
    if values.numel() != sum(batch.num_tokens for batch in batches):
        raise ValueError("the values do not belong to these batches")
    result = [[0.0] * len(example.tokens) for example in examples]
    of_batches = values.cpu().split([batch.num_tokens for batch in batches])
    for batch, own in zip(batches, of_batches, strict=True):
        rows = [row.tolist() for row in own.split(batch.lengths)]
        count = len(batch.continued)
        contexts = chain.from_iterable(map(repeat, rows, batch.continued))
        for piece, row in zip(batch.pieces[count:], rows[count:], strict=True):
            result[piece.example] = [0.0, *(next(contexts) if piece.start else ()), *row]
    return result


@dataclass(frozen=True)
class TextRow:
    """Whole texts end to end in one row of N positions, nothing shifted: for models that read and predict nothing.

    Attributes:
        units: which of the units that were packed the row holds, in its order.
        lengths: tokens of each text.
        tokens, positions: [N] token ids and their places in their texts.
        last: place in the row of each text's last token.
    """

    units: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens: Tensor
    positions: Tensor
    last: Tensor


def pack_texts(units: Sequence[Sequence[Sequence[int]]], tokens_per_batch: int) -> list[TextRow]:
    """Packs units of texts into rows of at most `tokens_per_batch` positions; a longer unit gets a row of its own.

    The texts of a unit (the two of a pair, or one) stay together and in their order. Units are ordered by their
    longest text, so that attention, which pads, wastes little. The result depends on nothing but the arguments.
    """
    ordered = sorted(range(len(units)), key=lambda unit: -max(map(len, units[unit])))
    rows = _filled([sum(map(len, units[unit])) for unit in ordered], tokens_per_batch)
    return [_pack_texts(units, [ordered[place] for place in row]) for row in rows]


def _pack_texts(units: Sequence[Sequence[Sequence[int]]], row: Sequence[int]) -> TextRow:
    texts = [text for unit in row for text in units[unit]]
    sizes = torch.tensor([len(text) for text in texts])
    ends = torch.cumsum(sizes, 0)
    return TextRow(
        units=tuple(row),
        lengths=tuple(sizes.tolist()),
        tokens=_join(texts, np.int64),
        positions=torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - sizes, sizes),
        last=ends - 1,
    )
