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

    Groups whose object was deleted are sampled again; the ledger sees to it that they are the same.
    """
    digest = home.ledger.step_groups(key, step)
    if digest is not None and home.objects.exists(digest):
        return read_groups(home.objects.path(digest) / GROUPS_FILE)
    groups = sample()
    home.ledger.commit_step(key, step, home.objects.put(lambda target: write_groups(target / GROUPS_FILE, groups)))
    return groups


def committed_verdicts(home: Home, key: str, part: int, ask: Callable[[], Sequence[V]]) -> Sequence[V]:
    """A part of a judge's verdicts: the committed ones of an earlier run, else new ones, which are committed.

    They outlive the stage: what it made can be made again without the judge, who might say something else by then.
    """
    # Beside the stage's own key, whose steps may be those of a training.
    beside = f"{key}/verdicts"
    digest = home.ledger.step_groups(beside, part)
    if digest is not None and home.objects.exists(digest):
        kept: list[V] = json.loads((home.objects.path(digest) / VERDICTS_FILE).read_text(encoding="utf-8"))
        return kept
    verdicts = ask()

    def write(target: Path) -> None:
        (target / VERDICTS_FILE).write_text(json.dumps(list(verdicts)), encoding="utf-8")

    home.ledger.commit_step(beside, part, home.objects.put(write))
    return verdicts


def forget_state(home: Home, key: str, step: int, digest: str) -> None:
    """Removes a state of a stage, and its object unless another stage has an equal state."""
    home.ledger.forget_state(key, step)
    if not home.ledger.is_state(digest) and home.objects.exists(digest):
        home.objects.delete(digest)
