"""The task `rows`: rows of data, and a reward that decides about the responses to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from reasonmill.grading.verdict import Isolation
from reasonmill.protocols import Attempt, Measured, Reward
from reasonmill.settings import Naming
from reasonmill.tasks.named import NamedTask
from reasonmill.tasks.rows import Rows, Splits
from reasonmill.types import Completion, Grade, Problem


class RewardedRows(Rows):
    """Problems from data; a response is right where the reward is high enough.

    The reward itself is the part `score` of the grades.

    Args:
        reward: the name of a `[rewards.NAME]` table, or of an offered reward.
        right_from: the reward from which on a response is right.

    Raises:
        RecipeError: the rows lack what the reward needs.
    """

    def __init__(
        self,
        reward: Annotated[Reward, Naming("rewards")],
        right_from: float = 1.0,
        data: Splits | None = None,
    ) -> None:
        super().__init__(data)
        self._reward = reward
        self._right_from = right_from
        if data and hasattr(reward, "require"):
            reward.require(NamedTask("rows", self))

    @property
    def isolation(self) -> Isolation:
        """Where the reward has to compute: as it says itself, and in a worker where it says nothing."""
        isolation: Isolation = getattr(self._reward, "isolation", "worker")
        return isolation

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [self._grade(problem, completion) for completion in completions]

    def _grade(self, problem: Problem, completion: Completion) -> Grade:
        attempt = Attempt(problem, completion, NamedTask(problem.task, self), ("rows", problem.id, completion.text))
        said = Measured.of(self._reward.measure(attempt))
        if said.value is None:
            why = said.why_not or "it does not apply"
            return Grade(None, said.parts, f"the reward of {problem.task!r} could not tell: {why}")
        accuracy = float(said.value >= self._right_from)
        return Grade(accuracy, {"accuracy": accuracy, "score": said.value, **said.parts})
