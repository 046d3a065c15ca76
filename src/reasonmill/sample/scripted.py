"""A sampler that says what it was told to: for tests of everything around a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from reasonmill.protocols import FollowUp, Renderer
from reasonmill.types import Completion, Request


class ScriptedSampler:
    """Completes each request with the tokens that `script` gives for it.

    Args:
        script: (request, policy version) to the completion's tokens; a stop token ends it early.
    """

    def __init__(self, renderer: Renderer, script: Callable[[Request, int], Sequence[int]]) -> None:
        self.version = 0
        self._renderer = renderer
        self._script = script

    def load(self, weights: Mapping[str, Tensor], version: int) -> None:
        self.version = version

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        waiting: list[tuple[int, Request]] = list(enumerate(requests))
        while waiting:
            finished = [(index, self._complete(request)) for index, request in waiting]
            following = follow_up(finished) if follow_up else [None] * len(finished)
            # Last first, because nobody may rely on the order in which completions finish.
            yield from [pair for pair, request in zip(finished, following, strict=True) if request is None][::-1]
            waiting = [(i, request) for (i, _), request in zip(finished, following, strict=True) if request is not None]

    def _complete(self, request: Request) -> Completion:
        tokens: list[int] = []
        for token in list(self._script(request, self.version))[: request.params.max_tokens]:
            tokens.append(token)
            if token in self._renderer.stop_tokens:
                break
        stopped = bool(tokens) and tokens[-1] in self._renderer.stop_tokens
        return Completion(
            tokens=tuple(tokens),
            logprobs=(0.0,) * len(tokens),
            sampled=(True,) * len(tokens),
            text=self._renderer.text(tokens),
            finish="stop" if stopped else "length",
            policy_version=self.version,
        )
