"""Reward functions: what they are given by the names of their parameters, what they give back, and what is refused."""

import inspect
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as drawing
from hypothesis import strategies as st

from reasonmill.errors import RecipeError
from reasonmill.protocols import Attempt, Domain, Measured
from reasonmill.rewards.combination import RewardWeights, check_rewards
from reasonmill.rewards.functions.function import FunctionReward, function_settings, is_reward_function
from reasonmill.rewards.functions.results import all_measured, measured
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Finish, Grade, Message, Problem


def row(answer: str = "4", **columns: Any) -> Problem:
    return Problem("sums", (Message("user", "What is 2 + 2 ?"),), answer, {"columns": columns})


def said(text: str, finish: Finish = "stop") -> Completion:
    return Completion((7, 8), (-0.5, -1.5), (True, True), text, finish, 3)


class Rows:
    """A task over some problems."""

    domain: Domain = "reasoning"

    def __init__(self, *problems: Problem) -> None:
        self._problems = problems

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return self._problems[index]

    def problems(self, split: str, seed: int) -> Sequence[Problem]:
        return self._problems

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(1.0, {"accuracy": 1.0}) for _ in completions]


def a_task(*problems: Problem) -> NamedTask:
    return NamedTask("sums", Rows(*problems))


def attempts(problem: Problem, *texts: str, step: int = 11) -> list[Attempt]:
    task = a_task(problem)
    return [Attempt(problem, said(text), task, (0, "zero", step, 2, n)) for n, text in enumerate(texts)]


def told(function: Callable[..., Any], problem: Problem, *texts: str, **settings: Any) -> list[Measured]:
    return FunctionReward(function, "mine", settings).measure_group(attempts(problem, *texts))


def test_a_default_stays_where_the_row_has_no_such_column_and_gives_way_where_it_has() -> None:
    def reward(completions, scale=2.0, **kwargs):
        return [(scale if isinstance(scale, float) else scale[place]) for place in range(len(completions))]

    assert [each.value for each in told(reward, row(), "a", "b")] == [2.0, 2.0]
    assert [each.value for each in told(reward, row(scale=3), "a", "b")] == [3.0, 3.0]
    assert [each.value for each in told(reward, row(scale=3), "a", "b", scale=5.0)] == [5.0, 5.0]


def test_a_parameter_without_a_name_for_callers_is_filled_by_its_name_all_the_same() -> None:
    def reward(answer, text, /, *, problem):
        return float(answer == text) + float(problem.answer == answer)

    assert told(reward, row("4"), "4")[0].value == 2.0


@pytest.mark.parametrize(
    ("prompt", "annotation", "settings", "form"),
    [
        ("What is 2 + 2 ?", Any, {}, str),
        ([{"role": "user", "content": "?"}], Any, {}, list),
        (None, Any, {}, list),
        (None, list[str], {}, str),
        ("?", list[list[dict[str, str]]], {}, list),
        (None, Any, {"completions_are": "texts"}, str),
        ("?", Any, {"completions_are": "messages"}, list),
    ],
)
def test_completions_are_texts_or_messages(prompt: Any, annotation: Any, settings: Any, form: type) -> None:
    seen: list[Any] = []

    def reward(prompts, completions, **kwargs):
        seen.append((prompts[0], completions[0]))
        return [0.0] * len(completions)

    if annotation is not Any:
        reward.__annotations__["completions"] = annotation
    told(reward, row() if prompt is None else row(prompt=prompt), "so", **settings)
    assert [type(each) for each in seen[0]] == [form, form]
    assert seen[0][1] == ("so" if form is str else [{"role": "assistant", "content": "so"}])


def test_a_row_is_the_functions_own_to_change() -> None:
    problem = row(tests=[1, 2])

    def reward(completions, tests, **kwargs):
        tests[0].clear()
        kwargs["prompts"].clear()
        return [float(len(each)) for each in tests]

    assert [each.value for each in told(reward, problem, "a", "b")] == [0.0, 2.0]
    assert problem.meta["columns"] == {"tests": [1, 2]}


def test_what_a_function_draws_is_decided_by_the_rollouts_place_and_disturbs_nothing() -> None:
    def reward(text):
        return random.random() + np.random.random()

    random.seed(5)
    before = random.getstate()
    once, again = told(reward, row(), "a"), told(reward, row(), "a")
    other = FunctionReward(reward, "mine", {}).measure_group(attempts(row(), "a", step=12))
    assert once == again
    assert once != other
    assert random.getstate() == before


# What is no number


def test_an_error_leaves_that_attempt_alone_without_a_number() -> None:
    def reward(completions, **kwargs):
        return [1.0 / len(completion[0]["content"]) for completion in completions]

    found = told(reward, row(), "ab", "", "abcd")
    assert [each.value for each in found] == [0.5, None, 0.25]
    assert found[1].why_not == "reward: it raised ZeroDivisionError: float division by zero"
    assert not found[0].why_not


def test_an_exit_is_an_error_too() -> None:
    def reward(text):
        raise SystemExit("enough")

    async def later(text):
        raise SystemExit("enough")

    for function in (reward, later):
        (found,) = told(function, row(), "a")
        assert found.value is None
        assert "SystemExit: enough" in found.why_not


def test_a_function_for_texts_that_gets_messages_says_what_to_set() -> None:
    def reward(completions, **kwargs):
        return [float(completion.strip() == "4") for completion in completions]

    assert "completions_are = 'texts'" in told(reward, row(), "4")[0].why_not
    assert told(reward, row(), "4", completions_are="texts")[0].value == 1.0


@pytest.mark.parametrize(
    "answer", [float("nan"), float("inf"), "1.0", [1.0, 2.0], {"acc": 1.0}, {}, object(), b"1", 1j]
)
def test_what_is_no_number_could_not_tell(answer: Any) -> None:
    def reward(text):
        return answer

    (found,) = told(reward, row(), "a")
    assert found.value is None
    assert found.why_not.startswith("reward: it gave")


@pytest.mark.parametrize("answer", [[1.0], [1.0, 2.0, 3.0], 1.0, "ab", {"rewards": [1.0]}, torch.ones(3)])
def test_a_batch_of_another_length_could_not_tell(answer: Any) -> None:
    def reward(completions):
        return answer if len(completions) == 2 else "nothing"

    found = told(reward, row(), "a", "b")
    assert [each.value for each in found] == [None, None]
    assert all(each.why_not for each in found)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        *((1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (np.array([0.25]), 0.25), (torch.tensor(0.5), 0.5)),
        *((torch.tensor([[2.0]], requires_grad=True), 2.0), ({"score": torch.tensor(1)}, 1.0), (None, None)),
        *(({"score": None}, None), (SimpleNamespace(score=0.5), 0.5), (SimpleNamespace(reward=True), 1.0)),
    ],
)
def test_what_can_be_read_as_a_number_is(answer: Any, value: float | None) -> None:
    assert measured(answer) == Measured(value)


def test_tables_have_further_numbers() -> None:
    assert measured({"score": 0.5, "acc": True, "pred": "4"}) == Measured(0.5, parts={"acc": 1.0})
    assert measured({"mine": 1, "score": 3}, "mine") == Measured(1.0, parts={"score": 3.0})
    table = {"rewards": torch.tensor([1.0, 2.0]), "scores": [3, 4], "extra_logs": {"len": torch.tensor([5, 6])}}
    assert all_measured(table, 2) == [
        Measured(1.0, parts={"scores": 3.0, "len": 5.0}),
        Measured(2.0, parts={"scores": 4.0, "len": 6.0}),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["score", "a"]), inner, max_size=2),
    max_leaves=5,
)


def require_number_or_reason(answer: Any, batched: bool) -> None:
    def reward(completions):
        return answer

    def single(text):
        return answer

    for found in told(reward if batched else single, row(), "a", "b"):
        assert found.value is None or (np.isfinite(found.value) and not found.why_not)


@drawing(max_examples=20)
@given(JSON, st.booleans())
def test_whatever_a_function_gives_back_is_a_number_or_a_reason(answer: Any, batched: bool) -> None:
    require_number_or_reason(answer, batched)


@pytest.mark.check
@given(JSON, st.booleans())
def test_whatever_many_functions_give_back_is_a_number_or_a_reason(answer: Any, batched: bool) -> None:
    require_number_or_reason(answer, batched)


# In the reward of a rollout


def weights(**functions: Callable[..., Any]) -> RewardWeights:
    rules = {name: FunctionReward(function, name, {}) for name, function in functions.items()}
    return RewardWeights({"accuracy": 1.0, **dict.fromkeys(functions, 0.5)}, rules)


def graded(rewards: RewardWeights, *texts: str) -> list[Grade]:
    task = a_task(row())
    return rewards.grade(task, row(), [said(text) for text in texts], noise=(0, "zero", 1, 2))


def test_none_leaves_the_function_out_of_the_sum_and_an_error_the_rollout_ungraded() -> None:
    def sometimes(completions, **kwargs):
        return [None if completion[0]["content"] == "skip" else 1.0 for completion in completions]

    def fails(text):
        if text == "bad":
            raise ValueError("no idea")
        return {"score": 3.0, "depth": 2}

    skip, bad, both = graded(weights(sometimes=sometimes, fails=fails), "skip", "bad", "good")
    assert skip.reward == 1.0 + 0.5 * 3.0
    assert "sometimes" not in skip.parts
    assert skip.parts["fails/depth"] == 2.0
    assert bad.reward is None
    assert bad.error == "the reward fails (fails: it raised ValueError: no idea) could not be measured"
    assert both.reward == 1.0 + 0.5 + 1.5


def test_a_rollout_that_no_reward_applies_to_is_ungraded() -> None:
    rule = FunctionReward(lambda text: None, "mine", {})
    (grade,) = graded(RewardWeights({"mine": 1.0}, {"mine": rule}), "a")
    assert grade.reward is None
    assert grade.error == "the reward mine says that it does not apply"


# What nothing can fill


def checked(function: Callable[..., Any], *problems: Problem, **settings: Any) -> None:
    rule = FunctionReward(function, "mine", settings)
    check_rewards({"mine": 1.0}, [a_task(*problems)], lambda name: rule)


def test_a_parameter_that_nothing_can_fill_is_refused_by_name() -> None:
    def reward(completions, solutoin, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(RecipeError, match=r"reward takes 'solutoin', and nothing fills that for task 'sums'") as caught:
        checked(reward, row(solution="4"), row(solution="5"))
    assert "solution" in caught.value.fix
    checked(reward, row(), row(solutoin="5"))  # of some rows
    checked(reward, row(), solutoin="4")


def test_a_row_without_the_column_could_not_tell() -> None:
    def reward(completions, tests):
        return [1.0] * len(completions)

    (found,) = told(reward, row(), "a")
    assert found.why_not == "reward: the problem has nothing to fill 'tests' with"


def test_a_function_that_takes_no_response_is_refused() -> None:
    def reward(prompt, respnse):
        return 0.0

    assert not is_reward_function(reward)
    with pytest.raises(RecipeError, match="takes prompt, respnse, none of which is what the model wrote"):
        FunctionReward(reward, "mine", {})


def test_settings_are_what_the_rollout_does_not_fill() -> None:
    def verl(solution_str, ground_truth, method="strict", format_score: float = 0.0):
        return format_score

    settings = function_settings(verl, "reward 'mine'")
    assert set(settings.model_fields) == {"reward_key", "method", "format_score"}
    for wrong in ({"format_score": "much"}, {"solution_str": "4"}, {"scale": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings.model_validate(wrong, strict=True)

    def open_to_all(solution_str, **kwargs):
        return kwargs["scale"]

    assert function_settings(open_to_all, "").model_validate({"scale": 1}).model_dump()["scale"] == 1
    assert told(open_to_all, row(), "a", scale=3)[0].value == 3.0


def test_a_type_that_is_only_there_for_type_checkers_does_no_harm() -> None:
    source = "def reward(text: 'Absent', scale: 'AlsoAbsent' = 1):\n    return scale\n"
    space: dict[str, Any] = {}
    exec(source, space)
    assert inspect.isfunction(space["reward"])
    assert told(space["reward"], row(), "a", scale=2)[0].value == 2.0
    assert "scale" in function_settings(space["reward"], "").model_fields
