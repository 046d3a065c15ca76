"""Keys, values, drawn tokens and log-probs of sequences: runs of one long memory, sized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from reasonmill.errors import UnsupportedModel
from reasonmill.model.attention import AttentionRule, PackedLayout
from reasonmill.model.decoder import Decoder
from reasonmill.sample.cuda.rows import sent
from reasonmill.sample.cuda.runs import UNIT, Runs

# Of the card's memory; the rest is for weights, their optimizer and what a learner needs for its gradients.
_SHARE = 0.4
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
        most_tokens: more than so many can't be used.

    Raises:
        UnsupportedModel: the share of the device's memory that is for it is not free.
    """

    def __init__(self, decoder: Decoder, most_tokens: int | None) -> None:
        shapes, device = _Shapes(), decoder.device
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        decoder.hidden(zero, zero, shapes)
        self.bytes_per_token = 8 + sum(
            part.shape[0] * part.shape[2] * part.element_size() for pair in shapes.of.values() for part in pair
        )
        tokens = _affordable_bytes(device, most_tokens, self.bytes_per_token) // self.bytes_per_token
        size = min(tokens, most_tokens or tokens) // UNIT * UNIT
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


def _affordable_bytes(device: torch.device, most_tokens: int | None, bytes_per_token: int) -> int:
    """A share of the whole card, and not of what happens to be free: how many sequences run at a time moves bits."""
    if device.type != "cuda":
        return _INTERPRETED
    free, whole = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    wanted = int(whole * _SHARE)
    if most_tokens is not None:
        wanted = min(wanted, most_tokens * bytes_per_token)
    if wanted > free:
        raise UnsupportedModel(
            f"sequences need {wanted >> 20:,} MiB of the card's memory for their keys and values, and "
            f"{free >> 20:,} MiB are free",
            fix="end other programs on the card, take a smaller model, or lower slots",
        )
    return wanted


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
