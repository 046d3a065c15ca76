"""What an engine knows of its running sequences: one slot each, the running ones always the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from reasonmill.sample.cache import SlotCache
from reasonmill.types import Request


@dataclass
class Running:
    """What the host knows of a running request."""

    ticket: int
    request: Request
    version: int
    generated: int = 0
    is_cancelled: bool = False

    @property
    def length(self) -> int:
        """Tokens of the sequence so far, the one drawn last included."""
        return len(self.request.prompt_tokens) + self.generated


class SlotRows:
    """State of the slots on the device, a row each.

    Attributes:
        position: of the token that the next step reads.
        tokens, logprobs: [slots, length] of what was drawn so far.
    """

    def __init__(self, num_slots: int, length: int, device: torch.device) -> None:
        integers = partial(torch.zeros, dtype=torch.int64, device=device)
        reals = partial(torch.zeros, dtype=torch.float32, device=device)
        self.last_token, self.position, self.noise_key, self.top_k = (integers(num_slots) for _ in range(4))
        self.temperature, self.top_p = reals(num_slots), reals(num_slots)
        self.tokens, self.logprobs = integers((num_slots, length)), reals((num_slots, length))

    def fill(self, first: int, requests: Sequence[Request]) -> None:
        """Prepares the rows `first` and after for new requests."""
        rows, device = slice(first, first + len(requests)), self.position.device
        # The first step reads the token drawn from the prompt, which stands right behind it.
        self.position[rows] = torch.tensor([len(r.prompt_tokens) - 1 for r in requests], device=device)
        self.noise_key[rows] = torch.tensor([r.noise_key for r in requests], device=device)
        self.temperature[rows] = torch.tensor([r.params.temperature for r in requests], device=device)
        self.top_k[rows] = torch.tensor([r.params.top_k for r in requests], device=device)
        self.top_p[rows] = torch.tensor([r.params.top_p for r in requests], device=device)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies each source row to its target row."""
        source, target = torch.tensor(sources), torch.tensor(targets)
        for tensor in vars(self).values():
            tensor[target] = tensor[source]


class Slots:
    """The slots of an engine: keys and values, rows of state, and what runs in them.

    Args:
        length: tokens that a slot can hold, prompt and completion.
    """

    def __init__(self, num_slots: int, length: int, device: torch.device) -> None:
        self.cache = SlotCache(num_slots, length, device)
        self.rows = SlotRows(num_slots, length, device)
        self.running: list[Running] = []

    @property
    def free(self) -> int:
        return self.cache.num_slots - len(self.running)

    def start(self, new: Sequence[Running]) -> None:
        """Gives the next free slots to new requests."""
        first = len(self.running)
        self.rows.fill(first, [running.request for running in new])
        self.running.extend(new)

    def drop(self, gone: Sequence[int]) -> None:
        """Frees slots and moves the last running ones into their places."""
        kept = len(self.running) - len(gone)
        left = set(gone)
        holes = [slot for slot in gone if slot < kept]
        movers = [slot for slot in range(kept, len(self.running)) if slot not in left]
        for slot in (*gone, *movers):
            self.cache.used[slot] = self.running[slot].length
        if holes:
            self.cache.move(movers, holes, max(self.running[mover].length for mover in movers))
            self.rows.move(movers, holes)
            for mover, hole in zip(movers, holes, strict=True):
                self.running[hole] = self.running[mover]
        del self.running[kept:]
