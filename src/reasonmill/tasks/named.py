"""A task under the name that a recipe gives it, with everything that a task may leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

from reasonmill import languages
from reasonmill.errors import RecipeError
from reasonmill.languages import LanguageShare
from reasonmill.protocols import Domain, Environment, Measure, Task
from reasonmill.types import Completion, Grade, Problem

# How many problems are looked at before a recipe may measure the language of a task.
JUDGED = 20


@dataclass(frozen=True)
class NamedTask:
    """What stages see of a task: its problems bear the recipe's name, whatever its class calls them, and their split.

    Attributes:
        environment: whom the policy talks with while it solves a problem; None for problems that are answered at once.
        read_ahead: begins to read a text for its languages, and gives what waits until it is read; None where nobody
            reads for others.
    """

    name: str
    task: Task
    environment: Environment | None = None
    read_ahead: Callable[[str], Callable[[], None]] | None = field(default=None, compare=False)

    @property
    def domain(self) -> Domain:
        return self.task.domain

    @property
    def measures(self) -> Mapping[str, Measure]:
        """What evaluations report and gates compare besides pass@1, by name; none where the task names none."""
        return getattr(self.task, "measures", {})

    @property
    def answer_of(self) -> Callable[[str], str | None] | None:
        """Gives the final answer of a response, or None where it has none. None itself for tasks whose answers can't be
        put to the vote."""
        found: Callable[[str], str | None] | None = getattr(self.task, "answer_of", None)
        return found

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of a split; the same arguments give the same problem everywhere.

        Raises:
            RecipeError: the task gives one of another split.
        """
        return self._named(self.task.problem(split, seed, index), split)

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        """The problems of a split in order."""
        return (self._named(problem, split) for problem in self.task.problems(split, seed))

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        """One grade for each completion."""
        return self.task.grade(problem, completions)

    def language_share(self, text: str, language: str) -> float | None:
        """Share of a language in a text, by the task's own measure where it has one, or else that of real languages.

        Raises:
            ValueError: the measure does not know the language.
        """
        own: LanguageShare | None = getattr(self.task, "language_share", None)
        return (own or languages.language_share)(text, language)

    def language_of(self, problem: Problem) -> str | None:
        """The language that a problem is asked in, named by it or detected; None where the measure knows none."""
        return languages.problem_language(problem, self.language_share)

    def require_languages(self, wanted_by: str) -> None:
        """Refuses to measure the language where it is not known which one is wanted.

        Args:
            wanted_by: what measures the language, for the message.

        Raises:
            RecipeError: one of the first problems names no language that the measure knows, and none is detected.
        """
        if self._of_no_language is None:
            return
        index, problem = self._of_no_language
        named = problem.meta.get("language")
        prompt = problem.messages[-1].content
        shown = prompt if len(prompt) <= 60 else f"{prompt[:60]}..."
        raise RecipeError(
            f"{wanted_by} needs the language of each prompt, and that of problem {index} of task {self.name!r} "
            f"is not known: its meta names {'no language' if named is None else repr(named)}, and none is "
            f"detected in {shown!r}",
            fix=f'let the problems of {self.name!r} name it, as in meta["language"] = "en", or leave out '
            f"{wanted_by} or the task",
        )

    @cached_property  # many stages of a recipe ask for it
    def _of_no_language(self) -> tuple[int, Problem] | None:
        """The first of the first problems whose language is not known, with its number."""
        first = enumerate(islice(self.problems("train", 0), JUDGED))
        return next((found for found in first if self.language_of(found[1]) is None), None)

    def _named(self, problem: Problem, split: str) -> Problem:
        """The problem as it is drawn: with the recipe's name for its task, and the split that it was asked for."""
        if problem.split not in (None, split):
            raise RecipeError(
                f"task {self.name!r} was asked for a problem of split {split!r}, and gave {problem.id} of "
                f"{problem.split!r}",
                fix="let each split of the task hold problems of its own",
            )
        return replace(problem, task=self.name, split=split)
