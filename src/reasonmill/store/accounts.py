"""The account of every rollout that was dispatched: each was trained on, or there is one reason why it was not."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, get_args

from reasonmill.errors import StoreError
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.ledger import Ledger
from reasonmill.store.objects import ObjectStore
from reasonmill.types import Group, Rollout

# trained: handed to an update, also where that was skipped because it was not finite. flat: of a group that has nothing
# to compare. overlong: cut at the length limit. ungraded: without a reward to compare. invalid: without a token that
# the policy sampled. stale: drawn from other weights than those that the step began with. aborted: given up before its
# end; one that was cut at the length limit is not.
Fate = Literal["trained", "flat", "overlong", "ungraded", "invalid", "stale", "aborted"]
FATES: tuple[Fate, ...] = get_args(Fate)
# What rollouts can meet that are learned from whatever their rewards and lengths are. A stage adds what it leaves out.
ALWAYS: frozenset[Fate] = frozenset({"trained", "invalid", "stale", "aborted"})
# What the metrics of a step call the counts.
AREA = "rollouts/"
_DISPATCHED = f"{AREA}dispatched"


def usable(groups: Sequence[Group], step: int) -> list[Group]:
    """The groups without their stale and aborted rollouts, which nothing may be compared with."""
    return [
        replace(group, rollouts=tuple(rollout for rollout in group.rollouts if _outside(rollout, step) is None))
        for group in groups
    ]


def account(groups: Sequence[Group], step: int, fates: AbstractSet[str]) -> dict[str, float]:
    """How many rollouts of a step met which fate, as metrics of the step.

    Args:
        fates: those that are possible: flat, overlong and ungraded rollouts are trained on unless these are among them.
    """
    counts: Counter[Fate] = Counter()
    for group, left in zip(groups, usable(groups, step), strict=True):
        for rollout in group.rollouts:
            counts[_outside(rollout, step) or _fate(rollout, left, fates)] += 1
    return {_DISPATCHED: float(counts.total()), **{AREA + f: float(counts[f]) for f in FATES if f in fates}}


def require_balance(step: int, counts: Mapping[str, float], *, dispatched: int, trained: int) -> None:
    """Checks an account against what was asked of the sampler and what was handed to the learner.

    Raises:
        RuntimeError: a rollout was lost, or used twice.
    """
    if (counts[_DISPATCHED], counts[f"{AREA}trained"]) != (dispatched, trained):
        raise RuntimeError(
            f"the rollouts of step {step} don't add up: {dispatched} were dispatched and {trained} trained on, but "
            f"their groups make it {counts[_DISPATCHED]:.0f} and {counts[f'{AREA}trained']:.0f}"
        )


def misaccounts(ledger: Ledger, objects: ObjectStore) -> Iterator[tuple[str, int, str]]:
    """The steps whose account is wrong, as (stage key, step, what is wrong with it).

    Counts the rollouts of all steps that were trained on again, from their committed groups.

    Steps whose groups can't be read any more are only added up: what is wrong with an object is another matter.
    """
    for key in ledger.begun_stages():
        for entry in ledger.metrics(key):
            step = entry["step"]
            groups = ledger.step_groups(key, step)
            if groups is not None and (what := _wrong(entry, step, _read(objects, groups))) is not None:
                yield key, step, what


def _wrong(entry: Mapping[str, Any], step: int, groups: Sequence[Group] | None) -> str | None:
    """What is wrong with the account in a step's metrics."""
    recorded = {name: value for name, value in entry.items() if name.startswith(AREA)}
    if not recorded.keys() >= {_DISPATCHED, f"{AREA}trained"}:
        return "its rollouts have no account"
    if recorded[_DISPATCHED] != sum(value for name, value in recorded.items() if name != _DISPATCHED):
        return f"its rollouts don't add up: {_listed(recorded)}"
    if groups is None:
        return None
    counted = account(groups, step, {name.removeprefix(AREA) for name in recorded})
    return None if counted == recorded else f"its groups say {_listed(counted)}; recorded is {_listed(recorded)}"


def _read(objects: ObjectStore, digest: str) -> list[Group] | None:
    with suppress(StoreError):
        return read_groups(objects.path(digest) / GROUPS_FILE)
    return None


def _listed(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.0f} {name.removeprefix(AREA)}" for name, value in counts.items())


def _outside(rollout: Rollout, step: int) -> Fate | None:
    """The fate of a rollout that is none of the step's, whatever its group is like."""
    if rollout.completion.finish == "abort":
        return "aborted"
    return "stale" if rollout.completion.policy_version != step else None


def _fate(rollout: Rollout, group: Group, fates: AbstractSet[str]) -> Fate:
    if not any(rollout.completion.sampled):
        return "invalid"
    if rollout.grade.reward is None and not fates.isdisjoint(("ungraded", "flat")):
        return "ungraded" if "ungraded" in fates else "invalid"  # homes of before had no word of its own for it
    if "flat" in fates and group.is_flat:
        return "flat"
    return "overlong" if "overlong" in fates and rollout.completion.finish == "length" else "trained"
