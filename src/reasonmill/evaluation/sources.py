"""What is compared: evaluations of a home, files of groups, and logs of other programs, problem by problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reasonmill.errors import RecipeError
from reasonmill.evaluation.foreign import Answered, is_foreign, read_foreign
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.store.ledger_backup import is_home
from reasonmill.types import Group


@dataclass(frozen=True)
class Source:
    """An evaluation: by task and problem what was answered."""

    title: str
    tasks: Mapping[str, Mapping[str, Answered]] = field(default_factory=dict)


def read_source(text: str, home: Path, metric: str | None, note: Callable[[str], None]) -> Source:
    """The evaluation that a text names: a path, or what a home has.

    Args:
        text: a file of groups, a log of another program or a directory with such; else a run's name, run/stage, or the
            beginning of a digest.
        metric: what of a log counts as being right; its first if None.
        note: called with what the user should know of it.

    Raises:
        RecipeError: there is no such evaluation, or it holds nothing to compare.
        StoreError: a file can't be read.
    """
    path = Path(text).expanduser()
    if path.suffix == ".parquet" and path.is_file():
        return Source(text, of_groups(read_groups(path)))
    if (path / GROUPS_FILE).is_file():
        return Source(text, of_groups(read_groups(path / GROUPS_FILE)))
    if is_foreign(path):
        return Source(text, read_foreign(path, metric))
    if not is_home(home):
        raise RecipeError(
            f"missing evaluation: {text!r} is no file or directory of one",
            fix=f"name a log, a file of groups, or with --home the home that has it; {home} is none",
        )
    with Home.open(home, write=False) as opened:
        return Source(text, of_groups(_groups_of(opened, text, note)))


def of_groups(groups: Iterable[Group]) -> dict[str, dict[str, Answered]]:
    """What attempts at problems say, by task and problem; those at a problem that was asked twice are put together."""
    tasks: dict[str, dict[str, Answered]] = {}
    for group in groups:
        problem = group.problem
        graded = [rollout.grade for rollout in group.rollouts if rollout.grade.reward is not None]
        values = tuple(grade.parts.get("accuracy", 0.0) for grade in graded)
        answered = Answered(problem.cluster, problem.messages[-1].content, values, len(group.rollouts) - len(graded))
        known = tasks.setdefault(problem.task, {})
        known[problem.id] = known[problem.id] + answered if problem.id in known else answered
    return tasks


def _groups_of(home: Home, text: str, note: Callable[[str], None]) -> list[Group]:
    from reasonmill.mill.artifacts import find_artifact

    runs = {run.name: run for run in home.ledger.runs()}
    if text in runs:
        stages = [stage for stage in runs[text].stages if stage.kind == "evaluate"]
        finished = [record for stage in stages if (record := home.ledger.stage(stage.key)) is not None]
        if not finished:
            raise RecipeError(f"the run {text!r} has no finished evaluation", fix="run it again: it resumes")
        artifacts = [record.artifact for record in finished]
        if len({artifact.parents for artifact in artifacts}) > 1:
            listed = ", ".join(f"{text}/{stage.name}" for stage in stages)
            raise RecipeError(f"the run {text!r} evaluates several models", fix=f"name one: {listed}")
    else:
        artifacts = [find_artifact(home, text, note)]
    found: list[Group] = []
    for artifact in artifacts:
        if artifact.kind not in ("evaluation", "rollouts"):
            raise RecipeError(f"{text!r} is no evaluation, but of kind {artifact.kind!r}", fix="name an evaluate stage")
        found += read_groups(home.objects.path(artifact.digest) / GROUPS_FILE)
    return found
