"""Keys and values of running sequences: one slot a sequence, the running slots always the first ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reasonmill.model.attention import AttentionRule, attend_where
from reasonmill.model.packed import PackedLayout

# Bytes that torch's own tensors begin at multiples of.
_ALIGNED = 64


class SlotCache:
    """Keys and values [slots, K, length, D] of every layer; a layer's tensors are made when it first attends.

    Behind the last token of a running sequence stand zeros. Attention gives no weight to what stands there, but it
    multiplies by it all the same, and 0 times what an earlier sequence may have left there is not always 0.

    Attributes:
        used: for each slot that is free, how many of its tokens are not zeros.

    Args:
        num_slots: sequences that can run at the same time.
        length: tokens that a slot can hold, prompt and completion.
    """

    def __init__(self, num_slots: int, length: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.length = length
        self.device = device
        self.used = [0] * num_slots
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values; `key` and `value` [K, N, D] give their shape and type."""
        if layer not in self._keys:
            shape = (self.num_slots, key.shape[0], self.length)
            self._keys[layer] = _zeros((*shape, key.shape[2]), key)
            self._values[layer] = _zeros((*shape, value.shape[2]), value)
        return self._keys[layer], self._values[layer]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copies the sequences of at most `length` tokens in the source slots to the target slots, which are free."""
        reach = max(length, *(self.used[target] for target in targets))
        source, target = torch.tensor(sources, device=self.device), torch.tensor(targets, device=self.device)
        for tensors in (self._keys, self._values):
            for tensor in tensors.values():
                tensor[target, :, :reach] = tensor[source, :, :reach]


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of a tensor's type on its device. On a CPU they take no memory until something is written: of many slots,
    few may ever run, and none up to its end."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    size = math.prod(shape) * like.element_size()
    memory = np.zeros(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return torch.from_numpy(memory[start : start + size]).view(like.dtype).view(shape)


class PrefillLayout:
    """Prompts end to end. Each prompt attends once, and its keys and values go to all slots of its group.

    Args:
        slots: those of each prompt; together they are consecutive ones that were free.
    """

    def __init__(self, lengths: Sequence[int], slots: Sequence[Sequence[int]], cache: SlotCache) -> None:
        self._packed = PackedLayout(lengths, cache.device)
        self._lengths = list(lengths)
        self._slots = [torch.tensor(group, device=cache.device) for group in slots]
        self._cache = cache
        every = [slot for group in slots for slot in group]
        self._rows = slice(min(every), max(every) + 1)
        self._used = max(cache.used[self._rows])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        keys, values = self._cache.of(layer, key, value)
        if self._used:
            keys[self._rows, :, : self._used] = 0
            values[self._rows, :, : self._used] = 0
        for prompt_keys, prompt_values, slots in zip(
            key.split(self._lengths, 1), value.split(self._lengths, 1), self._slots, strict=True
        ):
            length = prompt_keys.shape[1]
            keys[slots, :, :length] = prompt_keys
            values[slots, :, :length] = prompt_values
        return self._packed.attend(layer, query, key, value, rule)


class DecodeLayout:
    """One token of each of the first n slots.

    Args:
        positions: [n] place of each slot's token, on the cache's device.
        longest: 1 + the largest position; known by the caller, so that the device need not be asked.
    """

    def __init__(self, cache: SlotCache, positions: Tensor, longest: int) -> None:
        self._cache = cache
        self._positions = positions
        self._rows = torch.arange(positions.shape[0], device=cache.device)
        self._longest = longest
        self._visible: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        keys, values = self._cache.of(layer, key, value)
        keys[self._rows, :, self._positions] = key.transpose(0, 1)
        values[self._rows, :, self._positions] = value.transpose(0, 1)
        running = self._rows.shape[0]
        keys, values = keys[:running, :, : self._longest], values[:running, :, : self._longest]
        heads, kv_heads = query.shape[0], keys.shape[1]
        # The heads that share a key head become rows of one query, so that keys are read once for all of them.
        grouped = query.transpose(0, 1).unflatten(1, (kv_heads, heads // kv_heads))  # [n, K, H/K, D]
        out = attend_where(grouped, keys, values, self._mask(rule.window), rule)
        return out.flatten(1, 2)

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._visible:
            columns = torch.arange(self._longest, device=self._cache.device)
            visible = columns <= self._positions[:, None]
            if window is not None:
                visible &= columns > self._positions[:, None] - window
            self._visible[window] = visible[:, None, None, :]
        return self._visible[window]
