"""The state of running sequences on the device, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reasonmill.sample.cuda.table import Running

# What `Rows.running` says of a row.
IDLE, RUNNING, NOT_FINITE = 0, 1, 2


def sent(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers on the device, without waiting for what it computes; only then does the copy come."""
    tensor = torch.tensor(numbers)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Rows:
    """What kernels read and write. All rows are in two tensors, so that moving them takes two copies.

    Attributes:
        token: that the next step reads; `position` its place in the sequence.
        running: one of IDLE, RUNNING and NOT_FINITE.
        limit: position behind the last token that may be drawn.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.integers = torch.zeros((9, num_rows), dtype=torch.int64, device=device)
        self.reals = torch.ones((2, num_rows), dtype=torch.float32, device=device)
        (
            self.running, self.position, self.token, self.prompt_length, self.prompt_start, self.start,
            self.noise_key, self.limit, self.top_k,
        ) = self.integers.unbind()  # fmt: skip
        self.temperature, self.top_p = self.reals.unbind()

    def clear(self) -> None:
        """Forgets what rows were before, which idle rows of a batch would still be computed from."""
        self.integers.zero_()
        self.reals.fill_(1.0)

    def fill(self, new: Sequence[Running]) -> None:
        """Starts sequences in their rows. The first step reads the prompt's last token, the first of the row's own."""
        integers, reals = [], []
        for one in new:
            params, length = one.request.params, one.prompt.length
            integers.append(
                (
                    *(RUNNING, length, one.prompt.tokens[-1], length, one.prompt.start, one.start),
                    *(one.request.noise_key, length + params.max_tokens, params.top_k),
                )
            )
            reals.append((params.temperature, params.top_p))
        index = sent([one.row for one in new], self.integers.device)
        self.integers[:, index] = sent(integers, index.device).T
        self.reals[:, index] = sent(reals, index.device).T

    def stop(self, rows: Sequence[int]) -> None:
        self.running[sent(rows, self.running.device)] = IDLE

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies each source row to its target row, which is idle, and leaves it idle."""
        source, target = sent(sources, self.integers.device), sent(targets, self.integers.device)
        self.integers[:, target] = self.integers[:, source]
        self.reals[:, target] = self.reals[:, source]
        self.running[source] = IDLE

    def seen(self, count: int) -> Tensor:
        """[2, count]: what the host looks at, `running` and `position`."""
        return self.integers[:2, :count]
