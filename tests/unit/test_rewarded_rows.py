"""Users' own rows with users' own reward functions: in recipes, in tasks, and in workers."""

import json
import os
import re
from pathlib import Path

import pytest

from reasonmill.errors import RecipeError
from reasonmill.protocols import Attempt
from reasonmill.recipe.load import load_recipe
from reasonmill.rewards.combination import RewardWeights
from reasonmill.rewards.functions.families import FAMILIES
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion

PAGE = Path(__file__).parents[2] / "docs" / "reward-functions.md"

FUNCTIONS = """
import os
import time

def equal(prompts, completions, answer, **kwargs):
    assert isinstance(prompts[0], str)
    rewards = [float(a == c.strip()) for a, c in zip(answer, completions)]
    return {"rewards": rewards, "pid": [os.getpid()] * len(answer), "together": [len(answer)] * len(answer)}

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

[rewards.hangs]
use = "./theirs.py:hangs"
limits = { seconds = 0.5 }

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base"
steps = 1
tasks = { sums = 1.0 }
rewards = { accuracy = 1.0, equal = 0.5 }
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


def test_rows_and_functions_are_all_that_training_needs_and_none_of_them_spoils_another(recipe: Path) -> None:
    catalogue = load_recipe(str(recipe)).catalogue
    task = catalogue.task("sums")
    problem = task.problem("train", 0, 0)
    weights = {"accuracy": 1.0, "equal": 0.5, "hangs": 0.25}
    rewards = RewardWeights(weights, {name: catalogue.reward(name) for name in ("equal", "hangs")})
    said = [Completion((0,), (0.0,), (True,), text, "stop", 0) for text in (problem.answer, "no idea", "hang")]
    right, wrong, hung = rewards.grade(task, problem, said, noise=(0, "zero", 1, 2))
    assert (right.reward, wrong.reward, hung.reward) == (1.75, 0.25, None)
    assert hung.error.startswith("the reward hangs (")
    assert (right.parts["accuracy"], right.parts["score"]) == (1.0, 1.0)
    assert (wrong.parts["accuracy"], wrong.parts["score"]) == (0.0, -1.0)
    assert right.parts["graded/level"] == int(problem.answer) - 1
    assert right.parts["equal/together"] == 3
    assert right.parts["equal/pid"] != os.getpid()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('reward = "graded"\n', "", "the key 'reward' is missing"),
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


# The page


def test_the_page_says_what_is_so(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, content in re.findall(r"In `(\S+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(content, encoding="utf-8")
    catalogue = load_recipe(str(tmp_path / "mine.toml")).catalogue
    task = catalogue.plugin("tasks", "sums").made
    problem = task.problem("train", 0, 0)
    answers = (f"<answer>{problem.answer}</answer>", "<answer>0</answer>", "")
    said = [Completion((0,), (0.0,), (True,), text, "stop", 0) for text in answers]
    attempts = [Attempt(problem, each, NamedTask("sums", task), (0,)) for each in said]
    correct, form = (catalogue.plugin("rewards", name).made for name in ("correct", "format-of-mine"))
    assert [(m.value, m.parts["correct/answered"]) for m in correct.measure_group(attempts)] == [
        (1, 1),
        (0.1, 1),
        (0, 0),
    ]
    assert [measured.value for measured in form.measure_group(attempts)] == [1.0, 1.0, 0.0]
    assert [grade.parts["accuracy"] for grade in task.grade(problem, said)] == [1.0, 0.0, 0.0]


def test_the_page_names_all_that_responses_are_called_and_what_is_filled_beside_them() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    told = {name: line for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert told.keys() == {family.response for family in FAMILIES}
    for family in FAMILIES:
        line = told[family.response]
        assert all(f"`{name}`" in line for name in family.fills), line
        assert ("a group" in line) == family.batched
        assert ("every column" in line) == family.columns
