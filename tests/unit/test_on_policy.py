"""The loop over what the policy samples: what it skips, what it counts, and that a resumed run does the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from kept_progress import FakeRun
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch
from reasonmill.errors import Interrupted, TrainingDiverged
from reasonmill.learn.on_policy import Update, train_on_policy
from reasonmill.learn.state_file import StateFile, write_state
from reasonmill.store.accounts import ALWAYS, misaccounts
from reasonmill.store.home import Home
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout

TAKEN = {"optim/skipped": 0.0, "loss/pg": 1.0}
BATCH = "b" * 64


class FakeLearner:
    """A learner whose one weight counts the updates that were taken; each comes to what stands in `updated`."""

    skipped_batch = BATCH

    def __init__(self) -> None:
        self.weight = torch.zeros(1)
        self.updated: Mapping[str, float] = {}

    def forward_backward(self, batch: object, loss: object, divisor: float) -> dict[str, float]:
        return {"loss/pg": self.updated["loss/pg"]}

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        self.weight += 1 - self.updated["optim/skipped"]
        return {name: value for name, value in self.updated.items() if name != "loss/pg"}

    def save(self, directory: Path) -> None:
        write_state(directory, {"weight": self.weight})

    def load(self, directory: Path) -> None:
        self.weight.copy_(StateFile(directory)["weight"])

    def publish(self, sampler: object, version: int) -> None:
        assert isinstance(sampler, FakeSampler)
        sampler.version = version


class FakeSampler:
    version = 0
    rests = False

    def rest(self) -> None:
        self.rests = True


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


def a_group(step: int, *rewards: float | None) -> Group:
    rollouts = [
        Rollout(
            (1, 2),
            Completion((3,), (-1.0,), (True,), "", "stop", step),
            Grade(None, error="no verdict") if reward is None else Grade(reward),
        )
        for reward in rewards
    ]
    return Group(Problem("countdown-3", (Message("user", f"{step} {rewards}"),), ""), tuple(rollouts))


def two_groups(step: int) -> list[Group]:
    return [a_group(step, 1.0, 0.0, None), a_group(step, 1.0, 1.0, 1.0)]


def skip(cause: str) -> dict[str, float]:
    return {"optim/skipped": 1.0, "loss/pg": float("nan"), f"skipped/{cause}": 1.0}


def train(
    run: FakeRun,
    course: Sequence[Sequence[Mapping[str, float]]],
    sample: Callable[[int], list[Group]] = two_groups,
    seen: list[Sequence[Group]] | None = None,
) -> dict[str, float]:
    """Trains for as many steps as the course has; each step has the updates that stand there."""
    learner, sampler = FakeLearner(), FakeSampler()

    def drawn(step: int) -> list[Group]:
        sampler.rests = False
        return sample(step)

    def updates(step: int, groups: Sequence[Group]) -> tuple[Mapping[str, float], Iterator[Update]]:
        assert sampler.rests  # the memory is the learner's
        return {"mismatch/mean": 0.25}, of_step(step, groups)

    def of_step(step: int, groups: Sequence[Group]) -> Iterator[Update]:
        if seen is not None:
            seen.append(groups)
        trained = sum(r.grade.reward is not None for g in groups if not g.is_flat for r in g.rollouts)
        batch = cast(Batch, None)  # the learner does not look at it
        for place, learner.updated in enumerate(course[step]):
            yield Update([batch], LossSettings(), 1.0, learning_rate=0.1, num_rollouts=0 if place else trained)

    metrics, _ = train_on_policy(
        run,
        sampler,  # type: ignore[arg-type]
        learner,  # type: ignore[arg-type]
        name="stage",
        steps=len(course),
        state_every=2,
        dispatched=lambda groups: 6,
        fates=ALWAYS | {"flat", "ungraded"},
        sample=drawn,
        updates=updates,
        measure=lambda groups: {"tokens/sampled": 1.0},
    )
    return metrics


def test_skipped_updates_are_counted_by_cause_and_leave_the_means(home: Home) -> None:
    run = FakeRun(home)
    metrics = train(run, [[TAKEN, skip("loss"), skip("gradient"), {**TAKEN, "loss/pg": 2.0}]])
    assert (metrics["loss/pg"], metrics["optim/skipped"]) == (1.5, 0.5)
    assert (metrics["skipped/loss"], metrics["skipped/gradient"]) == (1, 1)
    assert "skipped/in_a_row" not in metrics
    assert run.progress.notes == [
        f"an update of step 0 was skipped: {cause} not finite" for cause in ("loss", "gradient")
    ]


def test_a_course_that_diverges_names_the_step_the_batch_and_the_groups(home: Home) -> None:
    with pytest.raises(TrainingDiverged, match="3 times in a row, last at step 2: advantages") as caught:
        train(FakeRun(home), [[TAKEN, skip("loss")], [skip("loss")], [skip("advantages")], [TAKEN]])
    groups = home.ledger.step_groups("k", 2)
    assert caught.value.where == f"batch {BATCH}, groups {groups}"
    assert groups is not None
    assert home.objects.exists(groups)


@pytest.mark.parametrize("looks", range(1, 5))
def test_an_interrupted_run_diverges_at_the_same_step(home: Home, looks: int) -> None:
    bad = [skip("loss")]
    course = [[TAKEN], bad, bad, [TAKEN, *bad], [], bad, bad, [TAKEN]]

    def sample(step: int) -> list[Group]:
        return two_groups(step) if course[step] else [a_group(step, *[1.0] * 6)]

    with pytest.raises(Interrupted):
        train(FakeRun(home, looks), course, sample)
    for _ in range(2):  # the second time from the last state
        with pytest.raises(TrainingDiverged, match="3 times in a row, last at step 6"):
            train(FakeRun(home), course, sample)


def test_steps_behind_one_that_lost_its_groups_for_good_are_sampled_again(home: Home) -> None:
    with pytest.raises(Interrupted):
        train(FakeRun(home, 5), [[TAKEN]] * 6)  # stops before step 5, and saves a state
    digests = [digest for _, digest in home.ledger.steps("k")]
    home.ledger.forget_groups("k", 1)
    sampled: list[int] = []

    def sample(step: int) -> list[Group]:
        sampled.append(step)
        return [a_group(step, 1.0, 0.0, 0.5), a_group(step, 0.5, 0.5, 0.5)]

    with pytest.raises(Interrupted):
        train(FakeRun(home, 0), [[TAKEN]] * 6, sample)
    # The state came of the lost groups, and so did those behind them.
    assert [digest for _, digest in home.ledger.steps("k")] == [digests[0], None, *digests[2:]]
    for step, _ in home.ledger.states("k"):
        home.ledger.forget_state("k", step)
    train(FakeRun(home), [[TAKEN]] * 6, sample)
    assert sampled == [1, 2, 3, 4, 5]
    now = [digest for _, digest in home.ledger.steps("k")]
    assert now[0] == digests[0]
    assert not {*digests[1:], None} & {*now[1:]}
    assert list(misaccounts(home.ledger, home.objects)) == []


def test_groups_behind_a_state_come_back_although_earlier_ones_are_lost_for_good(home: Home) -> None:
    with pytest.raises(Interrupted):
        train(FakeRun(home, 5), [[TAKEN]] * 6)  # stops before step 5; the state before step 4 is kept, too
    digests = [digest for _, digest in home.ledger.steps("k")]
    home.ledger.forget_groups("k", 1)
    home.objects.delete(str(digests[4]))
    train(FakeRun(home), [[TAKEN]] * 6)
    now = [digest for _, digest in home.ledger.steps("k")]
    assert now[:5] == [digests[0], None, *digests[2:5]]
    assert home.objects.exists(str(now[4]))
    (incident,) = home.ledger.incidents()
    assert incident.done == "the stage goes on from before step 4, whose groups are sampled again"


def test_a_step_that_was_killed_on_new_groups_has_no_account_of_the_lost_ones(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(FakeRun(home), [[TAKEN]] * 3)
    home.ledger.forget_groups("k", 1)
    for step, _ in home.ledger.states("k"):
        home.ledger.forget_state("k", step)

    def die(key: str, step: int, metrics: Mapping[str, float]) -> None:
        if step == 1:
            raise KeyboardInterrupt
        record(key, step, metrics)

    record = home.ledger.record_metrics
    monkeypatch.setattr(home.ledger, "record_metrics", die)
    last = home.ledger.step_groups("k", 2)
    with pytest.raises(KeyboardInterrupt):
        train(FakeRun(home), [[TAKEN]] * 3, lambda step: [a_group(step, 1.0, 0.0, 0.5), a_group(step, 0.5, 0.5, 0.5)])
    assert [step for step, _ in home.ledger.steps("k")] == [0, 1]
    assert [entry["step"] for entry in home.ledger.metrics("k")] == [0]
    assert list(misaccounts(home.ledger, home.objects)) == []
    (incident,) = home.ledger.incidents()
    assert (incident.digest, incident.done) == (last, "new ones take their place")


def test_every_step_has_its_account(home: Home) -> None:
    metrics = train(FakeRun(home), [[TAKEN], [TAKEN]])
    names = ("dispatched", "trained", "flat", "ungraded", "invalid", "stale", "aborted")
    assert [metrics[f"rollouts/{name}"] for name in names] == [6, 2, 3, 1, 0, 0, 0]
    assert metrics["mismatch/mean"] == 0.25
    assert list(misaccounts(home.ledger, home.objects)) == []
    (entry, _) = home.ledger.metrics("k")
    home.ledger.record_metrics("k", 0, {**entry, "rollouts/trained": 3.0, "rollouts/flat": 2.0})
    assert [step for _, step, _ in misaccounts(home.ledger, home.objects)] == [0]


def test_stale_and_aborted_rollouts_are_not_trained_on(home: Home) -> None:
    def sample(step: int) -> list[Group]:
        first, second = two_groups(step)
        stale, aborted, *rest = second.rollouts
        stale = replace(stale, completion=replace(stale.completion, policy_version=step + 1))
        aborted = replace(aborted, completion=replace(aborted.completion, finish="abort"))
        return [first, replace(second, rollouts=(stale, aborted, *rest))]

    seen: list[Sequence[Group]] = []
    metrics = train(FakeRun(home), [[TAKEN]], sample, seen)
    assert [len(group.rollouts) for group in seen[0]] == [3, 1]
    assert (metrics["rollouts/stale"], metrics["rollouts/aborted"], metrics["rollouts/flat"]) == (1, 1, 1)
    digest = home.ledger.step_groups("k", 0)
    assert digest is not None  # they are committed all the same


def test_a_rollout_that_the_sampler_lost_stops_the_run(home: Home) -> None:
    with pytest.raises(RuntimeError, match="don't add up"):
        train(FakeRun(home), [[TAKEN]], lambda step: [a_group(step, 1.0, 0.0), a_group(step, 1.0, 1.0, 1.0)])
