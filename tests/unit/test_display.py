import io
import sys
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from reasonmill.mill.display import (
    BLOCKS,
    PACE_WINDOW,
    Display,
    LineDisplay,
    LiveDisplay,
    format_duration,
    make_progress,
    output_console,
    sparkline,
)

RL_METRICS = {
    "reward/mean": 0.614,
    "reward/accuracy": 0.333,
    "reward/format": 0.975,
    "length/response": 74.23,
    "length/thinking": 61.0,
    "groups/flat": 0.1875,
    "groups/ungraded": 0.0,
    "speed/tokens_per_s": 9812.4,
    "speed/step_s": 2.5,
    "policy/entropy": 0.83,
    "policy/kl": 0.0012,
    "optim/grad_norm": 0.31,
    "optim/learning_rate": 1.5e-4,
}


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"}, color_system=None)


@pytest.fixture
def live(terminal: Console, clock: FakeClock) -> Iterator[LiveDisplay]:
    with LiveDisplay(terminal, clock) as display:
        yield display


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def panel_lines(display: LiveDisplay, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(display.panel())
    return written(console).splitlines()


def run_failing_stage(display: Display, clock: FakeClock) -> None:
    with display:
        display.begin("zero", 40, "steps")
        clock.now += 61
        raise ValueError("broken")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-3, "0s"), (59.4, "59s"), (59.6, "1m00s"), (72, "1m12s"), (3599.7, "1h00m"), (11100, "3h05m"),
     (187200, "2d04h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_sparkline_spans_minimum_to_maximum() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 40) == BLOCKS
    assert sparkline([5.0, 5.0], 40) == "▁▁"
    assert sparkline([], 40) == ""


def test_sparkline_averages_long_series_over_equal_stretches() -> None:
    assert sparkline([0, 0, 2, 4, 6, 8], 3) == "▁▄█"  # means 0, 3, 7: the middle is 3/7 of the way, block 3 of 0..7


def test_sparkline_skips_values_that_are_not_finite() -> None:
    assert sparkline([0.0, float("nan"), float("inf"), 7.0], 40) == "▁█"


def test_a_line_tells_count_metrics_speed_and_time_left(pipe: Console, clock: FakeClock) -> None:
    display = LineDisplay(pipe, clock)
    display.begin("zero", 40, "steps")
    clock.now += 30
    display.advance(10, {"reward/mean": 0.5})
    clock.now += 5
    display.advance(12, RL_METRICS)  # 2 steps in 5 s: the other 28 take 70 s
    assert written(pipe).splitlines() == [
        "zero  40 steps",
        "zero  10/40  reward 0.50",
        "zero  12/40  reward 0.61  accuracy 0.33  length 74.2  flat 0.19  9,812 tok/s  1m10s left",
    ]


def test_metrics_that_a_stage_does_not_report_are_left_out(pipe: Console, clock: FakeClock) -> None:
    display = LineDisplay(pipe, clock)
    display.begin("base", 2000, "steps")
    display.advance(1000, {"loss/ce": 2.3456, "area/unknown": 1.0})
    assert written(pipe).splitlines()[-1] == "base  1,000/2,000  loss 2.346"


def test_ungraded_rollouts_show_only_where_there_are_some(pipe: Console, clock: FakeClock) -> None:
    display = LineDisplay(pipe, clock)
    display.begin("zero", 4, "steps")
    display.advance(1, {"reward/mean": 0.5, "groups/ungraded": 0.0})
    clock.now += 2
    display.advance(2, {"reward/mean": 0.5, "groups/ungraded": 0.02})
    assert written(pipe).splitlines()[1:] == [
        "zero  1/4  reward 0.50",
        "zero  2/4  reward 0.50  ungraded 0.02  4s left",
    ]


def test_time_left_follows_the_recent_steps_only(pipe: Console, clock: FakeClock) -> None:
    display = LineDisplay(pipe, clock)
    display.begin("zero", 100, "steps")
    for step in range(1, 21):
        clock.now += 60
        display.advance(step, {})
    for step in range(21, 22 + PACE_WINDOW):
        clock.now += 2
        display.advance(step, {})
    assert step == 31
    assert written(pipe).splitlines()[-1] == "zero  31/100  2m18s left"  # 69 steps of 2 s


def test_lines_are_at_most_one_a_second_and_always_one_for_the_last(pipe: Console, clock: FakeClock) -> None:
    display = LineDisplay(pipe, clock)
    display.begin("zero", 6, "steps")
    for step in range(1, 7):
        clock.now += 0.4
        display.advance(step, {"reward/mean": step / 10})
    lines = [
        "zero  6 steps",
        "zero  1/6  reward 0.10",
        "zero  4/6  reward 0.40  1s left",  # the first line after 1.0 s; 2 steps of 0.4 s
        "zero  6/6  reward 0.60",
    ]
    assert written(pipe).splitlines() == lines
    display.end({})
    assert written(pipe).splitlines() == [*lines, "zero  done in 2s"]


def test_a_stage_that_ends_early_still_prints_its_last_advance(pipe: Console, clock: FakeClock) -> None:
    display = LineDisplay(pipe, clock)
    display.begin("zero", 9, "steps")
    display.advance(1, {})
    clock.now += 0.5
    display.advance(2, {"reward/mean": 0.7})
    display.end({})
    assert written(pipe).splitlines()[2:] == ["zero  2/9  reward 0.70  4s left", "zero  done in 0s"]


def test_a_failing_stage_is_reported_as_stopped(pipe: Console, clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="broken"):
        run_failing_stage(LineDisplay(pipe, clock), clock)
    assert written(pipe).splitlines()[-1] == "zero  stopped after 1m01s"


def test_notes_are_printed_as_they_are(pipe: Console, clock: FakeClock) -> None:
    note = "[red]3 groups[/red] were :warning: flat " + "x" * 100
    LineDisplay(pipe, clock).note(note)
    assert written(pipe) == note + "\n"


def test_the_display_suits_the_console(pipe: Console, terminal: Console) -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_progress(terminal), LiveDisplay)
    assert isinstance(make_progress(pipe), LineDisplay)
    assert isinstance(make_progress(dumb), LineDisplay)


def test_a_row_in_a_pipe_is_one_line_whatever_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    output_console().print("x" * 500)
    assert pipe.getvalue() == "x" * 500 + "\n"
    monkeypatch.setattr(pipe, "isatty", lambda: True)
    assert output_console().width == 80


def test_the_panel_fits_80_columns_and_shows_all_readings(live: LiveDisplay, clock: FakeClock) -> None:
    live.begin("zero", 40, "steps")
    live.advance(10, {"reward/mean": 0.2, "length/response": 30.0})
    clock.now += 5
    live.advance(12, RL_METRICS)
    clock.now += 10
    lines = panel_lines(live)
    page = " ".join(" ".join(lines).split())
    assert {cell_len(line) for line in lines} == {80}
    assert "12/40 steps" in page
    assert "15s 1m00s left" in page  # 70 s after the last step, which was 10 s ago
    assert "reward 0.61 ▁█" in page
    assert "length 74.2 ▁█" in page
    for reading in (
        "accuracy 0.33", "format 0.97", "thinking 61.0", "flat 0.19", "entropy 0.83", "kl 0.0012", "gradient 0.31",
        "lr 0.00015", "2.50 s/step", "9,812 tok/s",
    ):  # fmt: skip
        assert reading in page
    assert "loss" not in page
    assert "ungraded" not in page


def test_the_panel_of_a_stage_without_metrics_is_its_bar(live: LiveDisplay) -> None:
    live.begin("eval-zero", 500, "problems")
    lines = panel_lines(live, width=60)
    assert len(lines) == 3
    assert "0/500 problems" in lines[1]
    assert "left" not in lines[1]


def test_a_finished_stage_leaves_one_line(live: LiveDisplay, terminal: Console, clock: FakeClock) -> None:
    live.begin("zero", 40, "steps")
    live.note("a note")
    clock.now += 100
    live.advance(40, {"reward/mean": 0.9})
    live.end({"reward/mean": 0.95, "tasks": {"not": "a number"}})
    assert written(terminal).splitlines()[-1].endswith("zero  40/40  reward 0.95  done in 1m40s")
    assert any(line.endswith("a note") for line in written(terminal).splitlines())


def test_the_cursor_comes_back_when_a_stage_fails(terminal: Console, clock: FakeClock) -> None:
    hide, show = "\x1b[?25l", "\x1b[?25h"
    with pytest.raises(ValueError, match="broken"):
        run_failing_stage(LiveDisplay(terminal, clock), clock)
    assert written(terminal).rindex(show) > written(terminal).rindex(hide)
    assert written(terminal).splitlines()[-1].endswith("zero  0/40  stopped after 1m01s")
