"""The task `code`: programs by hidden tests, over rows that carry them."""

from __future__ import annotations

from reasonmill.grading.code import CodeGrader
from reasonmill.jail.found import found_level
from reasonmill.tasks.rows import RowsTask, Splits


def code(
    data: Splits | None = None, seconds: float = 6.0, total_seconds: float = 60.0, memory_mb: int = 1024
) -> RowsTask:
    """Programs by hidden tests.

    Args:
        data: rows with a problem, and its tests.
        seconds: of a core for a test that reads and prints, or for all tests that call a function.
        total_seconds: of a core for all tests of a response together.
        memory_mb: what a program may use.

    Raises:
        NoJail: this machine can't keep programs apart; better now than after hours of other stages.
    """
    found_level()
    return RowsTask(CodeGrader(seconds, total_seconds, memory_mb), data)
