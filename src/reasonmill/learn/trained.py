"""What all learners of one process have in common: AdamW on the network's own weights, and their state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from reasonmill.algo.packing import Batch, TextRow
from reasonmill.learn.adamw import AdamW
from reasonmill.learn.divergence import cause_of, digest_of, is_finite
from reasonmill.learn.reference import FrozenPolicy, WithoutAdapter
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.learn.state_file import StateFile, write_state
from reasonmill.model.lora import Adapter
from reasonmill.model.saving import save_network


class TrainedNetwork:
    """Trains the weights of a network in place, or the adapter that was added to it.

    Attributes:
        skipped_batch: digest of what the last skipped update was made of; empty if none was skipped.

    Args:
        companions: the model directory whose tokenizer a saved model keeps; None for a model without one.
        adapter: the network's; all else of it is frozen.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        optimizer: OptimizerSettings,
        companions: Path | None,
        adapter: Adapter | None = None,
    ) -> None:
        self.companions = companions
        self._network = network
        self._adapter = adapter
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._optimizer = AdamW(self._parameters, optimizer)
        self._reference = FrozenPolicy(self._parameters) if adapter is None else WithoutAdapter(adapter)
        self._rows: list[Batch | TextRow] = []  # what the update that is being gathered is made of
        self._faults: set[str] = set()  # what of it was not finite
        self.skipped_batch = ""

    @property
    def num_parameters(self) -> int:
        """How many are trained."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One AdamW step, or none where something of the update was not finite: see `AdamW.step`."""
        updated = self._optimizer.step(learning_rate, cause_of(self._faults))
        if updated["optim/skipped"]:
            self.skipped_batch = digest_of(self._rows)
        self._rows, self._faults = [], set()
        return updated

    @contextmanager
    def _gradients_aside(self) -> Iterator[None]:
        """In the block, parameters have no gradients; those that are gathered are back after it.

        torch does not trace what reads a parameter whose gradient has another dtype. A layer that meets a new kind of
        length while gradients are gathered would be compiled in pieces, and run in these from then on.
        """
        gathered = [(parameter, parameter.grad) for parameter in self._parameters.values()]
        for parameter, _ in gathered:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gathered:
                parameter.grad = gradient

    def _forget(self) -> None:
        """Drops the update that is being gathered."""
        for parameter in self._parameters.values():
            parameter.grad = None
        self._rows, self._faults = [], set()

    def _gather(self, row: Batch | TextRow, **values: Tensor | float | None) -> None:
        """Notes a batch of the update and what was made from it, by the name of the cause that each would be."""
        self._rows.append(row)
        self._faults.update(name for name, value in values.items() if value is not None and not is_finite(value))

    def save(self, directory: Path) -> None:
        """Writes all that later updates depend on, tensor by tensor."""
        write_state(directory, {**self._optimizer.state(), **self._reference.state()})

    def load(self, directory: Path) -> None:
        """Takes back what `save` wrote; the network's weights follow.

        Raises:
            KeyError: the state is of another network.
        """
        state = StateFile(directory)
        self._optimizer.load_state(state)
        self._reference.load_state(state)

    def save_model(self, directory: Path) -> None:
        """Writes config, weights and what goes with them, as transformers loads them; see `save_network`."""
        save_network(self._network, directory, companions=self.companions, adapter=self._adapter)
