"""How the layers of a network are run while it learns: compiled on CUDA, and recomputed backwards when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from reasonmill.algo.fused import strictly_compiled
from reasonmill.errors import UnsupportedModel
from reasonmill.model.packed import PackedLayout


class LearningLayers:
    """The layers of a network as its learner runs them.

    On CUDA one layer is compiled and its kernels serve all layers that are alike, rows of any length included.

    Attributes:
        compiled: whether they are.
        remarks: what the user should know of that, a line each.

    Args:
        recompute: keep nothing of a layer but its input, and compute the rest once more in the backward pass.

    Raises:
        UnsupportedModel: layers must be recomputed, and the network has none that transformers knows as layers.
    """

    def __init__(self, network: PreTrainedModel, *, recompute: bool = False) -> None:
        self._network = network
        self._embeddings: Any = network.get_input_embeddings()
        self._has_run = False
        layers = [
            module for module in network.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        if recompute and not layers:
            raise UnsupportedModel(
                f"{type(network).__name__} does not say what its layers are, so that none can be recomputed",
                fix="learn without recomputing",
            )
        self.compiled = network.device.type == "cuda" and bool(layers)
        self.remarks: tuple[str, ...] = ()
        if network.device.type == "cuda" and not layers:
            self.remarks = (
                f"{type(network).__name__} does not say what its layers are: it learns without compiled code, which is "
                "slower",
            )
        self._calls: list[tuple[Any, Callable[..., Any]]] = []
        for layer in layers:
            call: Callable[..., Any] = layer._call_impl
            if self.compiled:
                call = torch.compile(call, dynamic=True)
            if recompute:
                call = partial(checkpoint, call, use_reentrant=False, preserve_rng_state=False)
            if self.compiled or recompute:
                self._calls.append((layer, call))

    @contextmanager
    def used(self) -> Iterator[None]:
        """In the block, the network runs its layers so; a sampler that shares the network does not."""
        if not self._calls:
            yield
            return
        if self.compiled and not self._has_run:
            self._run_once()
        with strictly_compiled():
            for layer, call in self._calls:
                layer._compiled_call_impl = call
            asked = self._embeddings.register_forward_hook(_ask_for_gradient) if self.compiled else None
            try:
                yield
            finally:
                if asked is not None:
                    asked.remove()
                for layer, _ in self._calls:
                    layer._compiled_call_impl = None

    @torch.no_grad()
    def _run_once(self) -> None:
        """Runs a row of one token through the layers as they are, which refuse what attention can't do for them."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self._network.device)
        layout = PackedLayout([1], self._network.device)
        self._network.get_decoder()(input_ids=token, position_ids=token, use_cache=False, layout=layout)
        self._has_run = True


def _ask_for_gradient(module: Any, inputs: Any, states: Tensor) -> Tensor:
    """Where embeddings are frozen, the first layer would be other code than the rest: what it reads has no gradient."""
    return states if states.requires_grad or not torch.is_grad_enabled() else states.requires_grad_()
