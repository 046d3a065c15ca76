"""kill -9 at random times, again and again: the run ends in the same bits. And the proof that this test can fail."""

import dataclasses
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.kill_matrix import Matrix, Place, Report, nurseries, run_uninterrupted, summary
from chaos.nursery import Nursery
from chaos.outcome import Committed, Outcome, differences

SHORT = {"runs": 15, "kills": 30}
LONG = {"runs": 200, "kills": 400}
# Where runs outrun their kills, there are more of them, but not for ever.
MOST_RUNS = 2
# Until the end of its only stage, and with a state that was saved before step 2 when it dies after step 3.
CONTROL = ("reasoned", "--until", "zero")
DIES_AFTER_STEPS = 4
# What each sabotage shows in at the least.
SABOTAGES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "random state": ("stage zero: step 4 has other rollouts", "stage zero: last learner state differs"),
    "replay": ("stage zero: last learner state differs",),
    "optimizer state": ("stage zero: last learner state differs",),
    "step": ("stage zero: last learner state differs",),
}
# What changes every run, also one that is not cut off. The others do nothing before something is resumed.
SEEN_EVERYWHERE = "random state"


@pytest.fixture(scope="module")
def started(chaos_jobs: int) -> Iterator[list[Nursery]]:
    with nurseries(chaos_jobs) as nursery_of_each_job:
        yield nursery_of_each_job


def enough(reports: Iterable[Report], wanted: dict[str, int]) -> Iterator[Report]:
    """The reports, until there are as many runs and kills as wanted."""
    kills = 0
    for runs, report in enumerate(reports, start=1):
        yield report
        kills += len(report.kills)
        if runs >= wanted["runs"] and kills >= wanted["kills"]:
            return


@pytest.mark.check
def test_killed_runs_end_like_runs_that_never_were(tmp_path: Path, started: list[Nursery], chaos_long: bool) -> None:
    wanted = LONG if chaos_long else SHORT
    matrix = Matrix(tmp_path, started)
    reports = list(enough(matrix.runs(range(MOST_RUNS * wanted["runs"])), wanted))
    print(*matrix.machines(), *reports, summary(reports), sep="\n")
    assert not [report for report in reports if report.differences], "\n".join(
        str(report) for report in reports if report.differences
    )
    assert sum(len(report.kills) for report in reports) >= wanted["kills"]
    assert {report.recipe for report in reports} == {"grown", "reasoned", "taught"}


def cut_off(nursery: Nursery, directory: Path, sabotage: str | None) -> tuple[Outcome, Place]:
    """What an uninterrupted run ends in, and a place where a run like it was killed."""
    reference = run_uninterrupted(nursery, Place(directory / "reference"), *CONTROL, sabotage=sabotage)
    place = Place(directory / "killed")
    dying = place.order(*CONTROL, sabotage=sabotage, dies_after=DIES_AFTER_STEPS)
    assert nursery.run(dying) == -signal.SIGKILL
    return reference.outcome, place


@pytest.fixture(scope="module")
def right(started: list[Nursery], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Place]:
    """Without sabotage, and with each that does nothing before something is resumed."""
    return cut_off(started[0], tmp_path_factory.mktemp("right"), None)


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_what_exact_resume_stands_on_is_missed_when_it_is_gone(
    tmp_path: Path, started: list[Nursery], right: tuple[Outcome, Place], sabotage: str | None
) -> None:
    """Compared with an uninterrupted run under the same sabotage: it is the resume that shows it."""
    if sabotage == SEEN_EVERYWHERE:
        expected, place = cut_off(started[0], tmp_path, sabotage)
    else:
        expected, place = right[0], Place(tmp_path / "killed")
        shutil.copytree(right[1].directory, place.directory)
    assert started[0].run(place.order(*CONTROL, sabotage=sabotage)) == 0, place.said()
    found = differences(expected, place.outcome())
    assert set(SABOTAGES[sabotage]) <= set(found)
    assert bool(found) == (sabotage is not None), found


@pytest.mark.check
@pytest.mark.parametrize("sabotage", [name for name in SABOTAGES if name is not None])
def test_only_one_sabotage_shows_in_a_run_that_is_not_cut_off(
    tmp_path: Path, started: list[Nursery], right: tuple[Outcome, Place], sabotage: str
) -> None:
    reference = run_uninterrupted(started[0], Place(tmp_path), *CONTROL, sabotage=sabotage)
    assert bool(differences(right[0], reference.outcome)) == (sabotage == SEEN_EVERYWHERE)


# The comparison


ENTRY = {"loss": 1.0}
OUTCOME = Outcome(
    artifacts={"zero": ("a", {"length": 3})},
    states={"zero": "s"},
    steps={"zero": [(0, "g0", ENTRY), (1, "g1", ENTRY)]},
    left_over_states={"zero": [(2, "t")]},
    machines={"zero": ["here"]},
    model="m",
    objects=frozenset("ab"),
)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"artifacts": {"zero": ("b", {"length": 3})}}, "stage zero: artifact differs"),
        ({"artifacts": {"zero": ("a", {"length": 4})}}, "stage zero: artifact differs"),
        ({"artifacts": {}}, "stage zero: artifact differs"),
        ({"states": {"zero": "t"}}, "stage zero: last learner state differs"),
        ({"states": {}}, "stage zero: last learner state differs"),
        ({"machines": {"zero": ["here", "there"]}}, "stage zero: machines differs"),
        ({"model": "n"}, "the model in the run's directory differs"),
        ({"steps": {"zero": [(0, "g0", ENTRY), (1, "g2", ENTRY)]}}, "stage zero: step 1 has other rollouts"),
        ({"steps": {"zero": [(0, "g0", {}), (1, "g1", ENTRY)]}}, "stage zero: step 0 has other metrics"),
        ({"steps": {"zero": [(0, "g0", ENTRY)]}}, "the ledger has the steps [0] instead of 0 to 1"),
        ({"steps": {"zero": [(0, "g0", ENTRY), (2, "g1", ENTRY)]}}, "the ledger has the steps [0, 2]"),
        ({"steps": {"zero": [(0, "g0", ENTRY), (1, "g1", ENTRY), (1, "g1", ENTRY)]}}, "the steps [0, 1, 1]"),
        ({"left_over_states": {"zero": [(1, "s"), (2, "t")]}}, "stage zero: states are left over"),
        ({"left_over_states": {"zero": [(1, "t")]}}, "stage zero: states are left over"),
        ({"left_over_states": {"zero": [(2, "s")]}}, "stage zero: states are left over"),
        ({"left_over_states": {"zero": []}}, "stage zero: states are left over"),
        ({"objects": frozenset("a")}, "1 objects are missing"),
    ],
)
def test_every_difference_is_named(changed: dict[str, Any], line: str) -> None:
    assert differences(OUTCOME, OUTCOME) == []
    (found,) = differences(OUTCOME, dataclasses.replace(OUTCOME, **changed))
    assert line in found


def test_what_was_accepted_and_is_gone_is_named() -> None:
    before = Committed(frozenset("k"), {"k": "a"}, {("k", 0): "g0", ("k", 1): "g1"})
    assert before.missing_from(before) == []
    later = Committed(frozenset("k"), {}, {("k", 0): "g0", ("k", 1): "other"})
    assert before.missing_from(later) == ["artifact of k", "groups of step 1 of k"]
