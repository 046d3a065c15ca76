"""Learning rates by hand."""

from typing import Any

import pytest
from pydantic import ValidationError

from reasonmill.algo.schedules import Schedule


def test_a_constant_schedule_is_its_peak() -> None:
    assert [Schedule(peak=0.3).at(step, 4) for step in range(4)] == [0.3] * 4


def test_warm_up_rises_in_equal_parts_and_never_starts_at_zero() -> None:
    schedule = Schedule(peak=0.4, warmup_steps=4)
    assert [schedule.at(step, 6) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_a_cosine_falls_from_the_peak_to_its_share_at_the_last_step() -> None:
    schedule = Schedule(peak=2.0, warmup_steps=1, decay="cosine", final_share=0.1)
    # After the warm-up four steps at 0, 1/3, 2/3 and all of the way: cosines 1, 0.75, 0.25, 0 between 0.2 and 2.
    assert [schedule.at(step, 5) for step in range(5)] == pytest.approx([2.0, 2.0, 1.55, 0.65, 0.2])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_cosine_of_few_steps_stays_between_its_ends(steps: int) -> None:
    schedule = Schedule(peak=1.0, warmup_steps=2, decay="cosine", final_share=0.0)
    assert [schedule.at(step, steps) for step in range(steps)] == [0.5, 1.0, 1.0][:steps]


@pytest.mark.parametrize(
    "settings", [{"peak": 0}, {"peak": 1, "final_share": 2}, {"peak": 1, "warmup": 3}, {"peak": 1, "final_share": 0.5}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Schedule(**settings)
