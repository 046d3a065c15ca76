"""What a worked solution is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reasonmill.transcript import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN


@dataclass(frozen=True, slots=True)
class Solution:
    """Steps, a line each, and the answer that they come to."""

    steps: Sequence[str]
    answer: str

    @property
    def response(self) -> str:
        """The steps as thinking, then the answer, in the tags of R1-Zero's template."""
        thinking = "\n".join(self.steps)
        return f"{THINK_OPEN}\n{thinking}\n{THINK_CLOSE}\n{ANSWER_OPEN}{self.answer}{ANSWER_CLOSE}"


class Solver(Protocol):
    """Solves a problem of a family from what its item's metadata says; the generator chooses among wordings.

    None where the problem has no solution of this kind.
    """

    __name__: str

    def __call__(self, item: Mapping[str, Any], rng: random.Random) -> Solution | None: ...
