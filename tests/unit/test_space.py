"""Space on the disk: what a stage is expected to write, and what a run does when there is no room."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kept_progress import KeptProgress
from reasonmill.errors import Interrupted, OutOfSpace
from reasonmill.mill.model_size import ModelSize
from reasonmill.mill.space import RoomWait, Writes, expected_writes, require_room
from reasonmill.mill.workload import LIKELY, Upstream, workload
from reasonmill.stages import collect, rl, sft
from reasonmill.store.full_disk import waiting_when_full
from reasonmill.store.home import Home

MILLION = ModelSize(1e6, 1e6)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


def rl_settings(**changes: Any) -> rl.Settings:
    return rl.Settings.model_validate(
        {
            "name": "zero",
            "kind": "rl",
            "from": "base",
            "tasks": {"countdown": 1.0},
            "steps": 100,
            "problems_per_step": 10,
            "group_size": 4,
            "sampling": {"max_tokens": 400},
            "schedule": {"peak": 1e-3},
            **changes,
        }
    )


def of_rl(settings: rl.Settings, **more: Any) -> Writes:
    return expected_writes(settings, workload(settings, Upstream(LIKELY)), MILLION, weight_bytes=4, **more)


def test_what_reinforcement_learning_writes() -> None:
    writes = of_rl(rl_settings())
    # A state is a weight and two moments in fp32, and three of them can lie there; a model is written twice.
    assert (writes.states, writes.artifact) == (3 * 12e6, 8e6)
    # 4,000 rollouts of 100 tokens (a quarter of the limit) at 9 bytes, and a file of 10 kB for each step.
    assert writes.groups == 4000 * 100 * 9 + 100 * 10e3
    assert not writes.unknown
    assert of_rl(rl_settings(), resumes_at=75).groups == pytest.approx(writes.groups / 4)


def test_a_model_is_written_in_the_type_that_it_was_read_in() -> None:
    settings = rl_settings()
    work = workload(settings, Upstream(LIKELY))
    writes = expected_writes(settings, work, replace(MILLION, kept_bytes=2), weight_bytes=4)
    assert (writes.states, writes.artifact) == (3 * 12e6, 4e6)


def test_a_reference_is_a_part_of_the_state_and_short_stages_keep_fewer() -> None:
    assert of_rl(rl_settings(loss={"kl_coefficient": 0.1})).states == 3 * 16e6
    assert of_rl(rl_settings(steps=20, state_every=10)).states == 2 * 12e6  # one of them is the last, which stays
    cosine = {"peak": 1e-3, "decay": "cosine"}
    assert of_rl(rl_settings(steps=20, state_every=10, schedule=cosine)).states == 12e6
    assert of_rl(rl_settings(steps=5, state_every=10)).states == 12e6  # where it is asked to stop


def test_collections_are_written_in_commits_and_as_a_whole() -> None:
    settings = collect.Settings.model_validate(
        {"name": "c", "kind": "collect", "from": "base", "tasks": {"countdown": 50}, "samples": 4}
    )
    writes = expected_writes(settings, workload(settings, Upstream(LIKELY)), MILLION, weight_bytes=4)
    assert writes.states == 0
    assert writes.groups == writes.artifact == 50 * 4 * 64 * 9 + 10e3


def test_what_is_not_known_is_said_to_be() -> None:
    settings = sft.Settings.model_validate(
        {"name": "s", "kind": "sft", "from": "base", "data": ["d"], "schedule": {"peak": 1e-3}}
    )
    assert expected_writes(settings, None, MILLION, weight_bytes=4) == Writes(unknown=True)
    assert of_rl(rl_settings()).total > 0
    assert expected_writes(rl_settings(), workload(rl_settings(), Upstream(LIKELY)), None, weight_bytes=4).unknown


def test_a_stage_that_does_not_fit_is_refused_with_figures(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Home, "free_bytes", lambda home: 500e6)
    require_room(home, "zero", Writes(states=100e6, groups=200e6))
    with pytest.raises(OutOfSpace) as caught:
        require_room(home, "zero", Writes(states=100e6, groups=201e6))
    assert caught.value.what == (
        "only 500 MB are left on the disk, and stage 'zero' needs about 501 MB: "
        "100 MB for states, 201 MB for groups, 200 MB as a reserve"
    )
    assert "free 1 MB" in caught.value.fix
    assert caught.value.where == str(home.path)


# A disk that fills during a run


def waiting(
    home: Home, notes: KeptProgress, sleep: Callable[[float], None], stop: Callable[[], bool] = lambda: False
) -> Any:
    return waiting_when_full(RoomWait(home, notes, stop, sleep))


def no_sleep(seconds: float) -> None: ...


def full_until(attempts: int) -> Callable[[Path], None]:
    """Writes an object on a disk that has room at the attempt of this number."""
    left = iter(range(attempts))

    def write(directory: Path) -> None:
        (directory / "half").write_text("half")
        if next(left, None) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write


def test_an_object_waits_for_room_and_nothing_is_lost(home: Home) -> None:
    notes, slept = KeptProgress(), []
    with waiting(home, notes, slept.append):
        digest = home.objects.put(full_until(3))
    assert home.objects.digests() == [digest]
    assert list((home.path / "tmp").iterdir()) == []
    paused, resumed = notes.notes
    assert paused.startswith("paused: no space is left on the disk")
    assert str(home.path) in paused
    assert "Free some space" in paused
    assert "the run resumes" in resumed
    assert sum(slept) == pytest.approx(9)  # three seconds before each new attempt


def test_the_ledger_waits_for_room(home: Home) -> None:
    database = home.ledger._db
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    rows = range(200)

    def free_some(seconds: float) -> None:
        database.execute("PRAGMA max_page_count = 100000")

    notes = KeptProgress()
    with waiting(home, notes, free_some):
        for row in rows:
            home.ledger.record_metrics("k", row, {"loss/ce": float(row)})
    assert [entry["loss/ce"] for entry in home.ledger.metrics("k")] == list(rows)
    assert [note.split(":")[0] for note in notes.notes] == ["paused", "there is room on the disk again"]


def test_a_pause_ends_when_the_user_asks_to_stop(home: Home) -> None:
    looks = iter([False, False, True])
    with (
        waiting(home, KeptProgress(), no_sleep, stop=lambda: next(looks)),
        pytest.raises(Interrupted, match="while it waited for space"),
    ):
        home.objects.put(full_until(99))
    assert home.objects.digests() == []


def test_outside_of_a_run_nobody_waits(home: Home) -> None:
    with waiting(home, KeptProgress(), no_sleep):
        home.objects.put(full_until(1))
    with pytest.raises(OutOfSpace):
        home.objects.put(full_until(1))
