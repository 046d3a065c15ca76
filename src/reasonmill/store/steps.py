"""What a stage keeps between its steps: groups, committed before anything uses them, and states to resume from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Group


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


def sound_state(home: Home, key: str) -> tuple[int, Path] | None:
    """Step and directory of the latest state of a stage that is whole, as are the groups of all steps before it.

    Damaged or missing states are told and forgotten. Where groups are damaged or missing, a state before their step is
    the latest, so that they are made again. None if there is no such state.
    """
    lost = [
        step
        for step, digest in home.ledger.steps(key)
        if digest is not None
        and home.objects.sound_path(
            digest, instead=f"the stage goes on from before step {step}, whose groups are sampled again"
        )
        is None
    ]
    states = [(step, digest) for step, digest in home.ledger.states(key) if not lost or step <= lost[0]]
    others = [
        "the stage goes on from its first step",
        *(f"the state before step {step} is tried" for step, _ in states),
    ]
    for (step, digest), instead in reversed([*zip(states, others, strict=False)]):
        path = home.objects.sound_path(digest, instead=instead)
        if path is not None:
            return step, path
        home.ledger.forget_state(key, step)
    return None


def drop_state(home: Home, key: str, step: int, digest: str) -> None:
    """Removes a state of a stage, and its object unless the ledger refers to an equal one as something else."""
    home.ledger.forget_state(key, step)
    if not home.ledger.refers_to(digest) and home.objects.exists(digest):
        home.objects.delete(digest)
