"""Worked solutions: every step holds, the answer is right, and each family of problems has its own."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from reasonmill.data.table import Rows
from reasonmill.errors import RecipeError
from reasonmill.languages import language_share
from reasonmill.tasks.graded import math
from reasonmill.tasks.splits import SPLITS
from reasonmill.transcript import read_transcript
from reasonmill.types import Message, Problem
from reasonmill.worked.data import WorkedSolutions
from reasonmill.worked.everyday import EverydayQuestions
from reasonmill.worked.families import SOLVERS
from reasonmill.worked.solution import Solution

# What reasoning-gym says of an item, and the answer.
ITEMS: list[tuple[str, dict[str, Any], str]] = [
    ("chain_sum", {"expression": "14 - 35 - 57 + 51 - 18"}, "-45"),
    ("chain_sum", {"expression": "7 + 8"}, "15"),
    ("products", {"expression": "39384 * 54050"}, "2128705200"),
    ("products", {"expression": "7 * 0"}, "0"),
    ("gcd", {"numbers": [230, 532]}, "2"),
    ("gcd", {"numbers": [12, 12, 18]}, "6"),
    ("leg_counting", {"animals": {"crab": 1, "jellyfish": 10, "praying mantis": 3}}, "28"),
    ("simple_equations", {"equation": "102 - 95*n = -7973", "variable": "n"}, "85"),
    ("simple_equations", {"equation": "1820*i = 38220", "variable": "i"}, "21"),
    ("letter_counting", {"span": ["License", "1", "E", "6"], "target_letter": "e"}, "3"),
    ("letter_counting", {"span": ["on", "day"], "target_letter": "z"}, "0"),
    ("spell_backward", {"word": "Talpid"}, "diplaT"),
]
EQUATION = re.compile(r"[-\d][-+*/() \d]*(?: = [-+*/() \d]*\d)+")


def solutions(family: str, item: dict[str, Any]) -> list[Solution]:
    """A solution in each wording that twenty draws find."""
    found = [SOLVERS[family](item, random.Random(seed)) for seed in range(20)]
    return [solution for solution in found if solution is not None]


def value(expression: str) -> Any:
    return eval(expression.strip(), {})  # our own text, in which numbers may be below 0


def equations(solution: Solution) -> list[str]:
    return [found for step in solution.steps for found in EQUATION.findall(step)]


@pytest.mark.parametrize(("family", "item", "answer"), ITEMS)
def test_the_answer_is_right_and_is_what_the_steps_come_to(family: str, item: dict[str, Any], answer: str) -> None:
    found = solutions(family, item)
    assert len({solution.steps[0] for solution in found}) > 1
    for solution in found:
        said = read_transcript(solution.response)
        assert (said.answer, said.well_formed) == (answer, True)
        assert said.thinking == "\n".join(solution.steps)
        for equation in equations(solution):
            first, *others = map(value, equation.split("="))
            assert all(other == first for other in others), equation


@pytest.mark.parametrize(
    ("family", "item", "steps"),
    [
        ("chain_sum", {"expression": "14 - 35 + 51"}, ["14 - 35 = -21", "-21 + 51 = 30"]),
        ("products", {"expression": "12 * 203"}, ["12 * 200 = 2400", "12 * 3 = 36", "2400 + 36 = 2436"]),
        ("gcd", {"numbers": [12, 30]}, ["30 = 2 * 12 + 6", "12 = 2 * 6 + 0"]),
        ("leg_counting", {"animals": {"crab": 2}}, ["2 * 10 = 20", "0 + 20 = 20"]),
        ("letter_counting", {"span": ["has", "Anna"], "target_letter": "a"}, []),
    ],
)
def test_the_steps_are_those_of_the_method(family: str, item: dict[str, Any], steps: list[str]) -> None:
    assert equations(solutions(family, item)[0]) == steps


def test_words_are_spelled_before_their_letters_are_counted_or_turned_round() -> None:
    counted = solutions("letter_counting", {"span": ["has", "Anna", "it"], "target_letter": "a"})[0]
    assert counted.steps[1:] == ["has: h a s, 1, so 1", "Anna: a n n a, 2, so 3", "it: i t, 0"]
    backward = solutions("spell_backward", {"word": "sun"})[0]
    assert backward.steps[0].endswith("1 s, 2 u, 3 n")
    assert backward.steps[1].endswith("3 n, 2 u, 1 s")


@pytest.mark.parametrize(
    ("numbers", "target"),
    [([2, 7, 79], 395), ([60, 2, 75], 105), ([50, 60, 9], 119), ([90, 96, 45], 270), ([99, 100, 98], 101)],
)
def test_countdown_tries_until_a_try_makes_the_target(numbers: list[int], target: int) -> None:
    for solution in solutions("countdown", {"numbers": numbers, "target": target}):
        *failed, last = solution.steps[1:]
        assert value(solution.answer) == target
        assert sorted(map(int, re.findall(r"\d+", solution.answer))) == sorted(numbers)
        assert all(step.endswith("no") for step in failed)
        assert last.endswith(f"= {target}, yes")
        assert len(failed) <= 8
        for equation in equations(solution):
            made, said = equation.split("=")
            assert value(made) == value(said), equation


@pytest.mark.parametrize(
    ("family", "item"),
    [
        ("countdown", {"numbers": [1, 2, 3], "target": 999}),
        ("countdown", {"numbers": [2, 7, 79, 1], "target": 395}),
        ("simple_equations", {"equation": "0 = 0", "variable": "r"}),
    ],
)
def test_what_can_not_be_worked_out_has_no_solution(family: str, item: dict[str, Any]) -> None:
    assert SOLVERS[family](item, random.Random(0)) is None


class Items:
    """A task as reasoning-gym's, that asks these items again and again."""

    domain = "reasoning"

    def __init__(self, family: str, *items: dict[str, Any]) -> None:
        self._family = family
        self._items = items
        self.asked: list[int] = []

    def problem(self, split: str, seed: int, index: int) -> Problem:
        self.asked.append(index)
        item = self._items[(index + seed) % len(self._items)]
        meta = {"family": self._family, "item": {"metadata": item}}
        return Problem("items", (Message("user", f"{item} ?"),), "", meta, split=split)


def worked(problems: int, family: str, *items: dict[str, Any], seed: int = 0) -> WorkedSolutions:
    return WorkedSolutions(Items(family, *items), problems, seed)  # type: ignore[arg-type]


def test_a_table_of_worked_solutions_has_each_problem_once_and_none_that_is_held_out() -> None:
    data = worked(5, "chain_sum", *({"expression": f"{left} + 2"} for left in (10, 11, 12)), seed=1)
    conversations = data.conversations()
    assert [read_transcript(each.response).answer for each in conversations] == ["13", "14", "12"]
    assert {each.split for each in conversations} == {"train"}
    assert {split: len(rows) for split, rows in data.problems().items()} == {"train": 3}


def test_a_table_is_worked_out_when_it_is_read() -> None:
    items = Items("chain_sum", {"expression": "1 + 2"}, {"expression": "1 + 3"})
    conversations = WorkedSolutions(items, 2).conversations()  # type: ignore[arg-type]
    assert items.asked == [0]
    assert len(conversations) == 2
    assert items.asked == [0, 0, 1]


def test_problems_without_a_solution_are_left_out_of_the_table() -> None:
    numbers = {"numbers": [2, 7, 79]}
    (only,) = worked(2, "countdown", {**numbers, "target": 999}, {**numbers, "target": 395}).conversations()
    assert read_transcript(only.response).answer == "(7 - 2)*79"
    with pytest.raises(RecipeError, match="none of the 1 problems can be worked out"):
        list(worked(1, "countdown", {**numbers, "target": 999}).conversations())


def test_a_family_that_nobody_works_out_is_refused() -> None:
    with pytest.raises(RecipeError, match="no worked solutions for problems of the family 'chain_sums'") as refused:
        worked(2, "chain_sums", {"expression": "1 + 2"}).conversations()
    assert "chain_sum" in refused.value.fix
    with pytest.raises(RecipeError, match="0 problems"):
        worked(0, "chain_sum", {"expression": "1 + 2"})


def test_rows_that_have_their_solutions_are_asked_as_the_task_asks(tmp_path: Path) -> None:
    rows = [
        {"question": "Ann has 2 apples and buys 3.", "answer": "She has 2+3=<<2+3=5>>5 apples.\nSo 5.\n#### 5"},
        {"question": "And 1,000 more?", "answer": "5+1000=<<5+1000=1005>>1,005\n#### 1,005"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = math(Rows(train=file).problems(), answer_in="answer")
    solved = {read_transcript(each.response).answer: each for each in WorkedSolutions(task, 2).conversations()}
    assert read_transcript(solved["5"].response).thinking == "She has 2+3=5 apples.\nSo 5."
    problems = {problem.id: problem for problem in task.problems("train", 0)}
    for answer, each in solved.items():
        problem = problems[each.problem_id]
        assert (problem.messages, problem.answer) == (each.messages, answer)
        assert task.verdict(problem, each.response).outcome == "right"


def test_rows_without_solutions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "2 + 3 ?", "answer": "5"}\n')
    with pytest.raises(RecipeError, match="no worked solutions for problems of this task"):
        WorkedSolutions(math(Rows(train=file).problems()), 1).conversations()


def test_everyday_questions_on_one_topic_are_in_one_split() -> None:
    splits = EverydayQuestions().problems()
    topics = {split: {problem.meta["cluster"] for problem in problems} for split, problems in splits.items()}
    assert set(topics) == set(SPLITS)
    assert all(topics.values())
    assert sum(map(len, topics.values())) == len(set().union(*topics.values()))


@pytest.mark.check
@pytest.mark.parametrize("family", SOLVERS)
def test_the_family_s_own_grader_calls_hundreds_right(family: str) -> None:
    pytest.importorskip("reasoning_gym")
    from reasonmill.gym.grader import GymGrader
    from reasonmill.gym.task import ReasoningGym

    numbers = {"min_numbers": 3, "max_numbers": 3} if family == list(SOLVERS)[1] else {}
    data = WorkedSolutions(ReasoningGym(family, numbers), problems=150, seed=7)
    problems = {problem.id: problem for problem in data.problems()["train"]}
    conversations = data.conversations()
    assert len(conversations) > 120
    assert len(conversations) > 0.98 * len(problems)
    for solved in conversations:
        assert GymGrader().judge(problems[solved.problem_id], solved.response).outcome == "right", solved.response
    # What is fine-tuned on them earns the language reward from the first step on.
    shares = [language_share(read_transcript(solved.response).thinking, "en") for solved in conversations]
    assert sum(share == 1.0 for share in shares) > 0.95 * len(shares)
