"""`[data.NAME]` tables of worked solutions: conversations that `sft` learns from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from reasonmill.data.files import read_rows
from reasonmill.data.values import BadRow
from reasonmill.errors import RecipeError, suggestion
from reasonmill.protocols import Task
from reasonmill.published.rows import problem_of
from reasonmill.randomness import generator
from reasonmill.settings import Naming
from reasonmill.types import Conversation, Problem
from reasonmill.worked.families import SOLVERS
from reasonmill.worked.solution import Solution

# What GSM8K's solutions say to a calculator.
_CALCULATED = re.compile(r"<<.*?>>")


class WorkedSolutions:
    """Problems of a task, each with a solution that a program worked out.

    Args:
        task: a task over a family of reasoning-gym that `SOLVERS` knows.
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

        Raises:
            RecipeError: nobody here works out problems of this kind.
        """
        solved = [(problem, _solved(problem, self._seed, index)) for index, problem in enumerate(self._drawn)]
        found = [conversation(problem, solution) for problem, solution in solved if solution is not None]
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


class Gsm8kSolutions:
    """The training problems of GSM8K with their published solutions, in the prompts of the task `gsm8k`.

    Args:
        file: the published file, or one with its columns.
        problems: how many of its rows, from the first on; all if unset.

    Raises:
        RecipeError: the file can't be read.
    """

    def __init__(self, file: Path, problems: int | None = None) -> None:
        self._file = file
        self._count = problems

    def problems(self) -> Mapping[str, Sequence[Problem]]:
        """The problems that are solved."""
        return {"train": [problem for problem, _ in self._solved]}

    def conversations(self) -> Sequence[Conversation]:
        """Each problem with its solution."""
        return [conversation(problem, solution) for problem, solution in self._solved]

    @cached_property
    def _solved(self) -> Sequence[tuple[Problem, Solution]]:
        found: list[tuple[Problem, Solution]] = []
        for row in read_rows(self._file):
            if len(found) == self._count:
                break
            if isinstance(row, BadRow):
                raise RecipeError(row.what, where=row.where, fix="give the published file as it is")
            try:
                problem = problem_of("gsm8k", row.columns)
            except BadRow as bad:
                raise RecipeError(bad.what, where=row.place, fix="give the published file as it is") from bad
            steps = _CALCULATED.sub("", row.columns["answer"]).rpartition("####")[0].strip().splitlines()
            found.append((problem, Solution(steps, problem.answer)))
        return found


def conversation(problem: Problem, solution: Solution) -> Conversation:
    """What `sft` learns of a solved problem."""
    return Conversation(problem.messages, solution.response, "reasoning", problem.id, "train")


def _solved(problem: Problem, seed: int, index: int) -> Solution | None:
    family = str(problem.meta.get("family"))
    item: Any = problem.meta.get("item")
    if family not in SOLVERS or not isinstance(item, Mapping):
        raise RecipeError(
            f"there are no worked solutions for problems of the family {family!r}",
            fix=suggestion(family, SOLVERS) or f"take one of {', '.join(SOLVERS)}",
        )
    return SOLVERS[family](item["metadata"], generator("worked", family, seed, index))
