"""Learning nothing is no success: it is said in the first step, and again at the end, with what is behind it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from kept_progress import KeptProgress
from reasonmill.mill.findings import FINDINGS, Watched, findings
from reasonmill.recipe.reference import shipped_bases

BASE = shipped_bases()["tiny-base-weak"]


def step(**changes: float) -> dict[str, float]:
    """Metrics of a step in which something was learned."""
    named = {name.replace("__", "/"): value for name, value in changes.items()}
    return {
        "groups/flat": 0.5,
        "rollouts/ungraded": 0.0,
        "length/truncated": 0.1,
        "reward/accuracy": 0.4,
        "optim/grad_norm": 0.3,
        "optim/skipped": 0.0,
        **named,
    }


def watched(*steps: dict[str, float]) -> list[str]:
    progress = KeptProgress()
    watching = Watched(progress, "zero")
    watching.begin("zero", len(steps), "steps")
    for done, metrics in enumerate(steps, start=1):
        watching.advance(done, metrics)
    return progress.notes


FLAT = step(groups__flat=1.0, reward__accuracy=0.0, optim__grad_norm=0.0)


def test_what_learns_says_nothing() -> None:
    assert watched(*[step()] * 9) == []
    assert findings([step()] * 9, {}, None, None) == []


def test_flat_groups_are_said_in_the_first_step_and_after_twice_as_many_each_time() -> None:
    notes = watched(*[FLAT] * 9)
    assert [note.split(":")[1].split(", ")[1] for note in notes] == [
        "a step",
        "2 steps in a row",
        "4 steps in a row",
        "8 steps in a row",
    ]
    assert all("no answer is right" in note for note in notes)
    # Later on, one flat step is no sign of anything.
    assert watched(*[step()] * 5, *[FLAT] * 3) == []
    assert len(watched(*[step()] * 5, *[FLAT] * 4)) == 1


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"length__truncated": 1.0}, "raise sampling.max_tokens"),
        ({"groups__ungraded": 1.0}, "look at the grader"),
        ({"reward__accuracy": 1.0}, "too easy"),
        ({"reward__accuracy": 0.0}, "too hard"),
        ({}, "too much alike"),
    ],
)
def test_a_finding_names_what_is_likely_behind_it(changes: dict[str, float], cause: str) -> None:
    rows = [step(groups__flat=1.0, **changes)] * 3
    found = findings(rows, {}, None, None)
    assert "in all 3 steps all groups were flat" in found[0]
    assert cause in found[0]


def test_where_rewards_are_not_compared_flat_groups_and_cut_answers_are_no_sign() -> None:
    row = step(groups__flat=1.0, length__truncated=1.0)
    del row["rollouts/ungraded"]
    assert findings([row], {}, None, None) == []


def test_a_sign_counts_at_the_end_where_half_of_the_steps_had_it() -> None:
    cut = step(length__truncated=1.0)
    (found,) = findings([cut, step(), cut], {}, None, None)
    assert found.startswith("in 2 of 3 steps all answers were cut off")
    assert findings([cut, step(), step()], {}, None, None) == []


def test_an_evaluation_of_cut_answers_and_a_stage_s_own_findings_are_kept() -> None:
    metrics: dict[str, Any] = {
        "tasks": {"sums": {"truncated": {"value": 1.0}}, "words": {"truncated": {"value": 0.9}}},
        FINDINGS: ["all labels are 1"],
    }
    assert findings([], metrics, None, None) == [
        "all labels are 1",
        "all answers of sums were cut off; likely cause: sampling.max_tokens is too small",
    ]


def test_a_model_that_has_not_changed_is_found_and_one_that_was_handed_on_is_not(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "made")
    (found,) = findings([step()], {}, tmp_path / "made", BASE)
    assert found.startswith("no weight of the model has changed; likely cause: schedule.peak is too small")
    (found,) = findings([step(optim__skipped=1.0)], {}, tmp_path / "made", BASE)
    assert "all updates were skipped" in found
    assert findings([], {}, tmp_path / "made", BASE) == []
