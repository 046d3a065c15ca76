"""Tasks over rows whose answers are checked, and not compared: instructions and logic puzzles."""

from __future__ import annotations

from reasonmill.grading.instructions import InstructionsGrader, Strictness
from reasonmill.grading.logic import KnightsAndKnavesGrader, TwentyFourGrader, ZebraGrader
from reasonmill.tasks.rows import RowsTask, Splits


def instructions(data: Splits | None = None, by: Strictness = "strict") -> RowsTask:
    """Prompts with instructions that a program can check, in rows like those of IFEval.

    Args:
        data: the problems; without any, the task grades and has none of its own.
        by: whether a reply is judged as it is, or what introduces and decorates it is forgiven.
    """
    return RowsTask(InstructionsGrader(by), data)


def knights_and_knaves(data: Splits | None = None) -> RowsTask:
    """Who tells the truth, and who lies?"""
    return RowsTask(KnightsAndKnavesGrader(), data)


def twenty_four(data: Splits | None = None) -> RowsTask:
    """24, or another target, from each of some numbers once."""
    return RowsTask(TwentyFourGrader(), data)


def zebra(data: Splits | None = None) -> RowsTask:
    """Who lives in which house, and what is theirs?"""
    return RowsTask(ZebraGrader(), data)
