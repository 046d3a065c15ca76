"""What every task promises, whatever its problems are about.

Answers of general tasks have no one right text, so a few promises are of reasoning tasks only.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

import pytest

from reasonmill.errors import RecipeError
from reasonmill.plugins.catalogue import installed
from reasonmill.tasks.named import NamedTask
from reasonmill.tasks.splits import SPLITS
from reasonmill.types import Completion, Grade, Problem

Identity = tuple[object, ...]


# Tasks with problems of their own; those over rows and those of other packages have tests of their own.
NAMES = [
    name
    for name in installed().names("tasks")
    if installed().plugin("tasks", name).target.module.startswith("reasonmill.world.")
]


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> NamedTask:
    return installed().task(request.param)


@pytest.fixture(params=[name for name in NAMES if installed().task(name).domain == "reasoning"])
def reasoning(request: pytest.FixtureRequest) -> NamedTask:
    return installed().task(request.param)


def splits(task: NamedTask) -> tuple[str, ...]:
    """The splits that a task has; the tiny world holds out only one of its general prompts."""
    return SPLITS if task.domain == "reasoning" else ("train", "test")


def said(text: str) -> Completion:
    return Completion((1,), (0.0,), (True,), text, "stop", 0)


def rewards(task: NamedTask, problem: Problem, texts: Iterable[str]) -> list[float | None]:
    return [grade.reward for grade in task.grade(problem, [said(text) for text in texts])]


@cache
def some_problems(task: NamedTask) -> list[Problem]:
    return [task.problem(split, seed, index) for split in splits(task) for seed in (0, 7) for index in range(10)]


@cache
def many_problems(task: NamedTask, split: str) -> list[list[Problem]]:
    """300 of two seeds each."""
    return [[task.problem(split, seed, index) for index in range(300)] for seed in (0, 1)]


def identity(problem: Problem) -> Identity:
    """What makes two problems the same, whatever task asks them, in which language and in which order."""
    meta = problem.meta
    if "target" in meta:
        return ("countdown", *sorted(meta["numbers"]), meta["target"])
    if "start" not in meta:
        return (problem.messages[-1].content,)
    return ("chain", meta["start"], *(tuple(operation) for operation in meta["operations"]))


# Problems


def test_the_name_is_the_one_that_it_is_found_by(task: NamedTask) -> None:
    assert installed().task(task.name) == task
    assert {problem.task for problem in some_problems(task)} == {task.name}


def test_the_same_arguments_give_the_same_problem(task: NamedTask) -> None:
    assert some_problems(task) == some_problems(task)
    backwards = [task.problem("train", 3, index) for index in reversed(range(10))]
    assert backwards[::-1] == [task.problem("train", 3, index) for index in range(10)]


def test_a_split_in_order_is_its_problems_by_index(task: NamedTask) -> None:
    for split in splits(task):
        first = [problem for problem, _ in zip(task.problems(split, 5), range(12), strict=False)]
        assert first == [task.problem(split, 5, index) for index in range(12)]


def test_ids_are_content_hashes(task: NamedTask) -> None:
    for problem in some_problems(task):
        meta = json.loads(json.dumps(dict(problem.meta)))
        assert Problem(problem.task, problem.messages, problem.answer, meta).id == problem.id
        assert Problem(problem.task, problem.messages, problem.answer + " ", meta).id != problem.id


@pytest.mark.parametrize("split", SPLITS)
def test_problems_seldom_come_twice(reasoning: NamedTask, split: str) -> None:
    problems = [problem for drawn in many_problems(reasoning, split) for problem in drawn[:150]]
    assert len({problem.id for problem in problems}) >= 285
    assert len({problem.messages for problem in problems}) >= 285


def test_an_unknown_split_is_an_error(task: NamedTask) -> None:
    with pytest.raises(RecipeError, match="unknown split 'valid'"):
        task.problem("valid", 0, 0)


def test_problems_are_in_two_languages(task: NamedTask) -> None:
    assert {problem.meta["language"] for problem in some_problems(task)} == {"en", "de"}


def test_no_problem_is_in_two_splits_of_any_tasks() -> None:
    """So many problems of three numbers would meet those of another split by the dozen, were splits not kept apart."""
    found = {
        split: {
            identity(problem)
            for name in NAMES
            if split in splits(installed().task(name))
            for drawn in many_problems(installed().task(name), split)
            for problem in drawn
        }
        for split in SPLITS
    }
    assert min(map(len, found.values())) > 1500
    assert found["train"].isdisjoint(found["test"])
    assert found["train"].isdisjoint(found["dev"])
    assert found["dev"].isdisjoint(found["test"])


def test_another_process_asks_the_same_and_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from reasonmill.plugins.catalogue import installed\n"
        "print('torch' in sys.modules)\n"
        f"for name in {NAMES}: print(installed().task(name).problem('test', 4, 2).id)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4321", "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    ids = [installed().task(name).problem("test", 4, 2).id for name in NAMES]
    assert output.split() == ["False", *ids]


# Grades


def test_gold_answers_are_right(task: NamedTask) -> None:
    for problem in some_problems(task):
        gold = problem.answer
        texts = [
            f"<think> so</think><answer> {gold}</answer>",
            f"<think>\nso\n</think>\n<answer>{gold}</answer>\n",
            f"<answer>\n{gold}\n</answer>",
            f" so</think><answer> {gold}</answer>",
            f"<think> <answer> 0</answer> no</think><answer> {gold}</answer>",
        ]
        assert rewards(task, problem, texts) == [1.0] * len(texts)


def wrong_texts(gold: str) -> dict[str, str]:
    """Completions that are right for no task, by what is wrong with them."""
    return {
        "empty": "",
        "blank": " \n",
        "garbage": "lorem \x00 \ufffd \U0001f600 ipsum",
        "an empty answer": "<think> so</think><answer></answer>",
        "a garbage answer": "<think> so</think><answer> lorem </answer>",
        "thinking only": f"<think> {gold}</think>",
        "no answer tag": f"<think> so</think> {gold}",
        "an unclosed answer": f"<think> so</think><answer> {gold}",
        "an answer in unclosed thinking": f"<think> so <answer> {gold}</answer>",
        "an answer in closed thinking": f"<think> so <answer> {gold}</answer></think>",
        "thinking in the answer": f"<answer> <think> {gold} </think> </answer>",
        "several answers": f"<answer> {gold}</answer><answer> 0</answer>",
        "the right answer last": f"<think> so</think><answer> 0</answer><answer> {gold}</answer>",
        "the right answer twice": f"<think> so</think><answer> {gold}</answer><answer> {gold}</answer>",
        "nested answers": f"<answer> <answer> {gold}</answer></answer>",
        "10,000 characters of digits": f"<answer>{'9' * 10_000}</answer>",
        "10,000 characters of tags": "<answer>" * 1250,
        "10,000 characters of answers": f"<answer>{gold}</answer>" * 400,
    }


def inexact_texts(gold: str) -> dict[str, str]:
    """Completions that hold the gold answer and are not exactly it."""
    return {
        "no tags": gold,
        "gold in a sentence": f"<think> so</think><answer> it is {gold} .</answer>",
        "gold in a list": f"<think> so</think><answer> 1 , {gold}</answer>",
        "gold twice in one answer": f"<think> so</think><answer> {gold} {gold}</answer>",
        "gold with a digit before it": f"<think> so</think><answer>1{gold}</answer>",
        "gold with a digit after it": f"<think> so</think><answer>{gold}1</answer>",
        "gold of another sign": f"<think> so</think><answer>-{gold}</answer>",
        "gold with code around it": f"<think> so</think><answer>eval('{gold}')</answer>",
        "10,000 characters after gold": f"<answer>{gold}{' + 0' * 2500}</answer>",
        "10,000 characters of nesting": f"<answer>{'(' * 5000}{gold}{')' * 5000}</answer>",
    }


@pytest.mark.parametrize("what", wrong_texts(""))
def test_anything_else_is_wrong(task: NamedTask, what: str) -> None:
    for problem in some_problems(task)[::12]:
        start = time.perf_counter()
        assert rewards(task, problem, [wrong_texts(problem.answer)[what]]) == [0.0]
        assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("what", inexact_texts(""))
def test_anything_around_the_answer_makes_it_wrong(reasoning: NamedTask, what: str) -> None:
    for problem in some_problems(reasoning)[::12]:
        start = time.perf_counter()
        assert rewards(reasoning, problem, [inexact_texts(problem.answer)[what]]) == [0.0]
        assert time.perf_counter() - start < 1.0


def test_the_answer_to_another_problem_is_wrong(reasoning: NamedTask) -> None:
    problems = some_problems(reasoning)
    for problem, other in pairwise(problems):
        if problem.answer != other.answer and identity(problem) != identity(other):
            assert rewards(reasoning, problem, [f"<answer> {other.answer}</answer>"]) == [0.0]


def test_each_completion_has_its_grade_with_its_accuracy(task: NamedTask) -> None:
    problem = task.problem("train", 0, 0)
    completions = [said(""), said(f"<answer> {problem.answer}</answer>"), said("<answer> lorem</answer>")]
    grades = task.grade(problem, completions)
    assert [(grade.reward, grade.parts["accuracy"]) for grade in grades] == [(0.0, 0.0), (1.0, 1.0), (0.0, 0.0)]
    assert all(0 <= value <= 1 for grade in grades for value in grade.parts.values())
    assert len({frozenset(grade.parts) for grade in grades}) == 1
    assert task.grade(problem, []) == []


def test_reasoning_has_no_part_but_its_accuracy(reasoning: NamedTask) -> None:
    problem = reasoning.problem("train", 0, 0)
    assert reasoning.grade(problem, [said(f"<answer> {problem.answer}</answer>")]) == [Grade(1.0, {"accuracy": 1.0})]
