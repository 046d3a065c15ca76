"""Keys, values, drawn tokens and log-probs of sequences: runs of one long memory, sized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from math import prod
from typing import Any

import torch
from torch import Tensor

from reasonmill.errors import OutOfMemory
from reasonmill.model.attention import AttentionRule
from reasonmill.model.decoder import Decoder
from reasonmill.model.packed import PackedLayout
from reasonmill.placement import MARGIN, SAMPLING_SHARE
from reasonmill.protocols import MemoryNeed
from reasonmill.sample.cuda.lent_memory import LentMemory
from reasonmill.sample.cuda.rows import sent
from reasonmill.sample.cuda.runs import UNIT, Runs, sequence_tokens

# Bytes: the layers' parts begin at multiples, as torch's own blocks do.
_ALIGNED = 512
# Prompt tokens that are read in one forward pass, for which the margin suffices; of longer prompts, each alone.
PREFILL_TOKENS = 16384
# Numbers that a layer holds for each token while it reads prompts, in units of its width, and of its MLP's.
_WIDTHS, _MLP_WIDTHS = 12, 4
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

    Nothing of it is ever cleared: attention loads no key or value that is not the sequence's. So keys and values may be
    given back to the card where no sequence runs, and what lies in their place later is never read.

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
        if need is not None:
            more = max(0, need.prompt - PREFILL_TOKENS) * _reading_bytes(decoder)
            need = replace(need, beside=need.beside + more)
        size = _size(device, num_rows, decoder.context, self.bytes_per_token, need)
        self.runs = Runs(size)
        parts = {(layer, place): part for layer, pair in shapes.of.items() for place, part in enumerate(pair)}
        sizes = [_whole(part.shape[0] * size * part.shape[2] * part.element_size()) for part in parts.values()]
        self._lent = LentMemory(sum(sizes), device) if device.type == "cuda" else None
        numbers = self._lent.tensor() if self._lent else torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        found = {
            where: _as(run, part, size)
            for (where, part), run in zip(parts.items(), numbers[: sum(sizes)].split(sizes), strict=True)
        }
        self.keys = {layer: found[layer, 0] for layer in shapes.of}
        self.values = {layer: found[layer, 1] for layer in shapes.of}
        self.tokens = torch.zeros(size, dtype=torch.int32, device=device)
        self.logprobs = torch.zeros(size, dtype=torch.float32, device=device)

    def take(self) -> None:
        """Makes room for keys and values, where it was given back.

        Raises:
            OutOfMemory: there is none.
        """
        if self._lent:
            self._lent.take()

    def give_back(self) -> None:
        """Gives the room of all keys and values back to the card; what was drawn stays."""
        if self._lent:
            self._lent.give_back()

    def require(self, others: int) -> None:
        """Looks whether others find so many bytes where the room of keys and values is given back.

        Raises:
            OutOfMemory: they do not.
        """
        left = _free(self.tokens.device)[0] + self._lent.size if self._lent else others
        if left < others:
            raise OutOfMemory(
                f"learning takes {_mib(others)} of the GPU's memory beside what stays there, and {_mib(left)} are left",
                fix="set recompute = true, lower tokens_per_batch or sampling.max_tokens, or train an adapter (lora)",
            )


def _reading_bytes(decoder: Decoder) -> int:
    """About how many bytes each token of a prompt takes while it is read."""
    config = decoder.config.get_text_config()
    mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(decoder.dtype.itemsize * (_WIDTHS * config.hidden_size + _MLP_WIDTHS * mlp))


def _whole(size: int) -> int:
    """Bytes of a part with what is left free behind it."""
    return -(-size // _ALIGNED) * _ALIGNED


def _as(numbers: Tensor, like: Tensor, tokens: int) -> Tensor:
    """The first of these bytes as [K, tokens, D], of the type and with the K and D of `like`."""
    shape = (like.shape[0], tokens, like.shape[2])
    return numbers.view(like.dtype)[: prod(shape)].view(shape)


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
        room = int(whole * SAMPLING_SHARE)
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
    size = _whole_units((free - int(whole * MARGIN)) // bytes_each, most)
    least = sequence_tokens(longest)
    if size < least:
        raise OutOfMemory(
            f"keys and values of a sequence of {longest:,} tokens take {_mib(least * bytes_each)} of the GPU's memory, "
            f"and {_mib(max(0, size) * bytes_each)} are left of it beside what stays there while it is sampled",
            fix="lower sampling.max_tokens, train an adapter (lora), whose optimizer is small, or take a smaller model",
        )
    return size


def _whole_units(tokens: int, most: int | None) -> int:
    return (tokens if most is None else min(tokens, most)) // UNIT * UNIT


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"


def _free(device: torch.device) -> tuple[int, int]:
    """Bytes that nobody has; all bytes of the card. What torch keeps for later is freed, but for holes between blocks,
    which only torch can use."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)


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
