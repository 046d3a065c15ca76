"""Keys, values, drawn tokens and log-probs of sequences: runs of one long memory, sized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from reasonmill.errors import OutOfMemory
from reasonmill.model.attention import AttentionRule, PackedLayout
from reasonmill.model.decoder import Decoder
from reasonmill.protocols import MemoryNeed
from reasonmill.sample.cuda.rows import sent
from reasonmill.sample.cuda.runs import UNIT, Runs, sequence_tokens

# Of the card's memory, where nobody says what is needed; the rest is for weights and whatever else there may be.
_SHARE = 0.4
# Of the card's memory, left free beside what is needed: for what a step computes, graphs, and holes between blocks.
_MARGIN = 1 / 16
# What Triton's interpreter gets, which runs the kernels on a CPU to test them.
_INTERPRETED = 1 << 26


class _Shapes:
    """A layout that computes nothing and notes what keys and values each layer has."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        self.of[layer] = key, value
        return query.new_zeros((query.shape[1], query.shape[0], value.shape[2]))


class Memory:
    """Keys [K, tokens, D] and values [K, tokens, E] of every layer, and what was drawn: tokens and log-probs [tokens].

    Nothing of it is ever cleared: attention loads no key or value that is not the sequence's.

    Args:
        num_rows: more sequences than so many don't run together.
        need: what it is for; None where nobody knows.

    Raises:
        OutOfMemory: it does not fit.
    """

    def __init__(self, decoder: Decoder, num_rows: int, need: MemoryNeed | None = None) -> None:
        shapes, device = _Shapes(), decoder.device
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        decoder.hidden(zero, zero, shapes)
        self.bytes_per_token = 8 + sum(
            part.shape[0] * part.shape[2] * part.element_size() for pair in shapes.of.values() for part in pair
        )
        size = _size(device, num_rows, decoder.context, self.bytes_per_token, need)
        self.runs = Runs(size)
        self.keys = {layer: key.new_empty((key.shape[0], size, key.shape[2])) for layer, (key, _) in shapes.of.items()}
        self.values = {layer: v.new_empty((v.shape[0], size, v.shape[2])) for layer, (_, v) in shapes.of.items()}
        self.tokens = torch.zeros(size, dtype=torch.int32, device=device)
        self.logprobs = torch.zeros(size, dtype=torch.float32, device=device)


def numbers_in(numbers: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Iterator[list[Any]]:
    """Those of a memory [tokens] that lie from each start on, one run after the other.

    Waits until the device has copied them, before the first is given.
    """
    places = sent(starts, numbers.device)[:, None] + torch.arange(max(lengths), device=numbers.device)
    copied: list[Any] = numbers[places.clamp_(max=numbers.shape[0] - 1)].flatten().tolist()
    return (copied[at : at + length] for at, length in zip(count(0, max(lengths)), lengths, strict=False))


def _size(device: torch.device, num_rows: int, context: int | None, bytes_each: int, need: MemoryNeed | None) -> int:
    """How many tokens the memory is for: as many as can be used, or as there is room for.

    It decides how many sequences run at a time, and so moves bits. Where nobody says what is needed, the room is a
    share of the whole card, and not of what happens to be free.

    Args:
        bytes_each: of each token.
    """
    if device.type != "cuda":
        free = room = whole = _INTERPRETED
    else:
        free, whole = _free(device)
        room = int(whole * _SHARE)
    if need is None:
        size = _whole_units(room // bytes_each, None if context is None else num_rows * sequence_tokens(context))
        if size * bytes_each > free:
            raise OutOfMemory(
                f"sequences need {_mib(size * bytes_each)} of the GPU's memory for their keys and values, and "
                f"{_mib(free)} are free",
                fix="end other programs on the GPU, take a smaller model, or lower slots",
            )
        return size
    return _needed(free - need.beside, whole, context, bytes_each, need)


def _needed(free: int, whole: int, context: int | None, bytes_each: int, need: MemoryNeed) -> int:
    """How many tokens of memory a stage gets, where so many bytes of the card's `whole` are left for them."""
    if need.tokens is not None:
        if need.tokens * bytes_each > free:
            raise OutOfMemory(
                f"sequences had {_mib(need.tokens * bytes_each)} of the GPU's memory when the stage began, and "
                f"{_mib(free)} are free now; with less, fewer would run at a time, and have other bits",
                fix="end other programs on the GPU",
            )
        return need.tokens
    longest = need.longest if context is None else min(need.longest, context)
    # One sequence may have a prompt as long as the context: the longest one of later steps is not known.
    most = need.sequences * sequence_tokens(longest) + sequence_tokens(context or longest)
    size = _whole_units((free - int(whole * _MARGIN)) // bytes_each, most)
    least = sequence_tokens(longest)
    if size < least:
        raise OutOfMemory(
            f"keys and values of a sequence of {longest:,} tokens take {_mib(least * bytes_each)} of the GPU's memory, "
            f"and {_mib(max(0, size) * bytes_each)} are left of it beside what learning takes",
            fix="set recompute = true, lower tokens_per_batch or sampling.max_tokens, or train an adapter (lora)",
        )
    return size


def _whole_units(tokens: int, most: int | None) -> int:
    return (tokens if most is None else min(tokens, most)) // UNIT * UNIT


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"


def _free(device: torch.device) -> tuple[int, int]:
    """Bytes that nobody uses, those that torch keeps for later included; all bytes of the card."""
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), whole


class PromptLayout:
    """Prompts end to end. Each attends once, and its keys and values go to its run of the memory."""

    def __init__(self, lengths: Sequence[int], starts: Sequence[int], memory: Memory) -> None:
        device = memory.tokens.device
        self._packed = PackedLayout(lengths, device)
        places = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        self._places = torch.cat(places).to(device)
        self._memory = memory

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        self._memory.keys[layer].index_copy_(1, self._places, key)
        self._memory.values[layer].index_copy_(1, self._places, value)
        return self._packed.attend(layer, query, key, value, rule)
