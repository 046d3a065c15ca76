"""What engines on a decoder have in common: requests that wait for their turn, completions to be asked for."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor

from reasonmill.model.decoder import Decoder
from reasonmill.protocols import Renderer
from reasonmill.sample.requests import refuse
from reasonmill.types import Completion, Request


class Queue:
    """The front of an engine: it takes requests and weights, and hands out completions.

    Attributes:
        version: that of the weights.
    """

    def __init__(self, decoder: Decoder, renderer: Renderer) -> None:
        self.version = 0
        self._decoder = decoder
        self._renderer = renderer
        self._tickets = itertools.count()
        self._waiting: OrderedDict[int, Request] = OrderedDict()  # by ticket
        self._finished: list[tuple[int, Completion]] = []

    @property
    def in_fp32(self) -> bool:
        return self._decoder.in_fp32

    def copied_bytes(self, sequences: int) -> int:
        """None: it reads the weights where they are."""
        return 0

    def rest(self) -> None:
        """Nothing is given back."""

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights by name; those that are the decoder's own tensors already need no copy."""
        self._decoder.take(weights)
        self.version = version

    def submit(self, request: Request) -> int:
        """Puts a request behind those that wait.

        Raises:
            UnsupportedModel: it does not fit into the model's context, has a token without a row, or is over before it
                begins.
        """
        refuse(request, self._decoder, self._renderer)
        ticket = next(self._tickets)
        self._waiting[ticket] = request
        return ticket

    def finished(self) -> list[tuple[int, Completion]]:
        """Tickets and completions that were finished since last asked."""
        finished, self._finished = self._finished, []
        return finished

    def _forget(self, ticket: int) -> None:
        """Drops a request that waits, or its completion."""
        self._waiting.pop(ticket, None)
        self._finished = [entry for entry in self._finished if entry[0] != ticket]
