"""Tasks over rows of data: a grader decides about the responses to problems that somebody has written down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from reasonmill.errors import RecipeError
from reasonmill.grading.verdict import Grader, Isolation, Verdict
from reasonmill.protocols import Domain
from reasonmill.randomness import generator
from reasonmill.settings import Naming
from reasonmill.types import Completion, Grade, Problem, held_out
from reasonmill.workers.limits import Limits

# What answers are marked with: prompts that have it say themselves what is asked for.
_MARKS = re.compile(r"\\\w+|<\w+>|```\w+")
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
    """Problems from data, and a grader for them; their order is that of `Rows`.

    Args:
        ask: whether prompts end with what the grader asks for, unless they say it themselves.
    """

    def __init__(self, grader: Grader, splits: Splits | None = None, ask: bool = False) -> None:
        super().__init__(splits)
        self._grader = grader
        self._asks = grader.asks if ask else ""

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return self._asked(super().problem(split, seed, index))

    @property
    def isolation(self) -> Isolation:
        """Where its grader has to compute."""
        return self._grader.isolation

    @property
    def limits(self) -> Limits | None:
        """What a verdict may take in a worker, where its grader has limits of its own below that."""
        limits: Limits | None = getattr(self._grader, "limits", None)
        return limits

    @property
    def is_open(self) -> bool:
        """Whether many answers are right, so that nothing is known of one that is not the reference."""
        return bool(getattr(self._grader, "is_open", False))

    @property
    def answer_of(self) -> Callable[[str], str | None] | None:
        """Gives the final answer of a response; None where answers can't be compared with each other."""
        found: Callable[[str], str | None] | None = getattr(self._grader, "answer_of", None)
        return found

    def verdict(self, problem: Problem, response: str) -> Verdict:
        """What the grader says of a response, with its reason."""
        return self._grader.judge(problem, response)

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [self.verdict(problem, completion.text).grade for completion in completions]

    def _asked(self, problem: Problem) -> Problem:
        """The problem, whose last message also says what the grader asks for."""
        marks = _MARKS.findall(self._asks)
        said = "\n".join(message.content for message in problem.messages)
        if not self._asks or self._asks in said or any(mark in said for mark in marks):
            return problem
        *before, last = problem.messages
        asked = replace(last, content=f"{last.content}\n\n{self._asks}")
        return replace(problem, messages=(*before, asked))
