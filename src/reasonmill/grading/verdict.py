"""A verdict on one response: right, wrong, or could not tell, which is not wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol, Self

from reasonmill.types import Grade, Problem

Outcome = Literal["right", "wrong", "could not tell"]
# Where a grader computes: in the process that asks; in a process of its own, which can be killed when it hangs or takes
# too much memory; or in the jail, because it runs or evaluates what a model wrote.
Isolation = Literal["none", "worker", "jail"]
_NO_PARTS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a grader says of a response.

    Attributes:
        reason: in words for the user; never empty where it could not tell.
        parts: further measures of the response, as a grade has them.
    """

    outcome: Outcome
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome == "could not tell" and not self.reason:
            raise ValueError("a verdict that could not tell must say why")

    @classmethod
    def right(cls, reason: str = "", parts: Mapping[str, float] = _NO_PARTS) -> Self:
        return cls("right", reason, dict(parts))

    @classmethod
    def wrong(cls, reason: str = "", parts: Mapping[str, float] = _NO_PARTS) -> Self:
        return cls("wrong", reason, dict(parts))

    @classmethod
    def could_not_tell(cls, reason: str) -> Self:
        return cls("could not tell", reason)

    @property
    def grade(self) -> Grade:
        """The grade that a task gives: its reward is the accuracy, and None where the grader could not tell."""
        if self.outcome == "could not tell":
            return Grade(None, self.parts, self.reason)
        accuracy = float(self.outcome == "right")
        return Grade(accuracy, {"accuracy": accuracy, **self.parts})


class Grader(Protocol):
    """Decides about responses. The same problem and response have the same verdict, wherever they are judged.

    Attributes:
        isolation: where it has to compute.
        asks: what a prompt says about the form of the answer, for tasks whose own prompts don't; may be empty.
    """

    isolation: Isolation
    asks: str

    def judge(self, problem: Problem, response: str) -> Verdict:
        """Judges one response: all that the model wrote, its thinking included.

        `problem.answer` is the reference; what else a grader needs (options, tests, instructions) stands in
        `problem.meta`. A reference that the grader can't read is no fault of the response: could not tell.
        """
