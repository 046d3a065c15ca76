"""What a stage keeps between its steps: groups, committed before anything uses them, and states to resume from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Group


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


def forget_state(home: Home, key: str, step: int, digest: str) -> None:
    """Removes a state of a stage, and its object unless the ledger refers to an equal one as something else."""
    home.ledger.forget_state(key, step)
    if not home.ledger.refers_to(digest) and home.objects.exists(digest):
        home.objects.delete(digest)
