"""Tasks over rows of data: a grader decides about the responses to problems that somebody has written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from reasonmill.errors import RecipeError
from reasonmill.grading.verdict import Grader, Isolation, Verdict
from reasonmill.protocols import Domain
from reasonmill.randomness import generator
from reasonmill.settings import Naming
from reasonmill.types import Completion, Grade, Problem, held_out

# For parameters of tasks: a recipe names a `[data.NAME]` table, and the task gets its problems by split.
Splits = Annotated[Mapping[str, Sequence[Problem]], Naming("data")]


class Rows:
    """Problems from data.

    The order of a split is drawn by the seed, and again for each time that all of them were asked; held-out problems
    are asked once.

    Args:
        splits: the problems by split; without any, a task can grade but has no problems of its own.
    """

    domain: Domain = "reasoning"

    def __init__(self, splits: Splits | None = None) -> None:
        self._splits = splits or {}
        self._orders: dict[str, tuple[tuple[int, int], list[int]]] = {}  # by split, the one that was used last

    def problem(self, split: str, seed: int, index: int) -> Problem:
        problems = self._problems(split)
        if held_out(split) and index >= len(problems):
            raise RecipeError(
                f"split {split!r} has {len(problems)} problems, and one more is asked for",
                fix=f"ask for {len(problems)} at most, or hold out more",
            )
        again, place = divmod(index, len(problems))
        return problems[self._order(split, seed, again)[place]]

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return (self.problem(split, seed, index) for index in range(len(self._problems(split))))

    def _order(self, split: str, seed: int, again: int) -> list[int]:
        """The places of a split's problems, in the order that they are asked in."""
        known = self._orders.get(split)
        if known is None or known[0] != (seed, again):
            order = list(range(len(self._problems(split))))
            generator("rows", split, seed, again).shuffle(order)
            known = self._orders[split] = ((seed, again), order)
        return known[1]

    def _problems(self, split: str) -> Sequence[Problem]:
        if not self._splits.get(split):
            raise RecipeError(
                f"there are no problems of split {split!r}; there are {', '.join(self._splits) or 'none at all'}",
                fix="give the task data that has them",
            )
        return self._splits[split]


class RowsTask(Rows):
    """Problems from data, and a grader for them; their order is that of `Rows`."""

    def __init__(self, grader: Grader, splits: Splits | None = None) -> None:
        super().__init__(splits)
        self._grader = grader

    @property
    def isolation(self) -> Isolation:
        """Where its grader has to compute."""
        return self._grader.isolation

    @property
    def longest_s(self) -> float:
        """How long its grader takes for a response at most, by limits of its own; 0 for one that has none."""
        return float(getattr(self._grader, "longest_s", 0.0))

    def verdict(self, problem: Problem, response: str) -> Verdict:
        """What the grader says of a response, with its reason."""
        return self._grader.judge(problem, response)

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [self.verdict(problem, completion.text).grade for completion in completions]
