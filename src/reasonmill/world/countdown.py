"""Countdown: reach a target with each of the given numbers once, by + - * / and parentheses.

The tiny world keeps to whole numbers from 1 to 99, intermediate results included: a base of a million parameters
knows its tables up to there. The grader accepts any exact solution, whatever its intermediate results.
"""

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from reasonmill.tasks.expression import ExpressionError, read_expression
from reasonmill.tasks.spelling import plain_sides
from reasonmill.tasks.splits import draw_from_split
from reasonmill.transcript import read_transcript
from reasonmill.types import Problem
from reasonmill.world.task import WorldTask

LARGEST_GIVEN = 25
LARGEST = 99
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
PROMPTS = {"en": "make {target} from {numbers}", "de": "bilde {target} aus {numbers}"}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a solution: `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int

    @classmethod
    def of(cls, left: int, sign: str, right: int) -> Self:
        """The operation with the result that it has; a division must come out even."""
        return cls(left, sign, right, OPERATORS[sign](left, right))

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Numbers in the order in which they are shown, the target, and an expression that reaches it."""

    numbers: tuple[int, ...]
    target: int
    solution: str


def steps_between(first: int, second: int) -> list[Step]:
    """Every operation on two numbers whose result stays in the tiny world; the larger number stands first."""
    large, small = max(first, second), min(first, second)
    possible = {
        "+": large + small <= LARGEST,
        "-": large > small,
        "*": large * small <= LARGEST and small > 1,
        "/": small > 1 and large % small == 0,
    }
    return [Step.of(large, sign, small) for sign, is_possible in possible.items() if is_possible]


def random_steps(rng: random.Random, numbers: Sequence[int]) -> list[Step]:
    """Combines random pairs of numbers from 1 to 99 until one is left; every such pair has an operation."""
    remaining = list(numbers)
    steps: list[Step] = []
    while len(remaining) > 1:
        left, right = rng.sample(range(len(remaining)), 2)
        step = rng.choice(steps_between(remaining[left], remaining[right]))
        steps.append(step)
        remaining = [n for i, n in enumerate(remaining) if i not in (left, right)] + [step.result]
    return steps


def expression_of(steps: Sequence[Step]) -> str:
    """One expression for a chain of steps, each compound operand in parentheses.

    Raises:
        ValueError: more than one number is left after the last step.
    """
    made: dict[int, list[str]] = {}
    text = ""
    for step in steps:
        operands = []
        for number in (step.left, step.right):
            waiting = made.get(number)
            operands.append(f"( {waiting.pop()} )" if waiting else str(number))
        text = f"{operands[0]} {step.operator} {operands[1]}"
        made.setdefault(step.result, []).append(text)
    if sum(len(waiting) for waiting in made.values()) != 1:
        raise ValueError(f"the steps {[str(step) for step in steps]} do not end in one number")
    return text


def draw_puzzle(rng: random.Random, count: int) -> Puzzle | None:
    """A random puzzle of `count` numbers, or None where the target would be one of them."""
    numbers = tuple(rng.randint(1, LARGEST_GIVEN) for _ in range(count))
    steps = random_steps(rng, numbers)
    if steps[-1].result in numbers:
        return None
    return Puzzle(numbers, steps[-1].result, expression_of(steps))


class Countdown(WorldTask):
    """Countdown with the given counts of numbers (a problem draws one of them)."""

    domain = "reasoning"

    def __init__(self, name: str, counts: tuple[int, ...]) -> None:
        self.name = name
        self._counts = counts

    def problem(self, split: str, seed: int, index: int) -> Problem:
        count = self._counts[index % len(self._counts)]
        # The identity ignores the task's name and the order of the numbers, so that no variant of a held-out
        # problem is in another split of another Countdown task.
        puzzle = draw_from_split(
            f"countdown-{count}",
            split,
            seed,
            index,
            lambda rng: draw_puzzle(rng, count),
            lambda puzzle: (*sorted(puzzle.numbers), puzzle.target),
        )
        # By turns, but so that each language meets each count.
        language = "en" if index // len(self._counts) % 2 == 0 else "de"
        prompt = PROMPTS[language].format(target=puzzle.target, numbers=" ".join(map(str, puzzle.numbers)))
        numbers = list(puzzle.numbers)
        return self.asked(prompt, puzzle.solution, numbers=numbers, target=puzzle.target, language=language)

    def judge(self, problem: Problem, text: str) -> dict[str, float]:
        answer = read_transcript(text).answer
        solved = answer is not None and solves(answer, problem.meta["numbers"], problem.meta["target"])
        return {"accuracy": float(solved)}


def solves(answer: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the expression uses each number exactly once and has the target's value, which it may be equated to."""
    try:
        sides = [read_expression(side) for side in plain_sides(answer)]
    except ExpressionError:
        return False
    solutions = [side for side in sides if sorted(side.numbers) == sorted(numbers) and side.value == target]
    return len(solutions) == 1 and all(side.numbers == (target,) for side in sides if side is not solutions[0])


def countdown() -> Countdown:
    """Three or four numbers by turns."""
    return Countdown("countdown", counts=(3, 4))


def countdown_3() -> Countdown:
    """Three numbers."""
    return Countdown("countdown-3", counts=(3,))


def countdown_4() -> Countdown:
    """Four numbers."""
    return Countdown("countdown-4", counts=(4,))
