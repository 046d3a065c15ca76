"""A task under the name that a recipe gives it, and what a task may leave out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import pytest

from reasonmill.errors import RecipeError
from reasonmill.protocols import Domain, Measure
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Message, Problem


class Plain:
    """Has no more than a task must have, and calls itself otherwise than the recipe does."""

    domain: Domain = "helpfulness"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem("plain", (Message("user", f"{split} {seed} {index}"),), "1", {"language": "en"})

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        return (self.problem(split, seed, index) for index in range(3))

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(1.0, {"accuracy": 1.0, "task": float(problem.task == "mine")}) for _ in completions]


class Full(Plain):
    """Also has what a task may have."""

    measures: Mapping[str, Measure] = {"kind": Measure("kind", "kindness")}

    def language_share(self, text: str, language: str) -> float | None:
        return 1.0 if language in text else None


class Room:
    max_turns = 2


def test_problems_bear_the_name_of_the_recipe() -> None:
    task = NamedTask("mine", Plain())
    problem = task.problem("test", 1, 2)
    assert (problem.task, problem.messages[0].content) == ("mine", "test 1 2")
    assert list(task.problems("test", 1)) == [task.problem("test", 1, index) for index in range(3)]
    assert (problem.answer, problem.meta) == ("1", {"language": "en"})
    assert problem.id != Plain().problem("test", 1, 2).id  # it is another task's
    named = NamedTask("plain", Plain())
    assert named.problem("test", 1, 2) == Plain().problem("test", 1, 2)


def test_problems_bear_the_split_that_they_were_drawn_from() -> None:
    task = NamedTask("mine", Plain())
    assert [task.problem(split, 0, 0).split for split in ("train", "dev", "test")] == ["train", "dev", "test"]
    assert {problem.split for problem in task.problems("dev", 0)} == {"dev"}


def test_a_task_that_gives_problems_of_another_split_is_refused() -> None:
    class Careless(Plain):
        def problem(self, split: str, seed: int, index: int) -> Problem:
            return replace(super().problem(split, seed, index), split="test")

    assert NamedTask("mine", Careless()).problem("test", 0, 0).split == "test"
    with pytest.raises(RecipeError, match=r"asked for a problem of split 'train', and gave .* of 'test'"):
        NamedTask("mine", Careless()).problem("train", 0, 0)


def test_problems_in_order_are_made_as_they_are_taken() -> None:
    class Endless(Plain):
        def problems(self, split: str, seed: int) -> Iterable[Problem]:
            index = 0
            while True:
                yield self.problem(split, seed, index)
                index += 1

    first, second = islice(NamedTask("mine", Endless()).problems("test", 0), 2)
    assert (first.task, second.messages[0].content) == ("mine", "test 0 1")


def test_a_task_grades_what_bears_the_name_of_the_recipe() -> None:
    task = NamedTask("mine", Plain())
    (grade,) = task.grade(task.problem("test", 0, 0), [Completion((1,), (0.0,), (True,), "1", "stop", 0)])
    assert grade.parts["task"] == 1.0


def test_what_a_task_leaves_out_is_nothing() -> None:
    plain = NamedTask("mine", Plain())
    assert (plain.domain, plain.measures, plain.environment) == ("helpfulness", {}, None)


def test_a_task_without_a_measure_of_languages_has_that_of_real_ones() -> None:
    plain = NamedTask("mine", Plain())
    text = "how many apples are left in the basket when two of them are eaten by the children"
    assert (plain.language_share(text, "en"), plain.language_share(text, "de")) == (1.0, 0.0)
    assert plain.language_of(plain.problem("test", 0, 0)) == "en"


def test_what_a_task_has_is_its_own() -> None:
    room = Room()
    full = NamedTask("mine", Full(), room)  # type: ignore[arg-type]
    assert full.measures == Full.measures
    assert [full.language_share("en", language) for language in ("en", "de")] == [1.0, None]
    assert full.environment is room
