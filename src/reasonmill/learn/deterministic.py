"""Gradients that are the same to the bit each time: what replaying a step on a GPU relies on.

Kernels of the backward pass of attention let thread blocks add to one gradient in the order in which they happen to
end. torch knows others that keep an order, and refuses what has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic as torch_deterministic

from reasonmill.errors import UnsupportedModel


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """In the block, what is computed on a GPU does not depend on the order in which its threads end.

    On a CPU there is nothing to choose: its sums depend on the number of threads alone.

    Raises:
        UnsupportedModel: torch knows no such kernel for something that the model does.
    """
    if device.type != "cuda":
        yield
        return
    was_enabled = torch.are_deterministic_algorithms_enabled()
    was_filled: bool = torch_deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # It would write NaN over all new memory first, to show who reads it unwritten.
    torch_deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise UnsupportedModel(
            f"its gradients would differ each time: {str(error).partition('.')[0]}",
            fix="train it on a CPU, or use another model",
        ) from error
    finally:
        torch.use_deterministic_algorithms(was_enabled)
        torch_deterministic.fill_uninitialized_memory = was_filled  # type: ignore[attr-defined]
