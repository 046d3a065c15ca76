"""What the tasks of the tiny world have in common."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reasonmill.protocols import Domain
from reasonmill.types import Completion, Grade, Message, Problem
from reasonmill.world.lexicon import language_share


class WorldTask(ABC):
    """Endless problems in the world's languages, and a judge that looks at each response for itself."""

    name: str
    domain: Domain
    language_share = staticmethod(language_share)

    @abstractmethod
    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of a split."""

    @abstractmethod
    def judge(self, problem: Problem, text: str) -> Mapping[str, float]:
        """The parts of a response's grade; its reward is the accuracy."""

    def asked(self, prompt: str, answer: str, **meta: Any) -> Problem:
        """The problem that a prompt asks."""
        return Problem(self.name, (Message("user", prompt),), answer, meta)

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return (self.problem(split, seed, index) for index in itertools.count())

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        judged = [self.judge(problem, completion.text) for completion in completions]
        return [Grade(parts["accuracy"], parts) for parts in judged]
