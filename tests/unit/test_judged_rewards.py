"""Rewards by a judge behind a server: what is asked, what it comes to, both orders, the budget, what is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chat_server import Answer, ChatServerFake, chat_server, says
from contexts import a_context
from reasonmill.cli import main
from reasonmill.errors import RecipeError
from reasonmill.kept_replies import BudgetSpent
from reasonmill.plugins.catalogue import Catalogue, Use, installed
from reasonmill.protocols import Attempt
from reasonmill.rewards.combination import MEASURED, RewardWeights
from reasonmill.rewards.judge import JudgeSettings
from reasonmill.rewards.judged import JudgedReward, Pairwise, Rubric
from reasonmill.rewards.rules.length import LengthReward
from reasonmill.store.home import Home
from reasonmill.types import Completion, Message, Problem

FACT = installed().task("facts").problem("train", 0, 0)
PROBLEM = Problem("own", (Message("user", "what is a mill ?"),), "")


def attempts(*answers: str | None) -> list[Attempt]:
    texts = ["<think></think>" if a is None else f"<think>x</think><answer>{a}</answer>" for a in answers]
    said = [Completion((1,), (-0.1,), (True,), text, "stop", 0) for text in texts]
    return [Attempt(PROBLEM, each, installed().task("facts"), ("n", place)) for place, each in enumerate(said)]


def server(fake: ChatServerFake) -> JudgeSettings:
    return JudgeSettings(url=fake.url, model="judge", retry_delay_s=0.0)


def section(body: dict, heading: str) -> str:
    text: str = body["messages"][0]["content"]
    return text.split(f"===== {heading}\n")[1].split("\n=====")[0]


def by_preference(prefers: Callable[[str, str], str]) -> Callable[[dict, int], Answer]:
    return lambda body, number: says(prefers(section(body, "ANSWER A"), section(body, "ANSWER B")))


def values(reward: JudgedReward, *answers: str | None) -> list[float | None]:
    return [measured.value for measured in reward.measure_group(attempts(*answers))]


def test_a_rubric_is_the_share_of_its_criteria_and_asks_each_of_the_final_answer() -> None:
    def respond(body: dict, number: int) -> Answer:
        assert "<think>" not in body["messages"][0]["content"]
        return says("MET" if section(body, "CRITERION") in section(body, "THE ANSWER TO CHECK") else "UNMET")

    with chat_server(respond) as fake:
        rubric = Rubric(server(fake), ["grain", "wind", "water", "stone"])
        assert values(rubric, "grain and stone", "wind", None, "grain and stone", "") == [0.5, 0.25, 0.0, 0.5, 0.0]
        assert len(fake.bodies) == 8  # two answers that differ and say something, four criteria


def test_a_criterion_without_a_verdict_leaves_the_answer_unmeasured() -> None:
    with chat_server(lambda body, number: says("MET" if section(body, "CRITERION") == "a" else "perhaps")) as fake:
        (measured,) = Rubric(server(fake), ["a", "b"]).measure_group(attempts("x"))
    assert (measured.value, measured.why_not) == (None, "the judge gave no verdict")


def test_answers_are_compared_in_both_orders() -> None:
    longer = by_preference(lambda a, b: "A>>B" if len(a) > len(b) else "B>>A")
    with chat_server(longer) as fake:
        assert values(Pairwise(server(fake)), "aaa", "a", "aa") == [1.0, 0.0, 0.5]
        orders = {(section(body, "ANSWER A"), section(body, "ANSWER B")) for body in fake.bodies}
    assert len(fake.bodies) == 6
    assert orders == {(b, a) for a, b in orders}


def test_a_judge_that_prefers_a_place_prefers_nobody() -> None:
    with chat_server(by_preference(lambda a, b: "A>B")) as fake:
        assert values(Pairwise(server(fake)), "x", "y", "z") == [0.5, 0.5, 0.5]


def test_slight_preferences_count_less_than_clear_ones() -> None:
    with chat_server(by_preference(lambda a, b: "A>B" if a == "x" else "B>A")) as fake:
        assert values(Pairwise(server(fake)), "x", "y") == [0.75, 0.25]


def test_equal_and_missing_answers_are_compared_without_the_judge() -> None:
    with chat_server(by_preference(lambda a, b: "A=B")) as fake:
        assert values(Pairwise(server(fake)), "x", "x", None) == [0.75, 0.75, 0.0]
        assert fake.bodies == []
        assert values(Pairwise(server(fake)), "x") == [None]


def test_comparisons_without_a_verdict_are_left_out() -> None:
    silent_on_z = by_preference(lambda a, b: "?" if "z" in (a, b) else "A>>B" if a == "x" else "B>>A")
    with chat_server(silent_on_z) as fake:
        assert values(Pairwise(server(fake)), "x", "y", "z") == [1.0, 0.0, None]


def test_a_task_with_an_environment_is_refused() -> None:
    named = installed().task("facts")
    rubric = Rubric(JudgeSettings(url="http://host/v1", model="judge"), ["a"])
    rubric.require(named)
    with pytest.raises(RecipeError, match="reads one turn"):
        rubric.require(replace(named, environment=installed().plugin("environments", "second-try").made))


def test_each_attempt_meets_as_many_opponents_as_are_asked_for() -> None:
    with chat_server(by_preference(lambda a, b: "A=B")) as fake:
        values(Pairwise(server(fake), opponents=1), "a", "b", "c", "d")
        assert len(fake.bodies) == 8  # a ring of four pairs, each in both orders
        fake.bodies.clear()
        values(Pairwise(server(fake), opponents=9), "a", "b", "c")
        assert len(fake.bodies) == 6


def context_rewards(home: Home, fake: ChatServerFake, budget: int) -> tuple[JudgedReward, Callable[[], None]]:
    table = {"use": "rubric", "server": {"url": fake.url, "model": "judge"}, "criteria": ["a", "b"], "budget": budget}
    context = a_context(home, catalogue=Catalogue({"rewards": {"good": Use.model_validate(table)}}))
    rule = context.rewards({"good": 1.0}, {}).rules["good"]
    assert isinstance(rule, JudgedReward)
    assert not context.is_repeatable
    return rule, context.drop_judged


def test_a_stage_asks_the_same_question_once_also_when_it_is_resumed(tmp_path: Path) -> None:
    with chat_server(lambda body, number: says("MET")) as fake, Home.open(tmp_path / "home") as home:
        first, _ = context_rewards(home, fake, 10)
        assert values(first, "x") == values(first, "x", "x")[:1] == [1.0]
        resumed, drop = context_rewards(home, fake, 10)
        assert values(resumed, "x", "y") == [1.0, 1.0]
        assert len(fake.bodies) == 4
        drop()
        assert [key for key in home.ledger.begun_stages() if home.ledger.steps(key)] == []


def test_a_spent_budget_stops_the_stage_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with chat_server(lambda body, number: says("MET")) as fake, Home.open(tmp_path / "home") as home:
        reward, _ = context_rewards(home, fake, 3)
        assert values(reward, "x") == [1.0]
        with pytest.raises(BudgetSpent, match=r"the reward 'good' has 2 replies .* budget of 3"):
            values(reward, "y")
        assert len(fake.bodies) == 2  # nothing of what is beyond the budget was asked
        larger, _ = context_rewards(home, fake, 4)
        assert values(larger, "x", "y") == [1.0, 1.0]
        assert len(fake.bodies) == 4


def test_patience_and_budget_are_no_part_of_what_a_reward_is() -> None:
    def identity(**changed: object) -> object:
        server = {
            "url": "http://host/v1",
            "model": "judge",
            **{k: v for k, v in changed.items() if k in ("concurrency", "model")},
        }
        rest = {key: value for key, value in changed.items() if key not in server}
        table = {"use": "rubric", "server": server, "criteria": ["a"], **rest}
        return Catalogue({"rewards": {"good": Use.model_validate(table)}}).plugin("rewards", "good").identity

    assert identity() == identity(budget=7) == identity(concurrency=3)
    assert identity() != identity(model="other")
    assert identity() != identity(criteria=["b"])


def test_a_stages_reward_is_the_sum_with_what_the_judge_says_of_a_group(tmp_path: Path) -> None:
    def met_by_x(body: dict, number: int) -> Answer:
        return says("MET" if "x" in section(body, "THE ANSWER TO CHECK") else "?")

    with chat_server(met_by_x) as fake, Home.open(tmp_path / "home") as home:
        rule, _ = context_rewards(home, fake, 10)
        weights = RewardWeights({"good": 2.0, "format": 1.0}, {"good": rule, **MEASURED}, everywhere=True)
        completions = [attempt.completion for attempt in attempts("x", "y", None)]
        met, untold, empty = weights.grade(installed().task("facts"), FACT, completions, noise=("n",))
    assert (met.reward, met.parts["good"]) == (3.0, 1.0)
    assert untold.reward is None
    assert "the judge gave no verdict" in untold.error
    assert empty.reward == 0.0


def long(tokens: int, accuracy: float | None) -> Attempt:
    said = Completion((1,) * tokens, (-0.1,) * tokens, (True,) * tokens, "", "stop", 0)
    return Attempt(PROBLEM, said, installed().task("facts"), ("n",), accuracy)


def test_length_counts_for_right_answers_alone() -> None:
    reward = LengthReward(full=10, none=30)
    assert [reward.measure(long(tokens, 1.0)) for tokens in (5, 10, 15, 30, 99)] == [1.0, 1.0, 0.75, 0.0, 0.0]
    assert reward.measure(long(5, 0.0)) == 0.0
    assert reward.measure(long(5, None)) is None
    assert LengthReward(full=10, none=30, counts="always").measure(long(15, 0.0)) == 0.75


def test_a_length_reward_without_a_way_down_is_refused() -> None:
    with pytest.raises(RecipeError, match="no way down"):
        LengthReward(full=10, none=10)


@pytest.mark.check
def test_a_recipe_is_trained_by_judges_within_a_budget(
    tmp_path: Path, without_charts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spent budget stops the stage; with a larger one it goes on, asks nothing again, and ends as one that never was
    stopped."""

    def respond(body: dict, number: int) -> Answer:
        return says("MET" if "CRITERION" in body["messages"][0]["content"] else "A>B")

    def run(home: str, budget: int) -> int:
        (tmp_path / "judged.toml").write_text(RECIPE.format(url=fake.url, budget=budget))
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / "judged.toml"), "--home", str(tmp_path / home)])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    with chat_server(respond) as fake:
        assert run("stopped", 3) == 69
        assert "more than its budget of 3" in capsys.readouterr().err
        assert run("stopped", 500) == 0
        in_two = len(fake.bodies)
        assert run("stopped", 900) == 0  # the budget is no part of the key
        assert len(fake.bodies) == in_two
        assert run("whole", 500) == 0
        assert len(fake.bodies) == 2 * in_two
    digests = [
        json.loads((tmp_path / home / "runs" / "judged" / "summary.json").read_text())["stages"][0]["digest"]
        for home in ("stopped", "whole")
    ]
    assert digests[0] == digests[1]


RECIPE = """
name = "judged"
[rewards.kind]
use = "rubric"
server = {{ url = "{url}", model = "judge" }}
criteria = ["It is kind."]
budget = {budget}
[rewards.better]
use = "pairwise"
server = {{ url = "{url}", model = "judge" }}
[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base"
steps = 2
problems_per_step = 2
group_size = 4
tasks = {{ facts = 0.5, arithmetic = 0.5 }}
rewards = {{ accuracy = 1.0, kind = 0.5, better = 0.5 }}
schedule = {{ peak = 1e-4 }}
sampling = {{ max_tokens = 24 }}
"""
