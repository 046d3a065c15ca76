"""The account of a step's rollouts: every one has one fate, and the committed groups say the same later on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reasonmill.store.accounts import ALWAYS, account, misaccounts, require_balance, usable
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Completion, Finish, Grade, Group, Message, Problem, Rollout

STEP = 7
UNGRADED = Grade(None, error="no verdict")


def rollout(
    reward: float | None, *, finish: Finish = "stop", version: int = STEP, sampled: tuple[bool, ...] = (True, True)
) -> Rollout:
    tokens = tuple(range(len(sampled)))
    completion = Completion(tokens, (-1.0,) * len(tokens), sampled, "text", finish, version)
    return Rollout((1, 2), completion, UNGRADED if reward is None else Grade(reward, {"accuracy": reward}))


def group(name: str, *rollouts: Rollout) -> Group:
    return Group(Problem("countdown-3", (Message("user", name),), ""), rollouts)


# Three trained (one of them cut off), three flat, one ungraded, one invalid, one stale and two aborted.
GROUPS = [
    group("a", rollout(1.0), rollout(0.0, finish="length"), rollout(None), rollout(0.5)),
    group("b", rollout(1.0), rollout(1.0), rollout(0.0, finish="abort")),
    group("c", rollout(1.0), rollout(0.0, version=STEP - 1), rollout(None, finish="abort"), rollout(1.0, sampled=())),
]
COUNTS = {
    "rollouts/dispatched": 11,
    "rollouts/trained": 3,
    "rollouts/flat": 3,
    "rollouts/ungraded": 1,
    "rollouts/invalid": 1,
    "rollouts/stale": 1,
    "rollouts/aborted": 2,
}


FATES = ALWAYS | {"flat", "ungraded"}


def test_every_rollout_has_one_fate() -> None:
    assert account(GROUPS, STEP, FATES) == COUNTS
    assert account([], STEP, FATES) == dict.fromkeys(COUNTS, 0)


def test_flat_groups_are_trained_on_unless_they_are_left_out() -> None:
    counts = account(GROUPS, STEP, ALWAYS | {"ungraded"})
    assert counts == {**{n: c for n, c in COUNTS.items() if n != "rollouts/flat"}, "rollouts/trained": 6}


def test_what_was_cut_off_is_trained_on_unless_it_is_left_out() -> None:
    counts = account(GROUPS, STEP, FATES | {"overlong"})
    assert counts == {**COUNTS, "rollouts/trained": 2, "rollouts/overlong": 1}


def test_where_nothing_is_compared_grades_do_not_matter() -> None:
    counts = account(GROUPS, STEP, ALWAYS)
    assert "rollouts/flat" not in counts
    assert (counts["rollouts/trained"], counts["rollouts/invalid"], counts["rollouts/dispatched"]) == (7, 1, 11)


def test_stale_and_aborted_rollouts_are_nothing_to_compare_with() -> None:
    left = usable(GROUPS, STEP)
    assert [len(each.rollouts) for each in left] == [4, 2, 2]
    assert left[0] == GROUPS[0]
    assert [each.is_flat for each in left] == [False, True, True]
    assert not GROUPS[1].is_flat


@pytest.mark.parametrize(("dispatched", "trained"), [(12, 3), (11, 2)])
def test_a_rollout_that_got_lost_is_noticed(dispatched: int, trained: int) -> None:
    require_balance(STEP, COUNTS, dispatched=11, trained=3)
    with pytest.raises(RuntimeError, match="the rollouts of step 7 don't add up"):
        require_balance(STEP, COUNTS, dispatched=dispatched, trained=trained)


# The check of a home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


def commit(home: Home, key: str, step: int, groups: list[Group]) -> str:
    digest = home.objects.put(lambda target: write_groups(target / GROUPS_FILE, groups))
    home.ledger.commit_step(key, step, digest)
    return digest


def complaints(home: Home) -> list[tuple[str, int, str]]:
    return list(misaccounts(home.ledger, home.objects))


def test_right_accounts_and_steps_without_training_pass(home: Home) -> None:
    commit(home, "rl", STEP, GROUPS)
    home.ledger.record_metrics("rl", STEP, {"reward/mean": 0.5, **COUNTS})
    commit(home, "rl", STEP + 1, GROUPS)  # the run was killed before it trained on them
    commit(home, "distill", STEP, GROUPS)
    home.ledger.record_metrics("distill", STEP, account(GROUPS, STEP, ALWAYS))
    # Homes of before counted what was ungraded as invalid.
    before = {name: count for name, count in COUNTS.items() if name != "rollouts/ungraded"} | {"rollouts/invalid": 2}
    commit(home, "old", STEP, GROUPS)
    home.ledger.record_metrics("old", STEP, before)
    commit(home, "collect", 0, GROUPS)
    home.ledger.record_metrics("sft", 0, {"loss/ce": 1.0})
    assert complaints(home) == []


def test_an_account_that_adds_up_and_is_wrong_is_found(home: Home) -> None:
    commit(home, "rl", STEP, GROUPS)
    wrong = {**COUNTS, "rollouts/trained": 4, "rollouts/flat": 2}
    home.ledger.record_metrics("rl", STEP, wrong)
    ((key, step, what),) = complaints(home)
    assert (key, step) == ("rl", STEP)
    assert what.startswith("its groups say 11 dispatched, 3 trained, 3 flat")


def test_groups_that_are_not_those_of_the_account_are_found(home: Home) -> None:
    short = [replace(GROUPS[0], rollouts=GROUPS[0].rollouts[:-1]), *GROUPS[1:]]
    commit(home, "rl", STEP, short)
    home.ledger.record_metrics("rl", STEP, COUNTS)
    assert len(complaints(home)) == 1


def test_an_account_that_does_not_add_up_or_is_missing_is_found(home: Home) -> None:
    digest = commit(home, "rl", STEP, GROUPS)
    home.objects.delete(digest)  # which is for others to complain of
    home.ledger.record_metrics("rl", STEP, COUNTS)
    assert complaints(home) == []
    home.ledger.record_metrics("rl", STEP, {**COUNTS, "rollouts/stale": 0})
    assert complaints(home)[0][2].startswith("its rollouts don't add up: 11 dispatched, 3 trained")
    home.ledger.record_metrics("rl", STEP, {"reward/mean": 0.5})
    assert complaints(home)[0][2] == "its rollouts have no account"
