"""Chained arithmetic: chains that stay in the tiny world, prompts that say them, a grader that compares."""

import random
import re
from collections import Counter
from itertools import pairwise

import pytest

from reasonmill.types import Completion, Grade, Message, Problem
from reasonmill.world.arithmetic import Arithmetic, draw_chain
from reasonmill.world.countdown import Step

PROBLEM = Problem(
    task="arithmetic",
    messages=(Message("user", "start at 7 then + 5 * 2 / 4 . result ?"),),
    answer="6",
    meta={"start": 7, "operations": [["+", 5], ["*", 2], ["/", 4]], "language": "en"},
)
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


@pytest.fixture(scope="module")
def chains() -> list[tuple[Step, ...]]:
    rng = random.Random(3)
    return [draw_chain(rng) for _ in range(3000)]


def test_chains_are_right_and_stay_between_1_and_99(chains: list[tuple[Step, ...]]) -> None:
    for chain in chains:
        assert 1 <= chain[0].left <= 25
        for step in chain:
            assert APPLY[step.operator](step.left, step.right) == step.result
            assert step.operator != "/" or step.left % step.right == 0
            assert 1 <= step.result <= 99
            assert 1 <= step.right <= 25
            assert step.operator in "+-" or 2 <= step.right <= 9
        for before, after in pairwise(chain):
            assert after.left == before.result


def test_chains_have_3_to_6_steps_of_every_operator(chains: list[tuple[Step, ...]]) -> None:
    lengths = Counter(len(chain) for chain in chains)
    assert set(lengths) == {3, 4, 5, 6}
    assert min(lengths.values()) > 600  # 750 expected
    operators = Counter(step.operator for chain in chains for step in chain)
    assert set(operators) == set("+-*/")
    assert min(operators.values()) > 0.1 * operators.total()


def test_the_limits_of_the_tiny_world_are_reached(chains: list[tuple[Step, ...]]) -> None:
    results = {step.result for chain in chains for step in chain}
    assert {1, 99} <= results


@pytest.mark.parametrize(
    ("index", "pattern"),
    [(0, r"start at (\d+) then ([-+*/\d ]+) \. result \?"), (1, r"beginne bei (\d+) dann ([-+*/\d ]+) \. ergebnis \?")],
)
def test_the_answer_can_be_worked_out_from_the_prompt(index: int, pattern: str) -> None:
    for problem in (Arithmetic().problem("train", 0, i) for i in range(index, 100, 2)):
        match = re.fullmatch(pattern, problem.messages[0].content)
        assert match is not None
        value = int(match[1])
        words = match[2].split()
        assert problem.meta["start"] == value
        assert problem.meta["operations"] == [[o, int(n)] for o, n in zip(words[::2], words[1::2], strict=True)]
        for operator, operand in zip(words[::2], words[1::2], strict=True):
            value = APPLY[operator](value, int(operand))
        assert problem.answer == str(value)
        assert problem.meta["language"] == ("en", "de")[index]


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [
        ("6", 1.0),
        ("  6\n", 1.0),
        ("", 0.0),
        ("7", 0.0),
        ("66", 0.0),
        ("16", 0.0),
        ("-6", 0.0),
        ("6.0", 1.0),
        ("6 7", 0.0),
        ("24 / 4", 0.0),
        ("24 / 4 = 6", 1.0),
        ("it is 6", 0.0),
        ("six", 0.0),
        ("\uff16", 0.0),
        ("\u0666", 0.0),
    ],
)
def test_only_the_result_is_right(answer: str, accuracy: float) -> None:
    completion = Completion((1,), (0.0,), (True,), f"<think> so</think><answer>{answer}</answer>", "stop", 0)
    assert Arithmetic().grade(PROBLEM, [completion]) == [Grade(accuracy, {"accuracy": accuracy})]
