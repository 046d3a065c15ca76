"""Problems that are attacked, and those of this package's own, for graders that come without any."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonmill.types import Message, Problem


@dataclass(frozen=True, slots=True)
class Sample:
    """A problem, and answers to it of which somebody has said what they are.

    Attributes:
        right, wrong: other answers than the problem's own.
    """

    problem: Problem
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


def own_samples(task: str) -> list[Sample]:
    """Problems that suit the grader of an offered task over rows; none for other tasks."""
    tables: dict[str, list[dict[str, Any]]] = tomllib.loads(
        Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    )
    return [_sample(task, **row) for row in tables.get(task, ())]


def _sample(
    task: str, problem: str, answer: str, right: list[str] | None = None, wrong: list[str] | None = None, **meta: Any
) -> Sample:
    asked = Problem(task, (Message("user", problem.strip()),), answer.strip(), meta)
    return Sample(asked, tuple(right or ()), tuple(wrong or ()))
