"""`[data.NAME]` tables of worked solutions: conversations that `sft` learns from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, overload

from reasonmill.errors import RecipeError, suggestion
from reasonmill.protocols import Task
from reasonmill.randomness import generator
from reasonmill.settings import Naming
from reasonmill.types import Conversation, Problem
from reasonmill.worked.families import SOLVERS
from reasonmill.worked.solution import Solution

# GSM8K's solutions: what they say to a calculator, and what the answer stands behind.
_CALCULATED = re.compile(r"<<.*?>>")
_MARK = "####"


class WorkedSolutions:
    """Problems of a task, each with a solution: one that a program works out, or the one that its row has.

    Args:
        task: a task over a family of reasoning-gym that `SOLVERS` knows, or over rows whose column `answer` has the
            solution before the answer, as GSM8K's.
        problems: how many, the first of the split `train`.
        seed: another one draws others.
    """

    def __init__(self, task: Annotated[Task, Naming("tasks")], problems: int, seed: int = 0) -> None:
        if problems < 1:
            raise RecipeError(f"{problems} problems can't be solved", fix="write 1 or more")
        self._task = task
        self._count = problems
        self._seed = seed

    def problems(self) -> Mapping[str, Sequence[Problem]]:
        """The problems that are drawn."""
        return {"train": self._drawn}

    def conversations(self) -> Sequence[Conversation]:
        """Each problem with its solution; those that have none are left out.

        They are worked out when somebody looks at them: a recipe is loaded without that.

        Raises:
            RecipeError: nobody here works out problems of this kind.
        """
        _solved(self._task.problem("train", self._seed, 0), self._seed, 0)
        return _WhenRead(self._worked_out)

    def _worked_out(self) -> Sequence[Conversation]:
        solved = [(problem, _solved(problem, self._seed, index)) for index, problem in enumerate(self._drawn)]
        found = [
            Conversation(problem.messages, solution.response, "reasoning", problem.id, "train")
            for problem, solution in solved
            if solution is not None
        ]
        if not found:
            raise RecipeError(
                f"none of the {len(solved)} problems can be worked out",
                fix="for countdown, ask for three numbers: config = { min_numbers = 3, max_numbers = 3 }",
            )
        return found

    @cached_property
    def _drawn(self) -> Sequence[Problem]:
        """The task draws with replacement; each problem is taken once."""
        drawn = (self._task.problem("train", self._seed, index) for index in range(self._count))
        return list({problem.id: problem for problem in drawn}.values())


class _WhenRead(Sequence[Conversation]):
    """Conversations that are made when the first of them is read."""

    def __init__(self, make: Callable[[], Sequence[Conversation]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Sequence[Conversation]:
        return self._make()

    @overload
    def __getitem__(self, place: int) -> Conversation: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Conversation]: ...
    def __getitem__(self, place: int | slice) -> Conversation | Sequence[Conversation]:
        return self._made[place]

    def __len__(self) -> int:
        return len(self._made)


def _solved(problem: Problem, seed: int, index: int) -> Solution | None:
    """The solution of a problem.

    Args:
        index: of the problem among those that this seed draws.
    """
    family, written = problem.meta.get("family"), problem.meta.get("answer")
    item: Any = problem.meta.get("item")
    if family in SOLVERS and isinstance(item, Mapping):
        return SOLVERS[str(family)](item["metadata"], generator("worked", str(family), seed, index))
    if isinstance(written, str) and _MARK in written:
        steps = _CALCULATED.sub("", written).rpartition(_MARK)[0].strip().splitlines()
        return Solution(steps, problem.answer)
    raise RecipeError(
        f"there are no worked solutions for problems of {f'the family {family!r}' if family else 'this task'}",
        fix=suggestion(str(family), SOLVERS) or f"take rows that have theirs, or a family: {', '.join(SOLVERS)}",
    )
