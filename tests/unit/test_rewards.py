"""Rewards: what the rules measure, and how parts and weights make a reward."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest

from reasonmill.rewards.combination import RewardWeights, reward_names
from reasonmill.rewards.rule import RULES, format_reward, random_reward
from reasonmill.types import Completion, Finish, Grade, Message, Problem

PROBLEM = Problem("fake", (Message("user", "?"),), "24")
WELL_FORMED = "<think> so</think><answer> 24</answer>"
PLAIN = "<answer> 24</answer>"


def said(text: str, finish: Finish = "stop") -> Completion:
    return Completion((1,), (0.0,), (True,), text, finish, 0)


class FakeTask:
    """Gives out the grades that it was made with."""

    name = "fake"

    def __init__(self, *grades: Grade) -> None:
        self._grades = list(grades)

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return PROBLEM

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        return [PROBLEM]

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return self._grades


RIGHT = Grade(1.0, {"accuracy": 1.0})
WRONG = Grade(0.0, {"accuracy": 0.0})


# Format


@pytest.mark.parametrize(
    ("text", "finish", "reward"),
    [
        (WELL_FORMED, "stop", 1.0),
        ("<think></think><answer></answer>", "stop", 1.0),
        ("\n<think> so</think>\n\n<answer> wrong</answer>\n", "stop", 1.0),
        (WELL_FORMED, "length", 0.0),
        (WELL_FORMED, "abort", 0.0),
        (PLAIN, "stop", 0.0),
        ("", "stop", 0.0),
        ("24", "stop", 0.0),
        ("<think> so</think>", "stop", 0.0),
        ("<think> so</think> 24", "stop", 0.0),
        ("<think> so<answer> 24</answer>", "stop", 0.0),
        ("<think> so</think><answer> 24", "stop", 0.0),
        (" so</think><answer> 24</answer>", "stop", 0.0),
        ("<answer> 24</answer><think> so</think>", "stop", 0.0),
        ("hm" + WELL_FORMED, "stop", 0.0),
        (WELL_FORMED + "hm", "stop", 0.0),
        (WELL_FORMED * 2, "stop", 0.0),
        (WELL_FORMED + PLAIN, "stop", 0.0),
        ("<think> <answer> 24</answer></think><answer> 24</answer>", "stop", 0.0),
        ("<think> <think> so</think></think><answer> 24</answer>", "stop", 0.0),
        ("<think> so</think><answer> <think></think> 24</answer>", "stop", 0.0),
        ("<think> so</think>hm<answer> 24</answer>", "stop", 0.0),
    ],
)
def test_format(text: str, finish: Finish, reward: float) -> None:
    assert format_reward(PROBLEM, said(text, finish), ()) == reward


# The coin


def test_the_coin_is_fair_and_every_sample_has_its_own() -> None:
    coins = [random_reward(PROBLEM, said(""), (0, "rl", step, sample)) for step in range(100) for sample in range(40)]
    assert set(coins) == {0.0, 1.0}
    assert abs(sum(coins) - 2000) < 160  # 5 standard deviations
    agreeing = sum(first == second for first, second in pairwise(coins))
    assert abs(agreeing - 2000) < 160


def test_the_coin_never_looks_at_the_problem_or_the_completion() -> None:
    other = Problem("other", (Message("user", "!"),), "7")
    for sample in range(50):
        coins = {
            random_reward(problem, completion, (0, sample))
            for problem in (PROBLEM, other)
            for completion in (said(""), said(WELL_FORMED), said("x" * 1000, "length"))
        }
        assert len(coins) == 1


# Combination


def test_what_a_recipe_may_weigh() -> None:
    assert reward_names() == ("accuracy", "format", "random")


def test_a_reward_is_the_weighted_sum_of_its_parts() -> None:
    weights = RewardWeights({"accuracy": 1.0, "format": 0.25})
    completions = [said(WELL_FORMED), said(PLAIN), said(WELL_FORMED), said(PLAIN)]
    grades = weights.grade(FakeTask(RIGHT, RIGHT, WRONG, WRONG), PROBLEM, completions, noise=())
    assert [grade.reward for grade in grades] == [1.25, 1.0, 0.25, 0.0]
    assert [grade.parts for grade in grades] == [
        {"accuracy": 1.0, "format": 1.0},
        {"accuracy": 1.0, "format": 0.0},
        {"accuracy": 0.0, "format": 1.0},
        {"accuracy": 0.0, "format": 0.0},
    ]


def test_weights_may_be_negative() -> None:
    weights = RewardWeights({"accuracy": 2.0, "format": -0.5})
    assert weights.grade(FakeTask(RIGHT), PROBLEM, [said(WELL_FORMED)], noise=())[0].reward == 1.5


def test_measured_parts_are_reported_without_a_weight() -> None:
    grade = RewardWeights({"format": 1.0}).grade(FakeTask(RIGHT), PROBLEM, [said(PLAIN)], noise=())[0]
    assert grade == Grade(0.0, {"accuracy": 1.0, "format": 0.0})
    grade = RewardWeights({"accuracy": 1.0}).grade(FakeTask(RIGHT), PROBLEM, [said(WELL_FORMED)], noise=())[0]
    assert grade == Grade(1.0, {"accuracy": 1.0, "format": 1.0})


def test_what_nobody_asked_for_is_not_measured() -> None:
    weights = RewardWeights({"accuracy": 1.0}, measured=())
    assert weights.grade(FakeTask(RIGHT), PROBLEM, [said(WELL_FORMED)], noise=())[0].parts == {"accuracy": 1.0}


def test_the_parts_of_a_task_are_kept() -> None:
    task = FakeTask(Grade(0.7, {"accuracy": 1.0, "tests_passed": 0.7}))
    grade = RewardWeights({"tests_passed": 2.0}).grade(task, PROBLEM, [said(PLAIN)], noise=())[0]
    assert grade == Grade(1.4, {"accuracy": 1.0, "tests_passed": 0.7, "format": 0.0})


def test_ungraded_stays_ungraded_whatever_else_was_earned() -> None:
    weights = RewardWeights({"accuracy": 1.0, "format": 1.0, "random": 1.0})
    task = FakeTask(Grade(None, error="timed out"), RIGHT)
    ungraded, graded = weights.grade(task, PROBLEM, [said(WELL_FORMED), said(WELL_FORMED)], noise=(1,))
    assert ungraded.reward is None
    assert ungraded.error == "timed out"
    assert ungraded.parts["format"] == 1.0
    assert graded.reward in (2.0, 3.0)


def test_each_sample_has_a_coin_of_its_own_and_the_noise_names_it() -> None:
    weights = RewardWeights({"random": 1.0})
    task, completions = FakeTask(*[WRONG] * 64), [said(PLAIN)] * 64
    first = [grade.reward for grade in weights.grade(task, PROBLEM, completions, noise=(0, "rl", 1))]
    assert first == [RULES["random"](PROBLEM, said(""), (0, "rl", 1, sample)) for sample in range(64)]
    assert set(first) == {0.0, 1.0}
    assert first != [grade.reward for grade in weights.grade(task, PROBLEM, completions, noise=(0, "rl", 2))]


def test_a_grade_too_few_is_noticed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        RewardWeights({"accuracy": 1.0}).grade(FakeTask(RIGHT), PROBLEM, [said(PLAIN)] * 2, noise=())
