"""How evenly the routers of a network with experts spread its tokens while it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Routers:
    """Counts which experts a network's routers choose; of a network without experts there is nothing to count.

    A router is what transformers makes one: a module that knows how many experts a token gets (`top_k`), has a row of
    weights for each expert, and gives the chosen ones' numbers as the last of its outputs.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self._routers: list[nn.Module] = []
        self._counts: list[Tensor] = []
        # Made once: code that is compiled with a hook in it would be compiled anew for another object.
        self._hooks: list[Callable[..., None]] = []
        for module in network.modules():
            weight = getattr(module, "weight", None)
            if isinstance(getattr(module, "top_k", None), int) and isinstance(weight, Tensor) and weight.ndim == 2:
                self._routers.append(module)
                self._counts.append(torch.zeros(weight.shape[0], dtype=torch.int64, device=weight.device))
                self._hooks.append(partial(_count, self._counts[-1]))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts in the block. Layers that are computed once more for the backward pass count twice, all alike."""
        registered = [
            router.register_forward_hook(hook) for router, hook in zip(self._routers, self._hooks, strict=True)
        ]
        try:
            yield
        finally:
            for one in registered:
                one.remove()

    def forget(self) -> None:
        """Begins to count anew."""
        for counts in self._counts:
            counts.zero_()

    def balance(self) -> dict[str, float]:
        """What was counted, as means over the routers; empty where there are none.

        "router/busiest" is how many times as many tokens the busiest expert gets as the mean one: 1 is even, and the
        number of experts over `top_k` is the worst. "router/idle" is the share of experts that no token was sent to.
        """
        if not self._counts:
            return {}
        shares = [counts.double() / counts.double().mean().clamp(min=1e-300) for counts in self._counts]
        busiest = torch.stack([share.max() for share in shares]).mean()
        idle = torch.stack([(counts == 0).double().mean() for counts in self._counts]).mean()
        return {"router/busiest": float(busiest), "router/idle": float(idle)}


@torch.no_grad()
def _count(counts: Tensor, router: nn.Module, inputs: Any, outputs: Any) -> None:
    # A comparison with each number, for other ways to count have no deterministic kernel on CUDA.
    numbers = torch.arange(len(counts), device=counts.device)
    counts.add_((outputs[-1].reshape(-1, 1) == numbers).sum(0))
