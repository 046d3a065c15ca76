"""Rewards: what the rules measure, and how parts and weights make a reward."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import pytest

from reasonmill.errors import RecipeError
from reasonmill.plugins.catalogue import installed
from reasonmill.protocols import Attempt, Domain, Reward
from reasonmill.rewards.combination import (
    ACCURACY_ALONE,
    ALL_DOMAINS,
    NOT_RULES,
    RewardWeights,
    check_rewards,
    domains_of,
)
from reasonmill.rewards.rules.format import FormatReward
from reasonmill.rewards.rules.language import LanguageReward
from reasonmill.rewards.rules.random import RandomReward
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Finish, Grade, Message, Problem
from reasonmill.world.lexicon import language_share

PROBLEM = Problem("fake", (Message("user", "?"),), "24")
ENGLISH = Problem("fake", (Message("user", "?"),), "24", {"language": "en"})
GERMAN = Problem("fake", (Message("user", "?"),), "24", {"language": "de"})
WELL_FORMED = "<think> so</think><answer> 24</answer>"
PLAIN = "<answer> 24</answer>"


def said(text: str, finish: Finish = "stop") -> Completion:
    return Completion((1,), (0.0,), (True,), text, finish, 0)


class FakeTask:
    """Gives out the grades that it was made with; its languages are those of the tiny world."""

    language_share = staticmethod(language_share)

    def __init__(self, *grades: Grade, domain: Domain = "reasoning") -> None:
        self._grades = list(grades)
        self.domain: Domain = domain

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return PROBLEM

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        return [PROBLEM]

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return self._grades


def fake_task(*grades: Grade, domain: Domain = "reasoning") -> NamedTask:
    return NamedTask("fake", FakeTask(*grades, domain=domain))


class FakeScorer:
    """Gives out the scores that it was made with, and remembers how often it was asked."""

    def __init__(self, *scores: float) -> None:
        self._scores = list(scores)
        self.calls = 0

    def score(self, problem: Problem, completions: Sequence[Completion]) -> list[float]:
        self.calls += 1
        return self._scores


def weighing(weights: Mapping[str, float], **scorers: FakeScorer) -> RewardWeights:
    """The weights with the rules that this package offers."""
    rules = {name: installed().reward(name) for name in weights if name not in NOT_RULES}
    return RewardWeights(weights, rules, scorers)


def measure(reward: Reward, problem: Problem, completion: Completion, *noise: int | str) -> float | None:
    return reward.measure(Attempt(problem, completion, fake_task(), noise))


def coin(*noise: int | str, problem: Problem = PROBLEM, completion: Completion | None = None) -> float | None:
    return measure(RandomReward(), problem, completion or said(""), *noise)


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
    assert measure(FormatReward(), PROBLEM, said(text, finish)) == reward


# Language


@pytest.mark.parametrize(
    ("text", "english", "german"),
    [
        ("<think> try 3 * 8 = 24 yes</think><answer> 3 * 8</answer>", 1.0, 0.0),
        ("<think> try 3 * 7 = 21 no nimm 3 * 8 = 24 yes</think><answer> 3 * 8</answer>", 0.75, 0.25),
        ("<think> nimm 3 * 8 = 24 ja", 0.0, 1.0),  # cut off: what was thought so far
        ("<think> ja</think><answer> the capital of lorin is fasum .</answer>", 0.0, 1.0),  # thinking comes first
        # No word in the thinking: the answer is measured.
        ("<think></think><answer> the capital of lorin is fasum .</answer>", 1.0, 0.0),
        ("<think> 3 + 8 = 11</think><answer> yes ja ja gut</answer>", 0.25, 0.75),
        (" gern , lorin .", 0.0, 1.0),
        # Nothing to measure in either earns nothing.
        ("<think> 3 * 8 = 24</think><answer> 3 * 8</answer>", 0.0, 0.0),
        ("<think></think><answer> 3 * 8</answer>", 0.0, 0.0),
        ("<think></think><answer> fasum .</answer>", 0.0, 0.0),
        ("<think></think> yes", 0.0, 0.0),  # said, but not as an answer
        ("", 0.0, 0.0),
    ],
)
def test_language(text: str, english: float, german: float) -> None:
    assert measure(LanguageReward(), ENGLISH, said(text)) == english
    assert measure(LanguageReward(), GERMAN, said(text)) == german


def test_language_can_not_be_told_where_a_problem_names_none() -> None:
    completion = said("<think> try yes</think><answer> 24</answer>")
    assert measure(LanguageReward(), PROBLEM, completion) is None
    told, untold = (
        weighing({"accuracy": 1.0, "language": 1.0}).grade(fake_task(RIGHT), problem, [completion], noise=())[0]
        for problem in (ENGLISH, PROBLEM)
    )
    assert told.reward == 2.0
    assert untold.reward is None
    assert "language" in untold.error
    assert untold.parts == {"accuracy": 1.0, "format": 1.0}


# The coin


def test_the_coin_is_fair_and_every_sample_has_its_own() -> None:
    coins = [coin(0, "rl", step, sample) for step in range(100) for sample in range(40)]
    assert set(coins) == {0.0, 1.0}
    assert abs(sum(coins) - 2000) < 160  # 5 standard deviations
    agreeing = sum(first == second for first, second in pairwise(coins))
    assert abs(agreeing - 2000) < 160


def test_the_coin_never_looks_at_the_problem_or_the_completion() -> None:
    other = Problem("other", (Message("user", "!"),), "7")
    for sample in range(50):
        coins = {
            coin(0, sample, problem=problem, completion=completion)
            for problem in (PROBLEM, other)
            for completion in (said(""), said(WELL_FORMED), said("x" * 1000, "length"))
        }
        assert len(coins) == 1


# Combination


def test_what_a_recipe_may_weigh() -> None:
    assert {"accuracy", "helpfulness", "safety"} == NOT_RULES
    assert installed().names("rewards") == ("format", "language", "random", "length", "pairwise", "rubric")


def test_a_reward_is_the_weighted_sum_of_its_parts() -> None:
    weights = weighing({"accuracy": 1.0, "format": 0.25})
    completions = [said(WELL_FORMED), said(PLAIN), said(WELL_FORMED), said(PLAIN)]
    grades = weights.grade(fake_task(RIGHT, RIGHT, WRONG, WRONG), PROBLEM, completions, noise=())
    assert [grade.reward for grade in grades] == [1.25, 1.0, 0.25, 0.0]
    assert [grade.parts for grade in grades] == [
        {"accuracy": 1.0, "format": 1.0},
        {"accuracy": 1.0, "format": 0.0},
        {"accuracy": 0.0, "format": 1.0},
        {"accuracy": 0.0, "format": 0.0},
    ]


def test_weights_may_be_negative() -> None:
    weights = weighing({"accuracy": 2.0, "format": -0.5})
    assert weights.grade(fake_task(RIGHT), PROBLEM, [said(WELL_FORMED)], noise=())[0].reward == 1.5


def test_measured_parts_are_reported_without_a_weight() -> None:
    grade = weighing({"format": 1.0}).grade(fake_task(RIGHT), PROBLEM, [said(PLAIN)], noise=())[0]
    assert grade == Grade(0.0, {"accuracy": 1.0, "format": 0.0})
    grade = weighing({"accuracy": 1.0}).grade(fake_task(RIGHT), PROBLEM, [said(WELL_FORMED)], noise=())[0]
    assert grade == Grade(1.0, {"accuracy": 1.0, "format": 1.0})


def test_language_is_measured_without_a_weight_where_a_problem_names_one() -> None:
    (grade,) = weighing({"accuracy": 1.0}).grade(fake_task(RIGHT), ENGLISH, [said("yes")], noise=())
    assert grade.parts == {"accuracy": 1.0, "format": 0.0, "language": 1.0}


class Brevity:
    """A user's own rule: what is short, on reasoning alone; it can't tell of nothing."""

    domains = frozenset({"reasoning"})

    def measure(self, attempt: Attempt) -> float | None:
        return 1 / len(attempt.completion.text) if attempt.completion.text else None


def test_a_rule_of_a_users_own_counts_on_its_domains_and_may_not_be_able_to_tell() -> None:
    weights = RewardWeights({"brevity": 8.0, "random": 0.0}, {"brevity": Brevity()})
    told, untold = weights.grade(fake_task(RIGHT, RIGHT), PROBLEM, [said("24"), said("")], noise=())
    assert (told.reward, told.parts) == (4.0, {"accuracy": 1.0, "format": 0.0, "brevity": 0.5})
    assert untold.reward is None
    assert "brevity" in untold.error
    with pytest.raises(ValueError, match="no weighted reward counts on task 'fake', whose domain is safety"):
        weights.grade(fake_task(RIGHT, domain="safety"), PROBLEM, [said("24")], noise=())
    assert domains_of("brevity", {"brevity": Brevity()}) == {"reasoning"}
    assert domains_of("format", {"format": FormatReward()}) == ALL_DOMAINS


def test_the_parts_of_a_task_are_kept() -> None:
    task = fake_task(Grade(0.7, {"accuracy": 1.0, "tests_passed": 0.7}))
    grade = weighing({"accuracy": 2.0}).grade(task, PROBLEM, [said(PLAIN)], noise=())[0]
    assert grade == Grade(2.0, {"accuracy": 1.0, "tests_passed": 0.7, "format": 0.0})


def test_ungraded_stays_ungraded_whatever_else_was_earned() -> None:
    weights = weighing({"accuracy": 1.0, "format": 1.0, "random": 1.0})
    task = fake_task(Grade(None, error="timed out"), RIGHT)
    ungraded, graded = weights.grade(task, PROBLEM, [said(WELL_FORMED), said(WELL_FORMED)], noise=(1,))
    assert ungraded.reward is None
    assert ungraded.error == "timed out"
    assert ungraded.parts["format"] == 1.0
    assert graded.reward in (2.0, 3.0)


def test_each_sample_has_a_coin_of_its_own_and_the_noise_names_it() -> None:
    weights = weighing({"random": 1.0})
    task, completions = fake_task(*[WRONG] * 64), [said(PLAIN)] * 64
    first = [grade.reward for grade in weights.grade(task, PROBLEM, completions, noise=(0, "rl", 1))]
    assert first == [coin(0, "rl", 1, sample) for sample in range(64)]
    assert set(first) == {0.0, 1.0}
    assert first != [grade.reward for grade in weights.grade(task, PROBLEM, completions, noise=(0, "rl", 2))]


# Domains and reward models


def all_weights(helpful: FakeScorer, safe: FakeScorer) -> RewardWeights:
    weights = {"accuracy": 1.0, "format": 0.5, "language": 0.25, "helpfulness": 10.0, "safety": 100.0}
    return weighing(weights, helpfulness=helpful, safety=safe)


def test_reasoning_is_rewarded_by_rules() -> None:
    helpful, safe = FakeScorer(0.5), FakeScorer(0.25)
    completion = said("<think> try ja</think><answer> 24</answer>")
    (grade,) = all_weights(helpful, safe).grade(fake_task(RIGHT), ENGLISH, [completion], noise=())
    assert grade == Grade(1.0 + 0.5 + 0.25 * 0.5, {"accuracy": 1.0, "format": 1.0, "language": 0.5})
    assert helpful.calls == safe.calls == 0


@pytest.mark.parametrize(
    ("domain", "scored", "weight"), [("helpfulness", (0.5, -0.5), 10), ("safety", (0.25, 1.0), 100)]
)
def test_general_prompts_are_rewarded_by_their_reward_model_format_and_language(
    domain: Domain, scored: tuple[float, float], weight: float
) -> None:
    scorers = {"helpfulness": FakeScorer(0.5, -0.5), "safety": FakeScorer(0.25, 1.0)}
    completions = [said("<think> try ja</think><answer> 24</answer>"), said("yes .")]
    task = fake_task(RIGHT, WRONG, domain=domain)
    weights = all_weights(scorers["helpfulness"], scorers["safety"])
    first, second = weights.grade(task, ENGLISH, completions, noise=())
    assert first.reward == 0.5 * 1.0 + 0.25 * 0.5 + weight * scored[0]
    assert first.parts == {"accuracy": 1.0, "format": 1.0, "language": 0.5, domain: scored[0]}
    assert second.reward == 0.25 * 1.0 + weight * scored[1]
    assert {name: scorer.calls for name, scorer in scorers.items()} == {  # once for the group
        name: int(name == domain) for name in scorers
    }


@pytest.mark.parametrize("domain", ["reasoning", "helpfulness", "safety"])
def test_the_coin_counts_everywhere(domain: Domain) -> None:
    task = fake_task(*[WRONG] * 20, domain=domain)
    grades = weighing({"random": 1.0}).grade(task, PROBLEM, [said("")] * 20, noise=(5,))
    assert [grade.reward for grade in grades] == [coin(5, sample) for sample in range(20)]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_what_a_reward_model_can_not_score_is_ungraded(score: float) -> None:
    weights = weighing({"helpfulness": 1.0, "language": 1.0}, helpfulness=FakeScorer(0.5, score))
    task = fake_task(RIGHT, RIGHT, domain="helpfulness")
    graded, ungraded = weights.grade(task, ENGLISH, [said("yes .")] * 2, noise=())
    assert graded.reward == 1.5
    assert ungraded.reward is None
    assert "helpfulness" in ungraded.error
    assert ungraded.parts == {"accuracy": 1.0, "format": 0.0, "language": 1.0}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_part_that_is_not_finite_is_ungraded_and_no_crash(number: float) -> None:
    task = fake_task(Grade(1.0, {"accuracy": number}), Grade(1.0, {"accuracy": 1.0, "other": number}))
    ungraded, graded = weighing({"accuracy": 1.0}).grade(task, PROBLEM, [said("")] * 2, noise=())
    assert ungraded.reward is None
    assert "accuracy" in ungraded.error
    assert graded.reward == 1.0
    assert "other" not in graded.parts


def test_a_sum_that_is_not_finite_is_ungraded() -> None:
    weights = weighing({"accuracy": 1e308, "format": 1e308})
    task = fake_task(RIGHT, WRONG)
    overflown, fine = weights.grade(task, PROBLEM, [said(WELL_FORMED)] * 2, noise=())
    assert (overflown.reward, overflown.error) == (None, "the reward is not finite")
    assert fine.reward == 1e308


def test_a_score_too_few_is_noticed() -> None:
    weights = weighing({"safety": 1.0}, safety=FakeScorer(0.5))
    with pytest.raises(ValueError, match="shorter"):
        weights.grade(fake_task(RIGHT, RIGHT, domain="safety"), PROBLEM, [said("")] * 2, noise=())


def test_a_reward_model_without_a_weight_is_not_asked() -> None:
    helpful = FakeScorer(0.5)
    weights = weighing({"random": 1.0, "helpfulness": 0.0}, helpfulness=helpful)
    (grade,) = weights.grade(fake_task(RIGHT, domain="helpfulness"), PROBLEM, [said("")], noise=(1,))
    assert "helpfulness" not in grade.parts
    assert helpful.calls == 0


def test_a_task_without_a_reward_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match="safety"):
        weighing({"accuracy": 1.0}).grade(fake_task(RIGHT, domain="safety"), PROBLEM, [said("")], noise=())


@pytest.mark.parametrize("domain", ["reasoning", "helpfulness", "safety"])
def test_accuracy_alone_counts_everywhere(domain: Domain) -> None:
    grades = ACCURACY_ALONE.grade(fake_task(RIGHT, WRONG, domain=domain), PROBLEM, [said("")] * 2, noise=())
    assert [grade.reward for grade in grades] == [1.0, 0.0]


def test_weights_that_nobody_decides_are_refused() -> None:
    with pytest.raises(ValueError, match="the reward 'speed' has a weight, but no rule and no scorer"):
        RewardWeights({"speed": 1.0})
    with pytest.raises(ValueError, match="'safety' has a weight, but no rule"):
        RewardWeights({"safety": 1.0}, scorers={"helpfulness": FakeScorer()})


# What a recipe may ask for


def check(weights: Mapping[str, float], tasks: Iterable[str], reward_models: Sequence[str]) -> None:
    check_rewards(weights, map(installed().task, tasks), installed().reward, reward_models)


@pytest.mark.parametrize(
    ("weights", "tasks", "reward_models"),
    [
        ({"accuracy": 1.0, "format": 1.0}, ["countdown-3", "arithmetic"], []),
        ({"accuracy": 1.0, "language": 0.5}, ["countdown-4", "facts"], []),
        ({"random": 1.0}, ["countdown", "small-talk"], []),
        ({"accuracy": 1.0, "helpfulness": 1.0}, ["countdown", "small-talk"], ["helpfulness"]),
        (
            {"safety": 1.0, "helpfulness": -1.0, "accuracy": 0.0},
            ["harmful-requests", "facts"],
            ["safety", "helpfulness"],
        ),
    ],
)
def test_weights_that_fit_their_tasks(weights: dict[str, float], tasks: list[str], reward_models: list[str]) -> None:
    check(weights, tasks, reward_models)


@pytest.mark.parametrize(
    ("weights", "tasks", "reward_models", "what"),
    [
        ({"accuracy": 1.0, "format": 0.0}, ["countdown-3", "facts"], [], "task 'facts' has no reward"),
        ({"accuracy": 1.0, "language": 0.0}, ["facts"], [], "task 'facts' has no reward"),
        ({"accuracy": 0.0}, ["countdown"], [], "task 'countdown' has no reward"),
        ({"safety": 1.0}, ["harmful-requests", "countdown-3"], ["safety"], "task 'countdown-3' has no reward"),
        ({"safety": 1.0}, ["harmful-requests", "facts"], ["safety"], "task 'facts' has no reward"),
        ({"speed": 1.0}, ["countdown"], [], "unknown reward 'speed'"),
        ({"helpfulness": 1.0}, ["facts"], [], "no reward model"),
        ({"random": 1.0}, ["facts"], ["safety"], "'safety' has no effect"),
        ({"random": 1.0}, ["facts"], ["random"], "'random' has no effect"),
        ({"random": 1.0}, ["facts"], ["speed"], "'speed' has no effect"),
    ],
)
def test_weights_that_do_not_are_refused(
    weights: dict[str, float], tasks: list[str], reward_models: list[str], what: str
) -> None:
    with pytest.raises(RecipeError, match=what) as error:
        check(weights, tasks, reward_models)
    assert error.value.fix


def test_a_task_that_names_no_language_can_not_be_rewarded_for_it() -> None:
    check_rewards({"accuracy": 1.0}, [fake_task()], installed().reward)
    with pytest.raises(RecipeError, match="problem 0 of task 'fake' is not known"):
        check_rewards({"accuracy": 1.0, "language": 1.0}, [fake_task()], installed().reward)


def test_a_task_on_whose_domain_no_rule_of_a_users_own_counts_has_no_reward() -> None:
    rules: dict[str, Reward] = {"brevity": Brevity()}
    check_rewards({"brevity": 1.0}, [fake_task()], rules.__getitem__)
    with pytest.raises(RecipeError, match="task 'fake' has no reward: none of brevity") as caught:
        check_rewards({"brevity": 1.0}, [fake_task(domain="safety")], rules.__getitem__)
    assert caught.value.fix == "give a weight to one of safety"
