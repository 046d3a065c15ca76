"""The tasks over rows that recipes can name: each is a grader and its settings.

Where `answer_in` says where the answer stands, prompts that don't ask for it there do so at their end, unless `ask` is
false; with "auto", which finds answers in many places, only where `ask` is true.
"""

from __future__ import annotations

from reasonmill.grading.choice import ChoiceGrader
from reasonmill.grading.mathematics import MathGrader
from reasonmill.grading.places import Place
from reasonmill.grading.text import Match, TextGrader
from reasonmill.tasks.rows import RowsTask, Splits


def math(
    data: Splits | None = None,
    answer_in: Place = "auto",
    pattern: str | None = None,
    tolerance: float = 0.0,
    symbolic: bool = False,
    ask: bool | None = None,
) -> RowsTask:
    """Answers of mathematics, right if they equal the reference."""
    return RowsTask(MathGrader(answer_in, pattern, tolerance, symbolic), data, _asks(ask, answer_in))


def choice(
    data: Splits | None = None,
    answer_in: Place = "auto",
    pattern: str | None = None,
    first: int = 0,
    ask: bool | None = None,
) -> RowsTask:
    """Multiple choice, right if the response chooses the option."""
    return RowsTask(ChoiceGrader(answer_in, pattern, first), data, _asks(ask, answer_in))


def text(
    data: Splits | None = None,
    match: Match = "exact",
    similarity: float | None = None,
    answer_in: Place = "auto",
    pattern: str | None = None,
    ask: bool | None = None,
) -> RowsTask:
    """Short texts, right if they are the reference, or similar enough."""
    return RowsTask(TextGrader(match, similarity, answer_in, pattern), data, _asks(ask, answer_in))


def _asks(ask: bool | None, answer_in: Place) -> bool:
    return answer_in != "auto" if ask is None else ask
