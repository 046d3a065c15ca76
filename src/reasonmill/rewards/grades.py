"""A task's own grades of completions, made safe against what graders do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from reasonmill.errors import ReasonmillError
from reasonmill.grading.verdict import Verdict
from reasonmill.protocols import Task
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Problem
from reasonmill.workers.answers import raised

ACCURACY = "accuracy"
# How many reasons are told apart.
_NAMED = 5
_COULD_NOT_TELL = " could not tell: "


def own_grades(task: Task | NamedTask, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
    """The task's own grades. A completion at which its grader raises, or gives what is no grade, stays ungraded, and
    spoils no other one.

    Raises:
        ReasonmillError: from the grader: it tells the user what to do, as where a server can't be reached.
    """
    try:
        grades = task.grade(problem, completions)
        if len(grades) != len(completions):
            raise ValueError(f"{len(grades)} grades for {len(completions)} completions")
        return [_checked(grade) for grade in grades]
    except ReasonmillError:
        raise
    except (Exception, SystemExit) as error:
        if len(completions) == 1:
            return [could_not_tell(problem, raised(error))]
    return [grade for completion in completions for grade in own_grades(task, problem, [completion])]


def verdict_of(task: Task, problem: Problem, response: str) -> Verdict:
    """The verdict of a task's grader; of a task that only gives grades, what its grade says."""
    judge = getattr(task, "verdict", None)
    if judge is not None:
        verdict: Verdict = judge(problem, response)
        return verdict
    (grade,) = task.grade(problem, [Completion((), None, (), response, "stop", 0)])
    if grade.reward is None:
        return Verdict.could_not_tell(grade.error)
    accuracy = grade.parts.get(ACCURACY, grade.reward)
    parts = {name: value for name, value in grade.parts.items() if name != ACCURACY}
    return Verdict.right(parts=parts) if accuracy == 1.0 else Verdict.wrong(f"its accuracy is {accuracy:g}", parts)


def could_not_tell(problem: Problem, reason: str) -> Grade:
    """The grade of a completion whose grader could not tell.

    Args:
        reason: what became of the grader: "it raised ...".
    """
    return Grade(None, error=f"the grader of {problem.task!r}{_COULD_NOT_TELL}{reason}")


def reasons(grades: Iterable[Grade]) -> dict[str, int]:
    """Why grades are None, in few words, with how many there are of each; the most frequent first.

    What a reason says of a single response, behind its first colon, is left out, and so are rare ones after the first
    five.
    """
    counts = Counter(
        grade.error.partition(_COULD_NOT_TELL)[2].partition(": ")[0] or grade.error.partition(": ")[0]
        for grade in grades
        if grade.reward is None
    )
    ranked = sorted(counts.items(), key=lambda counted: (-counted[1], counted[0]))
    rest = sum(count for _, count in ranked[_NAMED:])
    return dict(ranked[:_NAMED]) | ({"other reasons": rest} if rest else {})


def _checked(grade: Grade) -> Grade:
    """The grade with plain numbers as its parts.

    What is not finite is left to whoever adds the parts up.

    Raises:
        ValueError: the accuracy is no share. Other errors: it is no grade.
    """
    parts = {name: float(value) for name, value in grade.parts.items()}
    accuracy = parts.get(ACCURACY, 0.0)
    if math.isfinite(accuracy) and not 0 <= accuracy <= 1:
        raise ValueError(f"an accuracy lies in [0, 1], got {accuracy}")
    return replace(grade, reward=None if grade.reward is None else float(grade.reward), parts=parts)
