"""A task under the name that a recipe gives it, with everything that a task may leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from reasonmill.protocols import Domain, Environment, Measure, Task
from reasonmill.types import Completion, Grade, Problem


@dataclass(frozen=True)
class NamedTask:
    """What stages see of a task: its problems bear the recipe's name, whatever its class calls them.

    Attributes:
        environment: whom the policy talks with while it solves a problem; None for problems that are answered at once.
    """

    name: str
    task: Task
    environment: Environment | None = None

    @property
    def domain(self) -> Domain:
        return self.task.domain

    @property
    def measures(self) -> Mapping[str, Measure]:
        """What evaluations report and gates compare besides pass@1, by name; none where the task names none."""
        return getattr(self.task, "measures", {})

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of a split; the same arguments give the same problem everywhere."""
        return self._named(self.task.problem(split, seed, index))

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        """The problems of a split in order."""
        return map(self._named, self.task.problems(split, seed))

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        """One grade for each completion."""
        return self.task.grade(problem, completions)

    def language_share(self, text: str, language: str) -> float | None:
        """Share of a language in a text, by the task's own measure where it has one."""
        own: Callable[[str, str], float | None] | None = getattr(self.task, "language_share", None)
        return None if own is None else own(text, language)

    def _named(self, problem: Problem) -> Problem:
        return problem if problem.task == self.name else replace(problem, task=self.name)
