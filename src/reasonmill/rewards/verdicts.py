"""Verdicts of a judge, committed as they come: nobody is asked twice, also where what was made of them is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from reasonmill.errors import Interrupted
from reasonmill.protocols import Progress
from reasonmill.store.home import Home
from reasonmill.store.steps import V, committed_verdicts

Q = TypeVar("Q")

# Verdicts that are asked for together, and committed before the next are.
AT_ONCE = 256


class Run(Protocol):
    """What a stage's context tells about the run."""

    @property
    def key(self) -> str: ...
    @property
    def home(self) -> Home: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def stop_requested(self) -> Callable[[], bool]: ...


def verdicts_on(
    questions: Sequence[Q], ask: Callable[[Sequence[Q], Callable[[int], None]], Sequence[V]], *, run: Run, stage: str
) -> list[V]:
    """A verdict on each question, in their order.

    Args:
        questions: those of the stage, the same ones each time.
        ask: asks the judge about some of them, and tells the function that it is given how many have been answered.
        stage: the stage's name, for messages.

    Raises:
        Interrupted: the user asked to stop; the verdicts so far are kept.
        ServerError: the judge can't be reached, or refuses a request; earlier verdicts are kept.
    """
    verdicts: list[V] = []
    for part, first in enumerate(range(0, len(questions), AT_ONCE)):

        def asked(first: int = first) -> Sequence[V]:
            if run.stop_requested():
                raise Interrupted(
                    f"stopped stage {stage!r} after {first} of {len(questions)} verdicts",
                    fix="run the same command again to go on",
                )
            waiting = questions[first : first + AT_ONCE]
            return ask(waiting, lambda finished: run.progress.advance(first + finished, {}))

        verdicts += committed_verdicts(run.home, run.key, part, asked)
    return verdicts
