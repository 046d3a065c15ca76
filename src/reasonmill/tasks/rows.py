"""Tasks over rows of data: a grader decides about the responses to problems that somebody has written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from reasonmill.errors import RecipeError
from reasonmill.grading.verdict import Grader, Isolation
from reasonmill.protocols import Domain
from reasonmill.settings import Naming
from reasonmill.types import Completion, Grade, Problem

# For parameters of tasks: a recipe names a `[data.NAME]` table, and the task gets its problems by split.
Splits = Annotated[Mapping[str, Sequence[Problem]], Naming("data")]


class RowsTask:
    """Problems from data, and a grader for them.

    Args:
        splits: the problems by split; without any, the task can grade but has no problems of its own.
    """

    domain: Domain = "reasoning"

    def __init__(self, grader: Grader, splits: Splits | None = None) -> None:
        self._grader = grader
        self._splits = splits or {}

    @property
    def isolation(self) -> Isolation:
        """Where its grader has to compute."""
        return self._grader.isolation

    def problem(self, split: str, seed: int, index: int) -> Problem:
        problems = self._problems(split)
        return problems[index % len(problems)]

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return iter(self._problems(split))

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [self._grader.judge(problem, completion.text).grade for completion in completions]

    def _problems(self, split: str) -> Sequence[Problem]:
        if not self._splits.get(split):
            raise RecipeError(
                f"there are no problems of split {split!r}; there are {', '.join(self._splits) or 'none at all'}",
                fix="give the task data that has them",
            )
        return self._splits[split]
