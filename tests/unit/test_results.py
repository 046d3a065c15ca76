"""The tables of results that the terminal shows."""

import io
from typing import Any

import pytest
from rich.console import Console

from reasonmill.mill.results import Results, print_table, read_results, read_stages
from summaries import before_and_after, evaluating, evaluation, figure, stage, summary


def terminal_table(results: Results, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(console, results)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_the_same_table() -> None:
    lines = [" ".join(line.split()) for line in terminal_table(read_results(before_and_after()), 80).splitlines()]
    assert lines == [
        "base zero",
        "countdown-3",
        "pass@1 13.5% 11.4-15.6 63.1% 61.0-65.2",
        "format 71.0% 70.0-72.0 -",
        "thinking tokens 11.2 8.1-14.3 118 115-122",
        "after each figure: its 95% interval",
    ]


def test_a_narrow_terminal_shows_intervals_below() -> None:
    lines = [" ".join(line.split()) for line in terminal_table(read_results(before_and_after()), 45).splitlines()]
    assert lines[2:4] == ["pass@1 13.5% 63.1%", "11.4-15.6 61.0-65.2"]


@pytest.fixture
def r1_tiny() -> Results:
    """The table of stages as r1-tiny prints it: ten models, and figures as wide as they come."""
    some = figure(0.725, 0.699, 0.752)
    tokens = figure(83.6, 78.9, 88.3)

    def measured(model: str) -> dict[str, Any]:
        metrics = evaluation(some)
        figures = metrics["tasks"]["countdown-3"]
        if model.startswith("small") or model == "tiny-base-weak":
            return metrics
        metrics["tasks"] |= {"countdown-4": figures, "arithmetic": figures}
        metrics["measures"] = {
            name: {"label": label, **some}
            for name, label in (("general", "general answers"), ("unsafe", "unsafe"), ("refused", "over-refusal"))
        }
        metrics["pooled"] = {"reasoning": {"language": some, "format": some, "thinking_tokens": tokens}}
        return metrics if model == "dev3" else {**metrics, "win_rate": some}

    made = [("zero", "rl"), ("dev1", "sft"), ("dev2", "rl"), ("dev3", "sft"), ("r1", "rl"), ("small-sft", "sft"),
            ("small-distill", "distill"), ("small-rl", "rl")]  # fmt: skip
    models = ["dev3", "tiny-base", "zero", "dev1", "dev2", "r1", "tiny-base-weak", "small-rl", "small-sft",
              "small-distill"]  # fmt: skip
    stages = [*(stage(name, kind) for name, kind in made),
              *(evaluating(f"{model}-eval", model, measured(model)) for model in models)]  # fmt: skip
    return read_stages(summary(*stages))


def test_the_table_of_r1_tiny_fits_into_80_columns(r1_tiny: Results) -> None:
    lines = terminal_table(r1_tiny, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["tiny-base", "zero", "dev1", "dev2", "dev3", "r1"]
    rows = [" ".join(line.split()) for line in lines]
    assert rows[rows.index("language " + " ".join(["72.5%"] * 6)) + 1] == "consistency " + " ".join(["69.9-75.2"] * 6)
    assert rows[-5:] == [
        "",
        "tiny-base-weak small-sft small-distill small-rl",
        "countdown-3 72.5% 72.5% 72.5% 72.5%",
        "69.9-75.2 69.9-75.2 69.9-75.2 69.9-75.2",
        "after each figure: its 95% interval",
    ]


def test_a_wide_console_has_one_line_a_row(r1_tiny: Results) -> None:
    lines = terminal_table(r1_tiny, 250).splitlines()
    assert len(lines) == 1 + 10 + 1
    assert lines[0].split()[-4:] == ["tiny-base-weak", "small-sft", "small-distill", "small-rl"]
    assert lines[1].count("72.5% 69.9-75.2") == 10


def test_a_console_that_is_too_narrow_for_one_model_still_shows_all_figures(r1_tiny: Results) -> None:
    text = terminal_table(r1_tiny, 24)
    assert text.count("83.6") == 6
    assert text.count("78.9-88.3") == 6


def test_the_terminal_shows_no_table_without_evaluation() -> None:
    assert terminal_table(read_stages(summary(stage("zero", "rl"))), 80) == ""


def test_the_table_of_stages_has_a_row_for_each_reasoning_task_and_for_what_was_measured_of_the_rest() -> None:
    base = evaluation(figure(0.1, 0.05, 0.15))
    base["pooled"] = {"reasoning": {"format": figure(0.7, 0.6, 0.8), "thinking_tokens": figure(12.0, 11.0, 13.0)}}
    r1 = evaluation(figure(0.7, 0.65, 0.75))
    r1["tasks"]["harmful-requests"] = {**r1["tasks"]["countdown-3"], "domain": "safety"}
    r1["measures"] = {"unsafe": {"label": "unsafe", **figure(0.2, 0.1, 0.3)}}
    r1["win_rate"] = figure(0.6, 0.5, 0.7)
    data = summary(evaluating("a", "base", base), evaluating("b", "r1", r1))
    lines = [" ".join(line.split()) for line in terminal_table(read_stages(data), 80).splitlines()]
    assert lines[:-1] == [
        "base r1",
        "countdown-3 10.0% 5.0-15.0 70.0% 65.0-75.0",
        "format 70.0% 60.0-80.0 -",
        "helpfulness (win rate) - 60.0% 50.0-70.0",
        "unsafe - 20.0% 10.0-30.0",
        "thinking tokens 12.0 11.0-13.0 -",
    ]


def test_columns_follow_the_models_and_not_their_evaluations() -> None:
    some = figure(0.5, 0.4, 0.6)
    data = summary(
        stage("zero", "rl"),
        stage("r1", "rl"),
        *(evaluating(f"{model}-eval", model, evaluation(some)) for model in ("r1", "base", "zero")),
    )
    assert terminal_table(read_stages(data), 80).splitlines()[0].split() == ["base", "zero", "r1"]
