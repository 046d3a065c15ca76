"""An engine that says what it was told to: for tests of everything around engines and samplers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from reasonmill.protocols import MemoryNeed, Renderer
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Completion, Request

Script = Callable[[Request, int], Sequence[int]]


@dataclass
class _Running:
    ticket: int
    version: int
    tokens: list[int]  # all that it will have said, its stop token last if it has one
    stops: bool
    said: int = 0


class ScriptedEngine:
    """Completes each request with the tokens that `script` gives for it, one a step.

    Args:
        script: (request, policy version) to the completion's tokens; a stop token ends it early.
        num_slots: requests that run at the same time.
    """

    repeatable = True
    in_fp32 = False

    def __init__(self, renderer: Renderer, script: Script, *, num_slots: int = 512) -> None:
        self.version = 0
        self._renderer = renderer
        self._script = script
        self._num_slots = num_slots
        self._tickets = itertools.count()
        self._waiting: dict[int, Request] = {}
        self._running: list[_Running] = []
        self._finished: list[tuple[int, Completion]] = []

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.version = version

    def reserve(self, need: MemoryNeed) -> int:
        return 0

    def rest(self) -> None:
        pass

    def copied_bytes(self, sequences: int) -> int:
        return 0

    def submit(self, request: Request) -> int:
        ticket = next(self._tickets)
        self._waiting[ticket] = request
        return ticket

    def step(self) -> None:
        for ticket in list(self._waiting)[: self._num_slots - len(self._running)]:
            self._running.append(self._started(ticket, self._waiting.pop(ticket)))
        for running in self._running:
            running.said += 1
        done = [running for running in self._running if running.said >= len(running.tokens)]
        self._running = [running for running in self._running if running.said < len(running.tokens)]
        # Last first, because nobody may rely on the order in which completions finish.
        self._finished += [(running.ticket, self._completion(running)) for running in reversed(done)]

    def finished(self) -> list[tuple[int, Completion]]:
        finished, self._finished = self._finished, []
        return finished

    def drawn(self, ticket: int, start: int = 0) -> list[int]:
        return [
            t for running in self._running if running.ticket == ticket for t in running.tokens[start : running.said]
        ]

    def cancel(self, ticket: int) -> None:
        self._waiting.pop(ticket, None)
        self._running = [running for running in self._running if running.ticket != ticket]
        self._finished = [entry for entry in self._finished if entry[0] != ticket]

    def _started(self, ticket: int, request: Request) -> _Running:
        tokens: list[int] = []
        for token in list(self._script(request, self.version))[: request.params.max_tokens]:
            tokens.append(token)
            if token in self._renderer.stop_tokens:
                return _Running(ticket, self.version, tokens, stops=True)
        return _Running(ticket, self.version, tokens, stops=False)

    def _completion(self, running: _Running) -> Completion:
        tokens = running.tokens
        return Completion(
            tokens=tuple(tokens),
            logprobs=(0.0,) * len(tokens),
            sampled=(True,) * len(tokens),
            text=self._renderer.text(tokens),
            finish="stop" if running.stops else "length",
            policy_version=running.version,
        )


class ScriptedSampler(EngineSampler):
    """Samples a script."""

    def __init__(self, renderer: Renderer, script: Script, *, num_slots: int = 512) -> None:
        super().__init__(ScriptedEngine(renderer, script, num_slots=num_slots))
