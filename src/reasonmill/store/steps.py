"""What a stage keeps: groups and a judge's verdicts, committed before anything uses them, and states to resume from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Group

VERDICTS_FILE = "verdicts.json"

V = TypeVar("V", bound=float | None)  # true and false are numbers, too


def committed_groups(home: Home, key: str, step: int, sample: Callable[[], Sequence[Group]]) -> Sequence[Group]:
    """The step's groups: the committed ones of an earlier run, else new ones, which are committed.

    Groups whose object is damaged or missing are sampled again, and told; the ledger sees to it that they are the same.

    Raises:
        StoreError: the groups that were sampled again are others.
    """
    digest = home.ledger.step_groups(key, step)
    if digest is not None:
        path = home.objects.sound_path(digest, instead=f"the groups of step {step} are sampled again")
        if path is not None:
            return read_groups(path / GROUPS_FILE)
    groups = sample()
    home.ledger.commit_step(key, step, home.objects.put(lambda target: write_groups(target / GROUPS_FILE, groups)))
    return groups


def latest_state(home: Home, key: str) -> tuple[int, Path] | None:
    """Step and directory of the latest state of a stage that is whole, as are the groups of all steps before it.

    Damaged or missing states are told and forgotten. Where groups are damaged or missing, a state before their step is
    the latest, so that they are made again. None if there is no such state.
    """
    lost = [
        step
        for step, digest in home.ledger.steps(key)
        if digest is not None
        and home.objects.sound_path(digest, instead=f"the stage goes on from a state before step {step}") is None
    ]
    for step, digest in reversed(home.ledger.states(key)):
        if lost and step > lost[0]:
            continue
        path = home.objects.sound_path(digest, instead=f"the stage goes on from a state before step {step}")
        if path is not None:
            return step, path
        home.ledger.forget_state(key, step)
    return None


def committed_verdicts(home: Home, key: str, part: int, ask: Callable[[], Sequence[V]]) -> Sequence[V]:
    """A part of a judge's verdicts: the committed ones of an earlier run, else new ones, which are committed.

    They outlive the stage: what it made can be made again without the judge, who might say something else by then.
    """
    drop_damaged_verdicts(home, key)
    beside = verdicts_key(key)
    digest = home.ledger.step_groups(beside, part)
    if digest is not None:
        kept: list[V] = json.loads((home.objects.path(digest) / VERDICTS_FILE).read_text(encoding="utf-8"))
        return kept
    verdicts = ask()

    def write(target: Path) -> None:
        (target / VERDICTS_FILE).write_text(json.dumps(list(verdicts)), encoding="utf-8")

    home.ledger.commit_step(beside, part, home.objects.put(write))
    return verdicts


def verdicts_key(key: str) -> str:
    """Under what a stage's verdicts are in the ledger: its own steps may be those of a training."""
    return f"{key}/verdicts"


def drop_damaged_verdicts(home: Home, key: str) -> None:
    """Tells and forgets verdicts that are damaged or missing: a judge can't be held to what it said before."""
    for part, digest in home.ledger.steps(verdicts_key(key)):
        instead = "the judge is asked again where they are needed"
        if digest is not None and home.objects.sound_path(digest, instead=instead) is None:
            home.ledger.forget_step(verdicts_key(key), part)


def forget_state(home: Home, key: str, step: int, digest: str) -> None:
    """Removes a state of a stage, and its object unless the ledger refers to an equal one as something else."""
    home.ledger.forget_state(key, step)
    if not home.ledger.refers_to(digest) and home.objects.exists(digest):
        home.objects.delete(digest)
