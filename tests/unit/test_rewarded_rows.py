"""Users' own rows with users' own reward functions: in recipes, in tasks, and in workers."""

import json
from pathlib import Path

import pytest

from reasonmill.errors import RecipeError
from reasonmill.recipe.load import load_recipe
from reasonmill.rewards.combination import RewardWeights
from reasonmill.types import Completion, Grade

FUNCTIONS = """
import os
import time

def equal(prompts, completions, answer, **kwargs):
    assert isinstance(prompts[0], str)
    return {"rewards": [float(a == c.strip()) for a, c in zip(answer, completions)], "pid": [os.getpid()] * len(answer)}

def longest(completions, **kwargs):
    size = max(map(len, completions))
    return [float(len(c) == size) for c in completions]

def hangs(completions, **kwargs):
    while "hang" in completions[0]:
        time.sleep(1)
    if any("hang" in c for c in completions):
        time.sleep(100)
    return [1.0] * len(completions)

def graded(solution_str, ground_truth, extra_info):
    return {"score": 1.0 if ground_truth in solution_str else -1.0, "level": extra_info["level"]}
"""
RECIPE = """name = "mine"

[data.sums]
train = "sums.jsonl"

[tasks.sums]
use = "rows"
data = "sums"
reward = "graded"

[rewards.graded]
use = "./theirs.py:graded"

[rewards.equal]
use = "./theirs.py:equal"

[rewards.longest]
use = "./theirs.py:longest"

[rewards.hangs]
use = "./theirs.py:hangs"
limits = { seconds = 0.5 }

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base"
steps = 1
tasks = { sums = 1.0 }
rewards = { accuracy = 1.0, equal = 0.5, longest = 0.25 }
schedule = { peak = 1e-4 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "theirs.py").write_text(FUNCTIONS)
    rows = [{"prompt": f"{n} + 1 = ?", "answer": str(n + 1), "extra_info": {"level": n}} for n in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def graded(recipe: Path, rewards: dict[str, float], *texts: str) -> list[Grade]:
    """The grades of responses to the first problem, whose `{answer}` is filled in."""
    catalogue = load_recipe(str(recipe)).catalogue
    task = catalogue.task("sums")
    problem = task.problem("train", 0, 0)
    rules = {name: catalogue.reward(name) for name in rewards if name != "accuracy"}
    completions = [
        Completion((n,), (0.0,), (True,), text.format(answer=problem.answer), "stop", 0) for n, text in enumerate(texts)
    ]
    return RewardWeights(rewards, rules).grade(task, problem, completions, noise=(0, "zero", 1, 2))


def test_rows_and_functions_are_all_that_a_task_needs(recipe: Path) -> None:
    right, wrong = graded(recipe, {"accuracy": 1.0, "equal": 0.5, "longest": 0.25}, "{answer}", "no idea at all")
    assert (right.reward, wrong.reward) == (1.5, 0.25)
    assert (right.parts["accuracy"], right.parts["score"]) == (1.0, 1.0)
    assert (wrong.parts["accuracy"], wrong.parts["score"]) == (0.0, -1.0)
    assert "graded/level" in right.parts


def test_functions_run_in_other_processes(recipe: Path) -> None:
    import os

    (grade,) = graded(recipe, {"equal": 1.0}, "{answer}")
    assert grade.parts["equal/pid"] != os.getpid()


def test_a_function_that_hangs_spoils_no_other_attempt(recipe: Path) -> None:
    fine, hung, too = graded(recipe, {"hangs": 1.0}, "fine", "hang", "fine too")
    assert (fine.reward, hung.reward, too.reward) == (1.0, None, 1.0)
    assert "0.5 s" in hung.error


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('reward = "graded"\n', "", "the key 'tasks.sums.reward' is missing"),
        ('reward = "graded"', 'reward = "gradde"', "unknown reward 'gradde'"),
        ("graded(solution_str, ground_truth", "graded(text, tests", "graded takes 'tests', and nothing fills that"),
    ],
)
def test_a_task_whose_reward_can_not_be_is_refused(recipe: Path, old: str, new: str, said: str) -> None:
    for file in (recipe, recipe.parent / "theirs.py"):
        file.write_text(file.read_text().replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe))
    assert said in str(caught.value)


def test_another_function_is_another_task(recipe: Path) -> None:
    def identity() -> object:
        return load_recipe(str(recipe)).nodes[0].plugins["tasks.sums"].identity

    before = identity()
    theirs = recipe.parent / "theirs.py"
    theirs.write_text(theirs.read_text().replace("else -1.0", "else 0.0"))
    assert identity() != before
