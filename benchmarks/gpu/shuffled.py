"""A reward without a signal: the accuracies of the attempts at a problem, shuffled. A recipe names it by this file."""

from __future__ import annotations

from collections.abc import Sequence

from reasonmill.protocols import Attempt, Measured
from reasonmill.randomness import generator
from reasonmill.tasks.named import NamedTask


class Shuffled:
    """Each attempt gets the accuracy of another one at the same problem, or its own, by chance.

    As many are rewarded as the grader would, and which of them says nothing.
    """

    of_groups = True

    def require(self, task: NamedTask) -> None:
        """Takes any task."""

    def measure(self, attempt: Attempt) -> float | None:
        """That of a lone attempt is its own."""
        return attempt.accuracy

    def measure_group(self, attempts: Sequence[Attempt]) -> list[Measured]:
        """The accuracies in another order, which the first attempt's name decides."""
        given = [Measured(attempt.accuracy) for attempt in attempts]
        generator("shuffled", *attempts[0].noise).shuffle(given)
        return given
