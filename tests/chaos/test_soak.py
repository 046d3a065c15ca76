"""The soak in its short form, and the judgement of the long one: what rises is seen, and what only wavers is not."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.kill_matrix import NAMES
from chaos.soak import KINDS, append_sample, held, held_by_all, read_samples, soak, tree
from chaos.soak_verdict import Sample, Verdict, plot, slope
from reasonmill.randomness import generator

NUM_SHORT = 24  # runs of the short form, which is too short to tell what memory does

SAMPLE = Sample(1, 0, 0.0, "grown", "kill term", 0, 500.0, 7, 1000.0, 24)


@pytest.mark.check
def test_runs_with_random_faults_end_alike_and_leave_no_file_open(tmp_path: Path) -> None:
    with closing(soak(60.0, tmp_path / "soak.csv")) as running:
        found = list(itertools.islice(running, NUM_SHORT))
    assert [sample for sample in found if sample.differences] == []
    assert {sample.recipe for sample in found} == set(NAMES)
    assert {fault for sample in found for fault in sample.faults.split()} == set(KINDS)
    third = NUM_SHORT // 3
    for quantity in ("worker_files", "tree_files"):
        held_after_each = [getattr(sample, quantity) for sample in found]
        assert max(held_after_each[-third:]) <= max(held_after_each[:third])


def samples(worker_mb: Callable[[Sample], float], sessions: int = 1) -> list[Sample]:
    """Two hours, a run every half minute."""
    per_session = 240 // sessions
    plain = [replace(SAMPLE, session=1 + run // per_session, run=run, minutes=run / 2) for run in range(240)]
    return [replace(sample, worker_mb=worker_mb(sample)) for sample in plain]


def waver(sample: Sample) -> float:
    return 500.0 + generator("waver", sample.run).gauss(0, 3.0)


def test_what_wavers_is_flat() -> None:
    verdict = Verdict(samples(waver))
    assert verdict.holds, verdict.lines()


def test_what_fills_at_the_start_and_then_wavers_is_flat() -> None:
    assert Verdict(samples(lambda sample: waver(sample) - 200.0 * (sample.minutes < 10))).holds


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_leak_is_seen_also_where_each_session_starts_anew(sessions: int) -> None:
    """15 MB an hour are less than what the samples waver by from one to the next."""
    per_session = 120.0 / sessions
    leaking = samples(lambda sample: waver(sample) + 0.25 * (sample.minutes % per_session), sessions)
    rise = slope(leaking, "worker_mb")
    assert rise.low < 15.0 < rise.high
    assert rise.low > 5.0
    assert not Verdict(leaking).holds


def test_a_soak_that_is_too_short_to_tell_is_missed() -> None:
    assert not Verdict(samples(waver)[:6]).holds
    assert not Verdict([SAMPLE]).holds


def test_one_difference_and_one_file_too_many_are_missed() -> None:
    flat = samples(waver)
    assert not Verdict([replace(flat[0], differences=1), *flat[1:]]).holds
    assert not Verdict([replace(sample, worker_files=7 + sample.run // 60) for sample in flat]).holds


def test_the_file_is_gone_on_with_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "soak.csv"
    assert read_samples(path) == []
    written = samples(waver)[:3]
    for sample in written:
        append_sample(path, sample)
    assert read_samples(path) == written
    plot(written, tmp_path / "images" / "soak.svg")
    assert "<svg" in (tmp_path / "images" / "soak.svg").read_text()


def test_every_process_below_one_counts() -> None:
    sleeper = subprocess.Popen(["sh", "-c", "sleep 60 & echo started; wait"], stdout=subprocess.PIPE, process_group=0)
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        shell, sleep = tree(sleeper.pid)
        assert shell == sleeper.pid
        assert sleep in tree(os.getpid())
        # The shell speaks before its child has become the other program, whose memory then changes.
        before = -1.0
        while before != (before := held(shell)[0] + held(sleep)[0]):
            time.sleep(0.1)
        megabytes, files = held_by_all([shell, sleep])
        assert megabytes == pytest.approx(held(shell)[0] + held(sleep)[0])
        assert files >= 4
    finally:
        os.killpg(sleeper.pid, signal.SIGKILL)
        sleeper.communicate()
