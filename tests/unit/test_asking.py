"""Prompts of tasks over rows say where the answer is looked for, unless they say it themselves."""

from typing import Any

import pytest

from reasonmill.tasks.graded import choice, math, text
from reasonmill.types import Message, Problem

BOXED = r"Put your final answer in \boxed{}."


def prompt(content: str, **settings: Any) -> str:
    """The prompt of the task `math` over one row."""
    task = math({"train": [Problem("?", (Message("system", "Be brief."), Message("user", content)), "4")]}, **settings)
    system, asked = task.problem("train", 0, 0).messages
    assert system.content == "Be brief."
    assert [problem.messages[1] for problem in task.problems("train", 0)] == [asked]
    return asked.content


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        ("2 + 2?", {"answer_in": "boxed"}, f"2 + 2?\n\n{BOXED}"),
        ("2 + 2?", {"answer_in": "answer"}, "2 + 2?\n\nPut your final answer between <answer> and </answer>."),
        ("2 + 2?", {}, "2 + 2?"),
        ("2 + 2?", {"ask": True}, f"2 + 2?\n\n{BOXED}"),
        ("2 + 2?", {"answer_in": "boxed", "ask": False}, "2 + 2?"),
        ("2 + 2? Answer within \\boxed{}", {"answer_in": "boxed"}, "2 + 2? Answer within \\boxed{}"),
        (f"2 + 2? {BOXED}", {"answer_in": "boxed"}, f"2 + 2? {BOXED}"),
        ("2 + 2? Use <answer> tags", {"answer_in": "answer"}, "2 + 2? Use <answer> tags"),
        ("2 + 2?", {"answer_in": "pattern", "pattern": "=(.*)"}, "2 + 2?"),
    ],
)
def test_a_prompt_says_where_the_answer_is_looked_for(content: str, settings: dict[str, Any], expected: str) -> None:
    assert prompt(content, **settings) == expected


def test_a_response_in_the_place_that_is_asked_for_is_right() -> None:
    for task, answer in (
        (math(answer_in="answer"), "4"),
        (choice(answer_in="answer"), "B"),
        (text(answer_in="answer"), "Bonn"),
    ):
        problem = Problem("?", (Message("user", "?"),), answer, {"choices": ["x", "y", "z"]})
        assert task.verdict(problem, f"<answer>{answer}</answer>").outcome == "right"
