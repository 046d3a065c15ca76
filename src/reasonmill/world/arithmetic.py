"""Chained arithmetic: a start number and several operations, applied from left to right."""

import random

from reasonmill.tasks.spelling import number_said
from reasonmill.tasks.splits import draw_from_split
from reasonmill.transcript import read_transcript
from reasonmill.types import Problem
from reasonmill.world.countdown import LARGEST, LARGEST_GIVEN, Step
from reasonmill.world.task import WorldTask

PROMPTS = {
    "en": "start at {start} then {operations} . result ?",
    "de": "beginne bei {start} dann {operations} . ergebnis ?",
}
MIN_STEPS, MAX_STEPS = 3, 6


def draw_chain(rng: random.Random) -> tuple[Step, ...]:
    """3 to 6 operations whose results stay between 1 and 99; the left operand of each is the result before it."""
    value = rng.randint(1, LARGEST_GIVEN)
    steps: list[Step] = []
    for _ in range(rng.randint(MIN_STEPS, MAX_STEPS)):
        step = rng.choice(_operations_on(value, rng))
        steps.append(step)
        value = step.result
    return tuple(steps)


def _operations_on(value: int, rng: random.Random) -> list[Step]:
    """One random candidate for each operator that keeps the value in the tiny world; never empty."""
    operands: dict[str, int] = {}
    if value < LARGEST:
        operands["+"] = rng.randint(1, min(LARGEST_GIVEN, LARGEST - value))
    if value > 1:
        operands["-"] = rng.randint(1, min(LARGEST_GIVEN, value - 1))
    if value * 2 <= LARGEST:
        operands["*"] = rng.randint(2, min(9, LARGEST // value))
    if divisors := [d for d in range(2, 10) if value % d == 0]:
        operands["/"] = rng.choice(divisors)
    return [Step.of(value, sign, operand) for sign, operand in operands.items()]


class Arithmetic(WorldTask):
    """Chained arithmetic problems in two languages."""

    domain = "reasoning"

    def __init__(self, name: str = "arithmetic") -> None:
        self.name = name

    def problem(self, split: str, seed: int, index: int) -> Problem:
        steps = draw_from_split(self.name, split, seed, index, draw_chain, lambda steps: tuple(map(str, steps)))
        language = "en" if index % 2 == 0 else "de"
        operations = " ".join(f"{step.operator} {step.right}" for step in steps)
        return self.asked(
            PROMPTS[language].format(start=steps[0].left, operations=operations),
            str(steps[-1].result),
            start=steps[0].left,
            operations=[[step.operator, step.right] for step in steps],
            language=language,
        )

    def answer_of(self, text: str) -> str | None:
        """The number that a response gives."""
        answer = read_transcript(text).answer
        number = None if answer is None else number_said(answer)
        return None if number is None else str(number)

    def judge(self, problem: Problem, text: str) -> dict[str, float]:
        answer = read_transcript(text).answer
        return {"accuracy": float(answer is not None and number_said(answer) == int(problem.answer))}
