"""A reward without a signal: the accuracies of the attempts at a problem, shuffled. A recipe names it by this file."""

from __future__ import annotations

from collections.abc import Sequence

from reasonmill.protocols import Attempt, Measured
from reasonmill.randomness import generator
from reasonmill.rewards.grades import ACCURACY, own_grades
from reasonmill.tasks.named import NamedTask


class Shuffled:
    """Each attempt gets the accuracy of another one at the same problem, or its own, by chance.

    As many are rewarded as the grader would, and which of them says nothing.
    """

    of_groups = True

    def require(self, task: NamedTask) -> None:
        """Takes any task."""

    def measure(self, attempt: Attempt) -> float | Measured | None:
        """That of a lone attempt is its own."""
        (measured,) = self.measure_group([attempt])
        return measured

    def measure_group(self, attempts: Sequence[Attempt]) -> list[Measured]:
        """The accuracies in another order, which the first attempt's name decides.

        Workers measure it, and don't know what the grader said: the task is asked once more.
        """
        given = []
        for attempt in attempts:
            (grade,) = own_grades(attempt.task, attempt.problem, [attempt.completion])
            given.append(Measured(grade.parts.get(ACCURACY), grade.error or ""))
        generator("shuffled", *attempts[0].noise).shuffle(given)
        return given
