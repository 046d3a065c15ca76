"""Completions of a stage that takes long to draw them, kept as they end, so that a kill loses nearly none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from reasonmill.errors import Interrupted
from reasonmill.kept import Kept
from reasonmill.protocols import Draws, FollowUp
from reasonmill.store.completions import COMPLETIONS_FILE, read_completions, write_completions
from reasonmill.store.home import Home
from reasonmill.types import Completion, Request, content_digest

# Completions are kept together that end within this time, and for so many times as long as it takes to keep them: a
# kill costs no more than that, and keeping them no more than a twentieth of the time.
_TOGETHER_S, _TIMES = 0.25, 20


class KeptSampler:
    """A sampler that keeps what it draws, and does not draw again what was kept.

    On what is drawn it has no effect but for roundings: a completion is drawn by its own numbers, whatever is drawn
    beside it. Episodes, which go on from turn to turn, are not kept.

    Args:
        stop_requested: looked at after each completion.
    """

    def __init__(self, sampler: Draws, home: Home, key: str, stop_requested: Callable[[], bool]) -> None:
        self._sampler = sampler
        self._stop_requested = stop_requested
        self._kept: Kept[Completion] = Kept(
            home,
            f"{key}/samples",
            write=lambda drawn, target: write_completions(target / COMPLETIONS_FILE, drawn),
            read=lambda source: read_completions(source / COMPLETIONS_FILE),
            instead="these samples are drawn again",
        )

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yields (index, completion): first what is kept, then what is drawn.

        Raises:
            Interrupted: the user asked to stop; what was drawn is kept.
        """
        if follow_up is not None:
            yield from self._sampler.generate(requests, follow_up)
            return
        names = [_name(request) for request in requests]
        found = {index: kept for index, name in enumerate(names) if (kept := self._kept.find(name)) is not None}
        yield from found.items()
        missing = [index for index in range(len(requests)) if index not in found]
        fresh: dict[str, Completion] = {}
        due = time.monotonic() + _TOGETHER_S
        try:
            for place, completion in self._sampler.generate([requests[index] for index in missing]):
                fresh[names[missing[place]]] = completion
                now = time.monotonic()
                if now >= due:
                    self._keep(fresh)
                    took = time.monotonic() - now
                    due = now + took + max(_TOGETHER_S, _TIMES * took)
                if self._stop_requested():
                    raise Interrupted("stopped in the middle of an evaluation; the samples that had ended are kept")
                yield missing[place], completion
        finally:
            self._keep(fresh)

    def drop(self) -> None:
        """Forgets what is kept: the groups that were made of it are committed."""
        self._kept.drop()

    def _keep(self, fresh: dict[str, Completion]) -> None:
        if fresh:
            self._kept.keep(dict(fresh))
            fresh.clear()


def _name(request: Request) -> str:
    """All that a request says."""
    said: Mapping[str, object] = asdict(request)
    return content_digest(said)[:32]
