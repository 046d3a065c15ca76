"""What several attempts at each problem say: pass@k, the vote of all attempts, and how many could not be graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from reasonmill.algo.intervals import clustered_share
from reasonmill.algo.pass_at_k import pass_at_curve
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Group, Problem, Rollout


def attempt_figures(groups: Sequence[Group], task: NamedTask) -> dict[str, Any]:
    """Figures of one task's groups, each with a 95 % interval clustered by problem.

    pass@k is there from k = 2 on, over the problems with so many graded attempts; cons@k for tasks whose answers can be
    compared with each other; `could_not_tell_rate` is the share of the attempts that were not graded.
    """
    graded = [(group.problem.cluster, _rights(group)) for group in groups]
    curve = pass_at_curve([(cluster, len(rights), sum(rights)) for cluster, rights in graded if rights])
    figures = {f"pass@{k}": estimate.as_metric() for k, estimate in curve.items() if k > 1}
    most = max((len(group.rollouts) for group in groups), default=0)
    if task.answer_of is not None and most > 1:
        votes = [(group.problem.cluster, vote) for group in groups if (vote := consensus(group, task)) is not None]
        if votes:
            share = clustered_share([vote for _, vote in votes], [cluster for cluster, _ in votes])
            figures[f"cons@{most}"] = share.as_metric()
    unknown = [
        (group.problem.cluster, float(rollout.grade.reward is None)) for group in groups for rollout in group.rollouts
    ]
    if unknown:
        rate = clustered_share([value for _, value in unknown], [cluster for cluster, _ in unknown])
        figures["could_not_tell_rate"] = rate.as_metric()
    return figures


@dataclass
class _Votes:
    """Attempts that give the same answer, in so many spellings; `right` is None where the grader could not tell."""

    spellings: list[str]
    right: bool | None
    count: int = 0


def consensus(group: Group, task: NamedTask) -> float | None:
    """Whether the answer that most attempts at a problem give is right; None where the grader could not tell.

    Two answers are the same if the task's grader takes one for right where the other is the reference. Attempts
    without an answer do not vote, and where none votes the vote is wrong. Of answers with as many votes, each is as
    likely to be chosen.
    """
    answer_of = task.answer_of
    assert answer_of is not None
    found: list[_Votes] = []
    for rollout in group.rollouts:
        answer = answer_of(rollout.completion.text)
        if answer is not None:
            _box(answer, rollout, group.problem, task, found).count += 1
    most = max((votes.count for votes in found), default=0)
    chosen = [votes.right for votes in found if votes.count == most]
    if None in chosen:
        return None
    return sum(map(bool, chosen)) / len(chosen) if chosen else 0.0


def _box(answer: str, rollout: Rollout, problem: Problem, task: NamedTask, found: list[_Votes]) -> _Votes:
    """The votes that an attempt's vote is to be counted with; new ones where nobody gave this answer before."""
    right = None if rollout.grade.reward is None else _is_right(rollout)
    alike = [votes for votes in found if votes.right is right]
    for votes in alike:  # what is spelled alike needs no grader
        if right or answer in votes.spellings:
            return votes
    for votes in alike:
        if _same(votes.spellings[0], rollout.completion, problem, task):
            votes.spellings.append(answer)
            return votes
    found.append(_Votes([answer], right))
    return found[-1]


def _same(answer: str, completion: Completion, problem: Problem, task: NamedTask) -> bool:
    """Whether a response gives an answer that another one gave."""
    meta = {name: value for name, value in problem.meta.items() if name != "answers"}
    (grade,) = task.grade(replace(problem, answer=answer, meta=meta), [completion])
    return grade.reward is not None and grade.parts.get("accuracy") == 1.0


def _rights(group: Group) -> list[bool]:
    """Whether the attempts are right, of those that could be graded."""
    return [_is_right(rollout) for rollout in group.rollouts if rollout.grade.reward is not None]


def _is_right(rollout: Rollout) -> bool:
    """A part of a point is none."""
    return rollout.grade.parts.get("accuracy") == 1.0
