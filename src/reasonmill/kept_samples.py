"""Completions of a stage that takes long to draw them, kept as they end, so that a kill loses nearly none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from reasonmill.activity import at_beats
from reasonmill.errors import Interrupted
from reasonmill.kept import Kept
from reasonmill.protocols import Draws, FollowUp
from reasonmill.store.completions import COMPLETIONS_FILE, read_completions, write_completions
from reasonmill.store.home import Home
from reasonmill.types import Completion, Request, content_digest

# Completions are kept together that end within this time, and within so many times the time that it takes to keep them:
# a kill costs no more than that, and keeping them no more than a twentieth of the time.
_TOGETHER_S, _TIMES = 0.25, 20


class KeptSampler:
    """A sampler that keeps what it draws, and does not draw again what was kept.

    On what is drawn it has no effect but for roundings: a completion is drawn by its own numbers, whatever is drawn
    beside it. Episodes, which go on from turn to turn, are not kept.

    Args:
        stop_requested: looked at while completions are drawn.
    """

    def __init__(self, sampler: Draws, home: Home, key: str, stop_requested: Callable[[], bool]) -> None:
        self._sampler = sampler
        self._stop_requested = stop_requested
        self._fresh: dict[str, Completion] = {}  # what is not kept yet
        self._due = 0.0
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
        drawn = self._sampler.generate([requests[index] for index in missing])
        try:
            while True:
                # At the sampler's beats, between two tokens: the next completion may take long.
                with at_beats(self._look):
                    finished = next(drawn, None)
                if finished is None:
                    return
                index = missing[finished[0]]
                self._fresh[names[index]] = finished[1]
                yield index, finished[1]
        finally:
            self._keep()

    def drop(self) -> None:
        """Forgets what is kept: the groups that were made of it are committed."""
        self._kept.drop()

    def _look(self) -> None:
        if self._fresh and time.monotonic() >= self._due:
            began = time.monotonic()
            self._keep()
            now = time.monotonic()
            self._due = now + max(_TOGETHER_S, _TIMES * (now - began))
        if self._stop_requested():
            raise Interrupted("stopped in the middle of an evaluation; the samples that had ended are kept")

    def _keep(self) -> None:
        if self._fresh:
            self._kept.keep(self._fresh)
            self._fresh = {}


def _name(request: Request) -> str:
    """All that a request says."""
    said: Mapping[str, object] = asdict(request)
    return content_digest(said)[:32]
