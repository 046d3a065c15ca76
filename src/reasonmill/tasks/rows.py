"""Tasks over rows of data: a grader decides about the responses to problems that somebody has written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reasonmill.errors import RecipeError
from reasonmill.grading.verdict import Grader, Isolation, Verdict
from reasonmill.protocols import Domain
from reasonmill.types import Completion, Grade, Problem


class RowsTask:
    """Problems from data, and a grader for them.

    Args:
        splits: the problems by split; without any, the task can grade but has no problems of its own.
    """

    domain: Domain = "reasoning"

    def __init__(self, grader: Grader, splits: Mapping[str, Sequence[Problem]] | None = None) -> None:
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

    def verdict(self, problem: Problem, response: str) -> Verdict:
        """What the grader says of a response, with its reason."""
        return self._grader.judge(problem, response)

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [self.verdict(problem, completion.text).grade for completion in completions]

    def _problems(self, split: str) -> Sequence[Problem]:
        if not self._splits.get(split):
            raise RecipeError(
                f"there are no problems of split {split!r}; there are {', '.join(self._splits) or 'none at all'}",
                fix="give the task data that has them",
            )
        return self._splits[split]
