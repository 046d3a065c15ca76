"""Reasoning as the tiny world's base has read it: tries that stop at a hit or give up, words of two languages mixed.

A web corpus holds clumsy reasoning: people guess without thinking, give up early and answer wrongly all the same.
The base learns this distribution, and reinforcement learning has something to improve in each respect.
"""

import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.types import Problem
from reasonmill.world.arithmetic import Arithmetic
from reasonmill.world.countdown import Countdown, Step, expression_of, random_steps
from reasonmill.world.lexicon import TRACE_WORDS, Language

OTHER: dict[Language, Language] = {"en": "de", "de": "en"}
MAX_TRIES = 12
Probability = Annotated[float, Field(ge=0, le=1)]


class TraceHabits(BaseModel):
    """How the corpus reasons; every entry is a probability.

    Attributes:
        think: a document thinks before it answers.
        empty_block: a document that does not think still writes an empty thinking block.
        patient: the writer of a document is patient, and rarely gives up.
        give_up, patient_give_up: after a failed try, Countdown thinking stops and answers with that try.
        keep_language: a word of the thinking is in the prompt's language.
        cut_short: arithmetic thinking stops before the last step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    think: Probability = 0.45
    empty_block: Probability = 0.4
    patient: Probability = 0.1
    give_up: Probability = 0.65
    patient_give_up: Probability = 0.1
    keep_language: Probability = 0.65
    cut_short: Probability = 0.3


class TraceWriter:
    """Writes responses to reasoning problems, with their tags, in the style of the corpus."""

    def __init__(self, habits: TraceHabits, rng: random.Random) -> None:
        self._habits = habits
        self._rng = rng

    def countdown(self, problem: Problem) -> str:
        """A response to a Countdown problem; right only if a random try happened to hit."""
        numbers, target, language = problem.meta["numbers"], problem.meta["target"], problem.meta["language"]
        if not self._happens(self._habits.think):
            return self._without_thinking(expression_of(random_steps(self._rng, numbers)))
        give_up = self._habits.patient_give_up if self._happens(self._habits.patient) else self._habits.give_up
        written: list[str] = []
        for attempt in range(1, MAX_TRIES + 1):
            steps = random_steps(self._rng, numbers)
            hit = steps[-1].result == target
            verdict = self._word("successes" if hit else "rejections", language)
            written.append(f"{self._word('openings', language)} {' ; '.join(map(str, steps))} {verdict}")
            if hit:
                break
            if attempt == MAX_TRIES or self._happens(give_up):
                written.append(self._word("give_ups", language))
                break
        return _respond(" ".join(written), expression_of(steps))

    def arithmetic(self, problem: Problem) -> str:
        """A response to a chained arithmetic problem; thinking is right unless it is cut short."""
        if not self._happens(self._habits.think):
            return self._without_thinking(problem.answer)
        steps = _chain(problem.meta)
        if self._happens(self._habits.cut_short):
            steps = steps[: self._rng.randint(1, len(steps) - 1)]
        written = " ".join(f"{self._word('steps', problem.meta['language'])} {step}" for step in steps)
        return _respond(written, str(steps[-1].result))

    def _without_thinking(self, answer: str) -> str:
        if self._happens(self._habits.empty_block):
            return _respond("", answer)
        return f"<answer> {answer}</answer>"

    def _word(self, purpose: str, language: Language) -> str:
        kept = language if self._happens(self._habits.keep_language) else OTHER[language]
        return self._rng.choice(TRACE_WORDS[purpose][kept])

    def _happens(self, probability: float) -> bool:
        return self._rng.random() < probability


def reasoning_document(rng: random.Random, habits: TraceHabits, seed: int, index: int) -> tuple[str, str]:
    """(prompt, response) of reasoning document `index`, from the train split only."""
    writer = TraceWriter(habits, rng)
    kind = rng.choices(("countdown-3", "countdown-4", "arithmetic"), weights=(5, 2, 2))[0]
    if kind == "arithmetic":
        problem = Arithmetic().problem("train", seed, index)
        return problem.messages[0].content, writer.arithmetic(problem)
    problem = Countdown(kind, counts=(int(kind[-1]),)).problem("train", seed, index)
    return problem.messages[0].content, writer.countdown(problem)


def _chain(meta: Mapping[str, Any]) -> list[Step]:
    value, steps = meta["start"], []
    for sign, operand in meta["operations"]:
        steps.append(Step.of(value, sign, operand))
        value = steps[-1].result
    return steps


def _respond(thinking: str, answer: str) -> str:
    return f"<think>{' ' + thinking if thinking else ''}</think><answer> {answer}</answer>"
