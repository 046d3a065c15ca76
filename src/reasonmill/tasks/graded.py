"""The tasks over rows that recipes can name: each is a grader and its settings."""

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
) -> RowsTask:
    """Answers of mathematics, right if they equal the reference."""
    return RowsTask(MathGrader(answer_in, pattern, tolerance, symbolic), data)


def choice(
    data: Splits | None = None, answer_in: Place = "auto", pattern: str | None = None, first: int = 0
) -> RowsTask:
    """Multiple choice, right if the response chooses the option."""
    return RowsTask(ChoiceGrader(answer_in, pattern, first), data)


def text(
    data: Splits | None = None,
    match: Match = "exact",
    similarity: float | None = None,
    answer_in: Place = "auto",
    pattern: str | None = None,
) -> RowsTask:
    """Short texts, right if they are the reference, or similar enough."""
    return RowsTask(TextGrader(match, similarity, answer_in, pattern), data)
