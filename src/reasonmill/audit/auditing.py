"""An audit: every attack on some problems of a task, and what the grader made of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reasonmill.audit.attacks import Attack, Target, attacks, same
from reasonmill.audit.forms import form_of
from reasonmill.audit.judging import ApartJudge, Ruling
from reasonmill.audit.samples import Sample
from reasonmill.errors import RecipeError
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Problem

Fault = Literal[
    "passes and should not", "fails and should not", "could not tell", "hung", "died", "ran what the response said"
]
# How many wrong answers, of other problems, there are for each problem.
_OTHERS = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the grader on one problem.

    Attributes:
        kind, attack: what was tried.
        response: the first of the attack's responses.
    """

    fault: Fault
    kind: str
    attack: str
    problem: Problem
    response: str
    reason: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        form: how the responses wrote their answers.
        num_right: of how many problems the gold answer was right in that form.
        num_judged: how many responses were judged.
    """

    form: str
    num_problems: int
    num_right: int
    num_judged: int
    findings: tuple[Finding, ...]


def audit(
    task: NamedTask,
    samples: Sequence[Sample],
    judge: ApartJudge,
    on_problem: Callable[[int], None] = lambda done: None,
) -> Audit:
    """Attacks the grader of a task, or a reward.

    Args:
        judge: of the task, or of the reward.
        on_problem: called with how many problems are done.

    Raises:
        RecipeError: there are no problems.
    """
    problems = [sample.problem for sample in samples]
    if not problems:
        raise RecipeError(f"task {task.name!r} has no problems to attack its grader with", fix="name another split")
    with tempfile.TemporaryDirectory() as folder, judge:
        form = form_of([problem for problem in problems if problem.answer], judge.worth)
        canary = Path(folder) / "canary"
        findings: list[Finding] = []
        num_right = 0
        for done, sample in enumerate(samples, start=1):
            problem = sample.problem
            ruling = judge.of_gold(problem, form.response(problem.answer)) if problem.answer else None
            is_read = ruling is not None and ruling.judged == "right"
            num_right += is_read
            if ruling is not None and not is_read:
                gold = Attack("gold answer", "as it stands", (form.response(problem.answer),), "right")
                findings += _faults(gold, problem, [ruling])
            is_open = bool(getattr(task.task, "is_open", False))
            target = Target(problem, form, _others(problem, problems), task.domain, canary, is_open)
            for attack in (*attacks(target, is_read=is_read), *_known(sample, target, is_read=is_read)):
                rulings = [judge.judge(problem, response) for response in attack.responses]
                findings += _faults(attack, problem, rulings)
                if canary.exists():
                    canary.unlink()
                    findings.append(_finding("ran what the response said", attack, problem))
            on_problem(done)
        return Audit(form.name, len(problems), num_right, judge.num_judged, tuple(findings))


def _known(sample: Sample, target: Target, *, is_read: bool) -> Iterator[Attack]:
    """What is known of this problem alone."""
    if is_read:
        for place, text in enumerate(sample.right, 1):
            yield Attack("other answer", f"another right one ({place})", (target.form.response(text),), "right")
    for place, text in enumerate(sample.wrong, 1):
        yield Attack("near miss", f"a wrong one ({place})", (target.form.response(text),), "wrong")


def _others(problem: Problem, problems: Sequence[Problem]) -> list[str]:
    """Answers to other problems that this problem's is not, the nearest problems' first."""
    place = problems.index(problem)
    others: list[str] = []
    for other in (*problems[place + 1 :], *problems[:place]):
        if other.answer and not any(same(other.answer, known) for known in (problem.answer, *others)):
            others.append(other.answer)
    return others[:_OTHERS]


def _faults(attack: Attack, problem: Problem, rulings: Sequence[Ruling]) -> Iterator[Finding]:
    for ruling in rulings:
        if ruling.judged in ("could not tell", "hung", "died"):
            yield _finding(ruling.judged, attack, problem, ruling.reason)
            return
    if attack.expected == "wrong" and all(ruling.judged == "right" for ruling in rulings):
        yield _finding("passes and should not", attack, problem, rulings[0].reason)
    if attack.expected == "right" and all(ruling.judged == "wrong" for ruling in rulings):
        yield _finding("fails and should not", attack, problem, rulings[0].reason)


def _finding(fault: Fault, attack: Attack, problem: Problem, reason: str = "") -> Finding:
    return Finding(fault, attack.kind, attack.name, problem, attack.responses[0], reason)
