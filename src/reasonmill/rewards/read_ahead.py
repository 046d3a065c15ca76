"""Texts whose languages are found by workers while the sampler samples, so that nobody has to wait for them later."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from reasonmill import languages
from reasonmill.workers.answers import Failed
from reasonmill.workers.limits import Limits
from reasonmill.workers.pool import Workers

# With fewer processors, all of them are needed to sample.
PROCESSORS = 4
# Texts with fewer characters are read as fast as a worker is asked.
SHORT = 200
_LIMITS = Limits()


class Reading:
    """Finds languages in a worker: a plug-in that makes itself again."""

    title = "the measure of languages"

    def make_again(self) -> Reading:
        return self

    def prepare(self) -> None:
        """Reads the model of languages before workers are forked."""
        languages.words_by_language("what is read first, and by all")


@dataclass(frozen=True)
class WordsCall:
    """Asks for the words of a text by language. The text is all that is sent."""

    text: str

    @property
    def seed(self) -> str:
        return ""  # nothing is drawn

    def __call__(self, reading: Reading) -> dict[str, float]:
        return languages.words_by_language(self.text)


class ReadAhead:
    """Has texts read by workers, where there are processors to spare. It changes no answer: a text that no worker has
    read is read by whoever asks for its languages.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._reading = Reading()

    def __call__(self, text: str) -> Callable[[], None]:
        """Begins to read a text, and returns at once; the function waits until it is read."""
        has_spare = sys.platform == "linux" and self._workers.size >= PROCESSORS
        if not has_spare or len(text) < SHORT or languages.is_remembered(text):
            return _is_read
        answer = self._workers.ask(self._reading, WordsCall(text), isolation="worker", limits=_LIMITS)

        def wait() -> None:
            with suppress(Failed):
                languages.remember(text, answer.value())

        return wait


def _is_read() -> None:
    """Of a text that nobody has to wait for."""
