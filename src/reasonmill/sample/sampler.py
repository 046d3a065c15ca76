"""The sampler over an engine: all requests of a call at once, or one request token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from reasonmill.protocols import Engine, FollowUp, MemoryNeed
from reasonmill.types import Completion, Request


class EngineSampler:
    """Samples through an engine, which several calls may use at the same time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._arrived: dict[int, Completion] = {}  # by ticket, until the call that submitted it looks

    @property
    def version(self) -> int:
        return self._engine.version

    @property
    def repeatable(self) -> bool:
        return self._engine.repeatable

    @property
    def in_fp32(self) -> bool:
        return self._engine.in_fp32

    def copied_bytes(self, sequences: int) -> int:
        """Bytes of copies of weights that the engine holds while so many sequences run."""
        return self._engine.copied_bytes(sequences)

    def reserve(self, need: MemoryNeed) -> int:
        """Makes the engine's memory while nothing runs; see `Engine`."""
        return self._engine.reserve(need)

    def rest(self) -> None:
        """Gives back what memory the engine can take again."""
        self._engine.rest()

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes new weights by name; completions that start afterwards carry `version`."""
        self._engine.take(weights, version)

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yields (index, completion) as completions finish; a call that is given up leaves nothing behind.

        Raises:
            UnsupportedModel: a request does not fit into the model's context.
        """
        indices: dict[int, int] = {}  # by ticket, of what is still to come
        try:
            for index, request in enumerate(requests):
                indices[self._engine.submit(request)] = index
            while indices:
                finished = self._finished(indices)
                following = [None] * len(finished) if follow_up is None else follow_up(finished)
                for (index, _), asked in zip(finished, following, strict=True):
                    if asked is not None:
                        indices[self._engine.submit(asked)] = index
                yield from (done for done, asked in zip(finished, following, strict=True) if asked is None)
        finally:
            self._forget(indices)

    def stream(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one completion as they are drawn.

        Raises:
            UnsupportedModel: the request does not fit into the model's context.
        """
        ticket = self._engine.submit(request)
        shown = 0
        try:
            while ticket not in self._arrived:
                self._step()
                tokens = self._engine.drawn(ticket, shown)
                yield from tokens
                shown += len(tokens)
            yield from self._arrived[ticket].tokens[shown:]
        finally:
            self._forget([ticket])

    def _finished(self, indices: dict[int, int]) -> list[tuple[int, Completion]]:
        """Index and completion of those that finish in the next step in which any do, in the order of the indices."""
        while not (tickets := self._arrived.keys() & indices.keys()):
            self._step()
        finished = [(indices.pop(ticket), self._arrived.pop(ticket)) for ticket in tickets]
        return sorted(finished, key=lambda pair: pair[0])

    def _step(self) -> None:
        self._engine.step()
        self._arrived.update(self._engine.finished())

    def _forget(self, tickets: Iterable[int]) -> None:
        for ticket in tickets:
            if self._arrived.pop(ticket, None) is None:
                self._engine.cancel(ticket)
