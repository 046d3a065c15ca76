"""Examples to packed batches. The only file that shifts, pads or packs.

Sequences lie end to end in one row of N positions. A sequence of T tokens takes T - 1 of them: position t reads
token t and predicts token t + 1, so every tensor of a Batch speaks of the predicted token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reasonmill.types import Example, LossKind, Numbers


@dataclass(frozen=True)
class Batch:
    """Packed examples of one loss; every tensor has length N.

    Attributes:
        loss: what is summed over the positions.
        lengths: positions of each sequence, in the row's order.
        inputs, targets: token ids read and predicted.
        positions: place of the input in its sequence.
        sequence: index of the sequence that a position belongs to.
        weights: a position's share in the loss; 0 for context.
    """

    loss: LossKind
    lengths: tuple[int, ...]
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

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**{**vars(self), **moved})


def pack(examples: Sequence[Example], tokens_per_batch: int) -> list[Batch]:
    """Packs examples into batches of at most `tokens_per_batch` positions; a longer example gets a batch of its own.

    Examples are ordered by length (then by where they stood), so that the sequences of a batch are about equally
    long and attention, which pads them, wastes little. The result depends on nothing but the arguments.

    Raises:
        ValueError: examples of different losses, or fields that only some of them have.
    """
    if len({example.loss for example in examples}) > 1:
        raise ValueError("a batch holds examples of one loss only")
    sizes = [len(example.tokens) - 1 for example in examples]
    rows = _filled(_longest_first(examples), sizes, tokens_per_batch)
    return [_pack_chunk([examples[place] for place in row]) for row in rows]


def _longest_first(examples: Sequence[Example]) -> list[int]:
    """The places of the examples that predict something, in the order in which they are packed."""
    places = [place for place, example in enumerate(examples) if len(example.tokens) > 1]
    return sorted(places, key=lambda place: -len(examples[place].tokens))


def _filled(places: Sequence[int], sizes: Sequence[int], limit: int) -> list[list[int]]:
    """The places in rows, each filled up to the limit before the next is begun; one that is too large stands alone."""
    rows: list[list[int]] = []
    filled = 0
    for place in places:
        if not rows or filled + sizes[place] > limit:
            rows.append([])
            filled = 0
        rows[-1].append(place)
        filled += sizes[place]
    return rows


def _pack_chunk(examples: Sequence[Example]) -> Batch:
    lengths = tuple(len(example.tokens) - 1 for example in examples)
    sizes = torch.tensor(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    starts = torch.cumsum(sizes, 0) - sizes
    return Batch(
        loss=examples[0].loss,
        lengths=lengths,
        inputs=_join([example.tokens[:-1] for example in examples], np.int64),
        targets=_join([example.tokens[1:] for example in examples], np.int64),
        positions=torch.arange(int(sizes.sum())) - starts[sequence],
        sequence=sequence,
        weights=_join([example.weights[1:] for example in examples], np.float32),
        advantages=_optional(examples, "advantages"),
        sampler_logprobs=_optional(examples, "sampler_logprobs"),
        old_logprobs=_optional(examples, "old_logprobs"),
        ref_logprobs=_optional(examples, "ref_logprobs"),
    )


def _join(rows: Sequence[Numbers], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype) for row in rows]))


def _optional(examples: Sequence[Example], name: str) -> Tensor | None:
    rows = [getattr(example, name) for example in examples]
    present = [row for row in rows if row is not None]
    if not present:
        return None
    if len(present) < len(rows):
        raise ValueError(f"only {len(present)} of {len(rows)} examples of a batch have {name}")
    return _join([row[1:] for row in present], np.float32)


def unpack(values: Tensor, batches: Sequence[Batch], examples: Sequence[Example]) -> list[list[float]]:
    """Per-position values of packed batches, given back to the examples in their own order.

    Args:
        values: one value for each position of all batches, joined in order.

    Returns:
        For each example a list of its T tokens' values, 0.0 for the first token, which nothing predicts.
    """
    if values.numel() != sum(batch.num_tokens for batch in batches):
        raise ValueError("the values do not belong to these batches")
    result = [[0.0] * len(example.tokens) for example in examples]
    lengths = [length for batch in batches for length in batch.lengths]
    for index, row in zip(_longest_first(examples), torch.split(values.cpu(), lengths), strict=True):
        result[index] = [0.0, *row.tolist()]
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
    sizes = [sum(map(len, unit)) for unit in units]
    return [_pack_row(units, row) for row in _filled(ordered, sizes, tokens_per_batch)]


def _pack_row(units: Sequence[Sequence[Sequence[int]]], row: Sequence[int]) -> TextRow:
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
