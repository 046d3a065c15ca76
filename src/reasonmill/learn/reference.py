"""The reference of the KL term: what the policy was, some steps ago, or without its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from reasonmill.model.lora import Adapter

_PREFIX = "reference/"


class FrozenPolicy:
    """A frozen copy of a network's weights.

    It lends its weights to the network for as long as it scores, so that only the weights exist twice.

    Args:
        weights: the network's own by name, which change in place.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._network = weights
        self._kept: dict[str, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """What the copy takes."""
        return sum(weight.numel() * weight.element_size() for weight in self._network.values())

    @torch.no_grad()
    def keep(self) -> None:
        """Takes the network's weights as they are now."""
        for name, weight in self._network.items():
            if name in self._kept:
                self._kept[name].copy_(weight)
            else:
                self._kept[name] = weight.detach().clone()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """In the block, the network has the weights that were kept.

        Raises:
            RuntimeError: none were kept.
        """
        if not self._kept:
            raise RuntimeError("no reference was kept")
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._network.items():
            own = weight.clone()
            weight.copy_(self._kept[name])
            self._kept[name].copy_(own)

    def state(self) -> dict[str, Tensor]:
        """The kept weights, not copied, named apart from the learner's state; empty if none were kept."""
        return {f"{_PREFIX}{name}": weight for name, weight in self._kept.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back the weights of a learner's state; none if that has none."""
        names = [name for name in self._network if f"{_PREFIX}{name}" in state]
        self._kept = {name: state[f"{_PREFIX}{name}"].to(self._network[name].device, copy=True) for name in names}


class WithoutAdapter:
    """The network without its adapter, which is what it was before the first step. Nothing is copied or kept."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    @property
    def num_bytes(self) -> int:
        """Nothing."""
        return 0

    def keep(self) -> None:
        """Changes nothing: the reference is the same at every step."""

    def lent(self) -> AbstractContextManager[None]:
        """In the block, the network computes without the adapter."""
        return self._adapter.off()

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes nothing back."""
