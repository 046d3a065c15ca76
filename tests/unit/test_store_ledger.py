"""The ledger: what is recorded comes back, and nothing that was accepted is replaced."""

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store.ledger import Ledger, StageRecord
from reasonmill.types import Artifact

BASE = Artifact("ba5e" + "0" * 60, "model", "import", (), "", {})
POLICY = Artifact(
    "ab12" + "0" * 60, "model", "zero", (BASE.digest,), "c1", {"accuracy": {"value": 0.6, "low": 0.5, "high": 0.7}}
)
STAGES = [("zero", "rl", "k1"), ("report", "evaluate", "k2")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path, write=True)
    ledger.begin_run("r1", {"seed": 1}, STAGES)
    ledger.register(BASE)
    yield ledger
    ledger.close()


def commit_policy(ledger: Ledger) -> None:
    ledger.commit_stage(key="k1", run="r1", name="zero", kind="rl", artifact=POLICY, seconds=1.5, tokens=100)


def test_a_run_lists_its_stages_finished_or_not(ledger: Ledger) -> None:
    commit_policy(ledger)
    (run,) = ledger.runs()

    assert (run.name, run.recipe, list(run.stages)) == ("r1", {"seed": 1}, STAGES)
    assert [ledger.stage(stage.key) is not None for stage in run.stages] == [True, False]


def test_a_run_that_is_begun_again_keeps_its_start_and_takes_the_new_stages(ledger: Ledger) -> None:
    started_s = ledger.runs()[0].started_s
    ledger.begin_run("r2", {}, [])
    ledger.begin_run("r1", {"seed": 2}, STAGES[:1])
    first, second = ledger.runs()

    assert (first.name, first.started_s, first.recipe, list(first.stages)) == ("r1", started_s, {"seed": 2}, STAGES[:1])
    assert second.name == "r2"


def test_a_run_that_goes_through_its_stages_again_still_lists_those_behind(ledger: Ledger) -> None:
    ledger.begin_run("r1", {"seed": 1}, STAGES[:1])
    assert list(ledger.runs()[0].stages) == STAGES

    changed = [("zero", "rl", "k9")]  # by another version of the code, for one
    ledger.begin_run("r1", {"seed": 1}, changed)
    assert list(ledger.runs()[0].stages) == changed


def test_a_stage_and_its_artifact_come_back_in_another_process_too(ledger: Ledger, path: Path) -> None:
    commit_policy(ledger)
    reader = Ledger(path, write=False)

    expected = StageRecord("k1", "r1", "zero", "rl", POLICY, 1.5, 100, ())
    assert reader.stage("k1") == ledger.stage("k1") == expected
    assert reader.artifact(POLICY.digest) == POLICY
    reader.close()


def test_the_order_of_parents_is_kept(ledger: Ledger) -> None:
    commit_policy(ledger)
    for parents in [(POLICY.digest, BASE.digest), (BASE.digest, POLICY.digest)]:
        merged = Artifact("cc", "model", "merge", parents, "c2", {})
        ledger.register(merged)
        assert ledger.artifact("cc") == merged


def test_equal_content_of_two_stages_keeps_what_each_stage_recorded(ledger: Ledger) -> None:
    commit_policy(ledger)
    again = Artifact(POLICY.digest, "model", "again", (POLICY.digest,), "c9", {"accuracy": 0.1})
    ledger.commit_stage(key="k9", run="r1", name="again", kind="sft", artifact=again, seconds=2.0, tokens=5)

    first, second = ledger.stage("k1"), ledger.stage("k9")
    assert first is not None
    assert first.artifact == POLICY
    assert second is not None
    assert second.artifact == again
    assert ledger.artifact(POLICY.digest) == again


def test_an_artifact_keeps_its_parents_when_their_content_is_made_again(ledger: Ledger) -> None:
    commit_policy(ledger)
    child = Artifact("cd34" + "0" * 60, "evaluation", "report", (POLICY.digest,), "c2")
    ledger.register(child)
    # A later stage makes the policy's content again, from what was made of the policy.
    ledger.register(replace(POLICY, stage="zero-g2", parents=(child.digest,)))

    assert ledger.artifact(POLICY.digest).stage == "zero-g2"
    assert ledger.parents(child) == [POLICY]
    assert ledger.parents(POLICY) == [BASE]
    assert ledger.parents(BASE) == []
    with pytest.raises(StoreError, match="no artifact cd34"):
        ledger.parents(replace(child, stage="elsewhere"))


def test_a_stage_is_committed_once_until_it_is_forgotten(ledger: Ledger) -> None:
    commit_policy(ledger)
    with pytest.raises(StoreError, match="UNIQUE"):
        commit_policy(ledger)

    ledger.forget_stage("k1")
    assert ledger.stage("k1") is None
    assert ledger.artifact(POLICY.digest) == POLICY
    commit_policy(ledger)
    assert ledger.stage("k1") is not None


def test_a_refused_stage_leaves_no_artifact(ledger: Ledger) -> None:
    stray = Artifact("dd", "model", "x", (), "c", {})
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        ledger.commit_stage(key="k", run="never begun", name="x", kind="rl", artifact=stray, seconds=0.0, tokens=0)
    with pytest.raises(StoreError, match="digest"):
        ledger.artifact("dd")


def test_a_parent_must_be_known(ledger: Ledger) -> None:
    with pytest.raises(StoreError, match="parent") as caught:
        ledger.register(Artifact("ee", "model", "x", ("unknown",), "c", {}))
    assert caught.value.where == "unknown"
    with pytest.raises(StoreError):
        ledger.artifact("ee")


def test_registering_twice_records_once(ledger: Ledger) -> None:
    ledger.register(BASE)
    ledger.register(BASE)
    assert ledger._rows("SELECT count(*) FROM artifacts")[0][0] == 1


def test_a_unique_prefix_is_enough_and_an_ambiguous_one_lists_candidates(ledger: Ledger) -> None:
    commit_policy(ledger)
    ledger.register(Artifact("ab13" + "0" * 60, "model", "other", (), "", {}))
    ledger.register(Artifact("ab", "model", "short", (), "", {}))

    assert ledger.artifact("ab12") == POLICY
    assert ledger.artifact("ab").stage == "short"  # a whole digest, though others begin like it
    with pytest.raises(StoreError, match=r"ab12.*zero.*ab13.*other"):
        ledger.artifact("ab1")
    for unknown in ("", "ff", "%", POLICY.digest + "0"):
        with pytest.raises(StoreError) as caught:
            ledger.artifact(unknown)
        assert "no artifact" in caught.value.what
        assert caught.value.fix


def test_a_steps_groups_are_never_replaced(ledger: Ledger) -> None:
    assert ledger.step_groups("k1", 0) is None
    ledger.commit_step("k1", 0, "g0")
    ledger.commit_step("k1", 0, "g0")
    with pytest.raises(StoreError, match="step 0"):
        ledger.commit_step("k1", 0, "other")
    assert ledger.step_groups("k1", 0) == "g0"
    assert ledger.step_groups("k2", 0) is None


def test_lost_groups_make_way_for_others_and_the_step_stays(ledger: Ledger) -> None:
    for step in range(2):
        ledger.commit_step("k1", step, f"g{step}")
        ledger.record_metrics("k1", step, {"loss": 1.0})
    ledger.forget_groups("k1", 0)
    assert ledger.steps("k1") == [(0, None), (1, "g1")]
    assert [row["step"] for row in ledger.metrics("k1")] == [0, 1]
    ledger.commit_step("k1", 0, "other")
    assert ledger.steps("k1") == [(0, "other"), (1, "g1")]


def test_metrics_come_in_the_order_of_steps_and_replay_records_them_again(ledger: Ledger) -> None:
    ledger.commit_step("k1", 0, "g0")
    ledger.record_metrics("k1", 10, {"loss": 0.1})
    ledger.record_metrics("k1", 2, {"loss": math.pi})
    ledger.record_metrics("k1", 2, {"loss": math.pi})
    ledger.record_metrics("k2", 3, {"loss": 9.0})
    assert ledger.metrics("k1") == [{"step": 2, "loss": math.pi}, {"step": 10, "loss": 0.1}]

    ledger.record_metrics("k1", 0, {"loss": 5.0})
    assert ledger.step_groups("k1", 0) == "g0"
    ledger.commit_step("k1", 2, "g2")
    assert [row["step"] for row in ledger.metrics("k1")] == [0, 2, 10]


def test_the_latest_state_is_the_one_of_the_highest_step(ledger: Ledger) -> None:
    assert ledger.latest_state("k1") is None
    for step, digest in [(9, "s9"), (10, "s10"), (5, "s5"), (10, "s10")]:
        ledger.commit_state("k1", step, digest)
    ledger.commit_state("k2", 99, "other")

    assert ledger.states("k1") == [(5, "s5"), (9, "s9"), (10, "s10")]
    assert ledger.latest_state("k1") == (10, "s10")
    with pytest.raises(StoreError, match="step 9"):
        ledger.commit_state("k1", 9, "different")
    ledger.forget_state("k1", 10)
    assert ledger.latest_state("k1") == (9, "s9")


def test_a_stage_keeps_the_machines_that_made_what_is_kept_of_it(ledger: Ledger, path: Path) -> None:
    assert ledger.machines("k1") == ()
    assert ledger.begin_stage("k1", "one thread") == ("one thread",)
    assert ledger.begin_stage("k1", "two threads") == ("two threads",)  # nothing of the first try was kept
    ledger.record_metrics("k1", 0, {"loss/ce": 1.0})
    assert ledger.begin_stage("k1", "one thread") == ("one thread",)  # metrics are made again
    ledger.commit_step("k1", 0, "g0")
    assert ledger.begin_stage("k1", "two threads") == ("one thread", "two threads")
    assert ledger.begin_stage("k1", "one thread") == ("one thread", "two threads")
    ledger.commit_state("k2", 1, "s1")
    assert ledger.begin_stage("k2", "one thread") == ("one thread",)
    assert ledger.begin_stage("k2", "two threads") == ("one thread", "two threads")
    reader = Ledger(path, write=False)
    assert reader.machines("k2") == ("one thread", "two threads")
    reader.close()


def test_a_reader_can_not_write(ledger: Ledger, path: Path) -> None:
    reader = Ledger(path, write=False)
    with pytest.raises(StoreError, match="readonly"):
        reader.commit_step("k1", 0, "g0")
    assert ledger.step_groups("k1", 0) is None
    reader.close()


def test_an_unknown_version_is_refused_and_left_as_it_is(ledger: Ledger, path: Path) -> None:
    ledger.close()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE of_another_version (x)")
        other.execute("PRAGMA user_version = 99")
    for write in (True, False):
        with pytest.raises(StoreError, match="99"):
            Ledger(path, write=write)


def test_a_file_that_is_no_ledger_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be read as the header of one" * 10)
    with pytest.raises(StoreError, match="not a database"):
        Ledger(path, write=True)

    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE foreign_table (x)")
    with pytest.raises(StoreError, match="version 0"):
        Ledger(path, write=True)


def test_a_full_disk_is_out_of_space_and_loses_nothing(ledger: Ledger) -> None:
    pages = ledger._rows("PRAGMA page_count")[0][0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    ledger.commit_step("k1", 0, "g0")
    with pytest.raises(OutOfSpace):
        ledger.record_metrics("k1", 1, {f"metric/{i}": 0.1 for i in range(10_000)})

    assert ledger.step_groups("k1", 0) == "g0"
    ledger._db.execute("PRAGMA max_page_count = 100000")
    ledger.record_metrics("k1", 1, {"loss": 1.0})
    assert ledger.metrics("k1") == [{"step": 1, "loss": 1.0}]
