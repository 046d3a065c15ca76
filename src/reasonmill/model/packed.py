"""The layout of rows that are trained on and scored: whole texts end to end, what several begin with only once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise, repeat

import torch
from torch import Tensor

from reasonmill.model.attention import AttentionRule, attend_causally
from reasonmill.model.continued import States, attend_continuing, split
from reasonmill.model.flash import Extent, attend_flash, extent_of, runs_flash
from reasonmill.model.padding import Padding


class PackedLayout:
    """Sequences end to end: each token sees those before it in its own sequence, and all of one that it continues.

    On CUDA they attend as they lie, where flash attention knows how (`runs_flash`). Elsewhere they are padded on the
    right to the longest of the row while they attend. Causal attention never looks to the right, so that the padding
    needs no mask.

    Args:
        lengths: of the sequences.
        continued: how many sequences continue each of the first ones. Those that continue the first one come right
            after these first ones, then those that continue the second, and at the end those that continue none.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str, continued: Sequence[int] = ()) -> None:
        self._lengths = lengths
        self._continued = continued
        self._device = torch.device(device)
        self._extent: Extent | None = None
        if self._device.type == "cuda":
            self._extent = extent_of(lengths, continued, self._device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        extent = self._extent
        if extent is not None and runs_flash(query, value, rule.softcap) and extent.knows(rule.window):
            states = (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))
            return attend_flash(*states, extent, rule.scale, rule.window)
        padded: Tensor = self._attend_padded(query, key, value, rule)
        return padded

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _attend_padded(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        if not self._continued:
            return _attend_whole((query, key, value), self._paddings[0], rule)
        count = len(self._continued)
        first, *others = split((query, key, value), self._sizes)
        of_first, *paddings = self._paddings
        attended = [_attend_whole(first, of_first, rule)]
        attended += map(attend_continuing, others, split(first, self._lengths[:count]), paddings, repeat(rule))
        attended += map(_attend_whole, others[count:], paddings[count:], repeat(rule))
        return torch.cat(attended)

    @cached_property
    def _parts(self) -> list[list[int]]:
        """Lengths of the sequences that others continue, of those that continue each of them, and of the rest."""
        bounds = [0, *accumulate(self._continued, initial=len(self._continued)), len(self._lengths)]
        return [list(self._lengths[start:stop]) for start, stop in pairwise(bounds) if start < stop]

    @cached_property
    def _sizes(self) -> list[int]:
        return [sum(lengths) for lengths in self._parts]

    @cached_property
    def _paddings(self) -> list[Padding]:
        return [Padding(lengths, self._device) for lengths in self._parts]


def _attend_whole(states: States, padding: Padding, rule: AttentionRule) -> Tensor:
    query, key, value = map(padding.pad, states)
    return padding.unpad(attend_causally(query, key, value, rule))  # of [B, H, L, E]
