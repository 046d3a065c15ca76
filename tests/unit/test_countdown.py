"""Countdown: its steps, its problems, and a grader that can't be talked round."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest

from reasonmill.types import Completion, Grade, Message, Problem
from reasonmill.world.countdown import (
    Countdown,
    Step,
    draw_puzzle,
    expression_of,
    random_steps,
    solves,
    steps_between,
)

PUZZLE = Problem(
    task="countdown",
    messages=(Message("user", "make 24 from 3 8 1"),),
    answer="( 3 * 8 ) * 1",
    meta={"numbers": [3, 8, 1], "target": 24, "language": "en"},
)


def graded(answer: str, problem: Problem = PUZZLE) -> Grade:
    text = f"<think> so</think><answer> {answer}</answer>"
    completion = Completion((1,), (0.0,), (True,), text, "stop", 0)
    return Countdown("countdown", counts=(3,)).grade(problem, [completion])[0]


# Steps and expressions


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (8, 3, ["8 + 3 = 11", "8 - 3 = 5", "8 * 3 = 24"]),
        (3, 8, ["8 + 3 = 11", "8 - 3 = 5", "8 * 3 = 24"]),
        (12, 4, ["12 + 4 = 16", "12 - 4 = 8", "12 * 4 = 48", "12 / 4 = 3"]),
        (5, 5, ["5 + 5 = 10", "5 * 5 = 25", "5 / 5 = 1"]),
        (7, 1, ["7 + 1 = 8", "7 - 1 = 6"]),
        (1, 1, ["1 + 1 = 2"]),
        (25, 4, ["25 + 4 = 29", "25 - 4 = 21"]),
        (11, 9, ["11 + 9 = 20", "11 - 9 = 2", "11 * 9 = 99"]),
        (98, 1, ["98 + 1 = 99", "98 - 1 = 97"]),
        (98, 2, ["98 - 2 = 96", "98 / 2 = 49"]),
        (99, 98, ["99 - 98 = 1"]),
        (60, 60, ["60 / 60 = 1"]),
    ],
)
def test_steps_stay_in_the_tiny_world(first: int, second: int, expected: list[str]) -> None:
    assert [str(step) for step in steps_between(first, second)] == expected


def test_random_steps_use_every_number_once() -> None:
    rng = random.Random(0)
    operators: Counter[str] = Counter()
    for _ in range(500):
        numbers = [rng.randint(1, 25) for _ in range(4)]
        steps = random_steps(rng, numbers)
        if steps is None:
            continue
        assert len(steps) == 3
        remaining = Counter(numbers)
        for step in steps:
            assert step in steps_between(step.left, step.right)
            remaining.subtract([step.left, step.right])
            assert min(remaining.values()) >= 0
            remaining[step.result] += 1
            operators[step.operator] += 1
        assert +remaining == Counter([steps[-1].result])
    assert set(operators) == set("+-*/")


def test_every_pair_has_a_step() -> None:
    assert all(steps_between(first, second) for first in range(1, 100) for second in range(1, first + 1))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([Step(8, "-", 3, 5)], "8 - 3"),
        ([Step(8, "*", 3, 24), Step(24, "/", 1, 24)], "( 8 * 3 ) / 1"),
        ([Step(8, "-", 3, 5), Step(12, "-", 5, 7)], "12 - ( 8 - 3 )"),
        ([Step(8, "-", 3, 5), Step(9, "-", 2, 7), Step(7, "-", 5, 2)], "( 9 - 2 ) - ( 8 - 3 )"),
        # One operand is the 5 that was made, the other the 5 that was given.
        ([Step(8, "-", 3, 5), Step(5, "+", 5, 10)], "( 8 - 3 ) + 5"),
        ([Step(8, "-", 3, 5), Step(5, "+", 2, 7), Step(7, "+", 5, 12)], "( ( 8 - 3 ) + 2 ) + 5"),
        ([Step(4, "-", 2, 2), Step(6, "/", 3, 2), Step(2, "*", 2, 4)], None),
    ],
)
def test_expressions(steps: list[Step], expected: str | None) -> None:
    text = expression_of(steps)
    numbers = Counter(n for step in steps for n in (step.left, step.right))
    numbers.subtract(step.result for step in steps[:-1])
    assert solves(text, list(numbers.elements()), steps[-1].result)
    if expected is not None:
        assert text == expected


@pytest.mark.parametrize(
    "steps", [[], [Step(2, "+", 3, 5), Step(4, "+", 6, 10)], [Step(2, "+", 3, 5), Step(1, "+", 1, 2)]]
)
def test_steps_that_leave_numbers_over_have_no_expression(steps: list[Step]) -> None:
    with pytest.raises(ValueError, match="do not end in one number"):
        expression_of(steps)


# Problems


@pytest.mark.parametrize("count", [3, 4])
def test_puzzles_are_solved_by_their_solutions(count: int) -> None:
    rng = random.Random(1)
    puzzles = [puzzle for _ in range(500) if (puzzle := draw_puzzle(rng, count)) is not None]
    assert len(puzzles) > 300
    for puzzle in puzzles:
        assert len(puzzle.numbers) == count
        assert all(1 <= number <= 25 for number in puzzle.numbers)
        assert 1 <= puzzle.target <= 99
        assert puzzle.target not in puzzle.numbers
        assert solves(puzzle.solution, puzzle.numbers, puzzle.target)


def test_a_problem_says_what_its_meta_says() -> None:
    task = Countdown("countdown-3", counts=(3,))
    english, german = task.problem("train", 0, 0), task.problem("train", 0, 1)
    for problem, prompt in ((english, "make {} from {}"), (german, "bilde {} aus {}")):
        numbers = " ".join(map(str, problem.meta["numbers"]))
        assert [m.role for m in problem.messages] == ["user"]
        assert problem.messages[0].content == prompt.format(problem.meta["target"], numbers)
    assert (english.meta["language"], german.meta["language"]) == ("en", "de")


def test_each_count_has_its_turn() -> None:
    task = Countdown("countdown", counts=(3, 4))
    counts = Counter(len(task.problem("train", 0, index).meta["numbers"]) for index in range(20))
    assert counts == {3: 10, 4: 10}


def test_each_count_is_asked_for_in_both_languages() -> None:
    task = Countdown("countdown", counts=(3, 4))
    metas = [task.problem("train", 0, index).meta for index in range(40)]
    kinds = Counter((len(meta["numbers"]), meta["language"]) for meta in metas)
    assert set(kinds) == set(itertools.product((3, 4), ("en", "de")))


def test_the_space_of_three_numbers_is_large() -> None:
    """Numbers and target make a problem: more than 20,000 can be drawn, so that a tenth is a test of its own."""
    identities: set[tuple[int, ...]] = set()
    for numbers in itertools.combinations_with_replacement(range(1, 26), 3):
        for last in range(3):
            first, second = (number for place, number in enumerate(numbers) if place != last)
            for step in steps_between(first, second):
                targets = {final.result for final in steps_between(step.result, numbers[last])}
                identities.update((*numbers, target) for target in targets - set(numbers))
    assert len(identities) == 24_296


# The grader


@pytest.mark.parametrize(
    "answer",
    [
        "( 3 * 8 ) * 1",
        "3 * 8 * 1",
        "3*8/1",
        "8*3*1",
        "1 * ( 8 * 3 )",
        "((3)*(8))*(1)",
        "  3   *   8\n*\t1  ",
        "8 / ( 1 / 3 )",
    ],
)
def test_any_exact_solution_is_right(answer: str) -> None:
    assert graded(answer) == Grade(1.0, {"accuracy": 1.0})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "24",
        "3 * 8",  # leaves one out
        "3 * 8 * 1 * 1",  # uses one twice
        "3 * 8 + 1 - 1",
        "3 * 8 * 1 + 0",  # uses one that was not given
        "( 25 - 1 )",
        "38 - 1",
        "3 + 8 + 1",  # misses the target
        "3 * 8 * - 1",
        "- 3 * - 8 * 1",
        "-(-3) * 8 * 1",
        "+3 * 8 * 1",
        "3 * 8 ** 1",
        "3 * 8 // 1",
        "3 * 8 % 1",
        "3 * 8 ^ 1",
        "3 * 8 ( 1 )",
        "( 3 * 8 * 1",
        "3 * 8 * 1 )",
        "3 * 8 / ( 1 - 1 )",
        "3 / 0 * 8 * 1",
        "\uff13 * \uff18 * \uff11",
        "\u0663 * \u0668 * \u0661",
        "three * eight * one",
        "3 * 8 * 1 # right",
        "3 * 8 * 1; 24",
        "3 * 8 * 1, 3 + 8 + 1",
        "3 * 8 * 1 or 24",
        "eval('3 * 8 * 1')",
        "__import__('os').getpid() * 0 + 3 * 8 * 1",
        "(lambda: 3 * 8 * 1)()",
        "<b>3 * 8 * 1</b>",
        "(" * 5000 + "3 * 8 * 1" + ")" * 5000,
        "(" * 40 + "3 * 8 * 1" + ")" * 40,
        "9" * 10_000,
        "3 * 8 * 1 " + "* 1 " * 2000,
    ],
)
def test_anything_else_is_wrong(answer: str) -> None:
    assert graded(answer) == Grade(0.0, {"accuracy": 0.0})


def test_intermediate_results_may_be_fractions_or_negative() -> None:
    # The one way to 24 from 3 3 8 8.
    assert Fraction(8) / (3 - Fraction(8, 3)) == 24
    assert solves("8 / ( 3 - 8 / 3 )", [3, 3, 8, 8], 24)
    assert not solves("8 / 3 - 8 / 3", [3, 3, 8, 8], 24)
    assert solves("1 - 5 + 10", [10, 5, 1], 6)


def test_a_number_given_twice_is_used_twice() -> None:
    assert solves("5 + 5 + 1", [5, 1, 5], 11)
    assert not solves("5 + 1 + 5 / 1", [5, 1, 5], 11)
    assert not solves("10 + 1", [5, 1, 5], 11)


def test_close_is_not_right() -> None:
    # 8 / 3 * 3 is exactly 8; with floating-point numbers 1 / 49 * 49 is not 1.
    assert solves("1 / 49 * 49", [1, 49, 49], 1)
    assert not solves("1 / 3", [1, 3], 0)
    assert not solves("7 / 2", [7, 2], 3)
    assert not solves("7 / 2", [7, 2], 4)
