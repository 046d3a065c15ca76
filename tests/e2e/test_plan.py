"""A small recipe is planned, run and planned again: what it took is held against what was planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reasonmill.cli import main
from reasonmill.store.home import Home
from reasonmill.store.plans import PLANS, read_plans

RECIPE = """
name = "small"
price_per_hour = 36

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base"
tasks = { arithmetic = 1.0 }
steps = 1
problems_per_step = 2
group_size = 4
sampling = { max_tokens = 16 }
tokens_per_batch = 64
schedule = { peak = 1e-4 }
"""


@pytest.fixture
def recipe(tmp_path: Path, without_charts: None) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def test_what_a_run_took_is_shown_by_the_next_plan(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"

    def plan(*more: object) -> tuple[dict[str, Any], str]:
        code, out, err = call(capsys, "plan", recipe, "--home", home, "--device", "cpu", "--json", *more)
        assert code == 0
        return json.loads(out), err

    told, err = plan()
    assert "zero  measures sampling" in err
    (stage,) = told["stages"]
    likely, most = stage["likely"], stage["at_most"]
    assert (stage["would_be"], likely["unknown"], likely["fix"]) == ("to run", [], "")
    # Two prompts are read, eight responses of 16 tokens at most drawn; texts are trained on, and nothing is scored.
    prompts, drawn = 2 * 11, 8 * 16
    assert drawn < most["tokens"] < 2 * (prompts + drawn) + 8 * 11 + 60
    assert 0 < likely["seconds"] <= most["seconds"]
    assert likely["money"] == pytest.approx(likely["seconds"] / 100)
    assert likely["memory_bytes"] > 50e6
    assert likely["disk_bytes"] > 12e6  # a state of a million parameters
    assert "none has been run yet" in told["past_plans"]

    again, err = plan("--price", 72)
    assert "measures" not in err
    assert again["total"]["likely"]["money"] == pytest.approx(2 * told["total"]["likely"]["money"])
    assert call(capsys, "verify", "--home", home)[1].startswith("0 objects, 0 problems")

    assert call(capsys, "run", recipe, "--home", home, "--device", "cpu")[0] == 0
    (kept,) = read_plans(home).plans
    assert kept.seconds == pytest.approx(likely["seconds"])
    assert kept.took_s is not None
    assert kept.took_s > 0
    assert kept.used_bytes is None or kept.used_bytes > 50e6
    with Home.open(home, write=False) as opened:
        (record,) = opened.ledger.stages()
    assert kept.took_s == record.seconds

    code, out, _ = call(capsys, "plan", recipe, "--home", home, "--device", "cpu")
    assert code == 0
    assert "cached" in out
    assert "past plans: of 1 planned stage" in out or "none has been run yet" in out  # if it took less than a second


def test_a_plan_beside_a_run_is_made_and_not_kept(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    with Home.open(home):
        code, out, err = call(capsys, "plan", recipe, "--home", home, "--device", "cpu")
        assert code == 0
    assert "zero" in out
    assert "the plan is not kept: another run writes to this home" in err
    assert not (home / PLANS).exists()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--set", "zero.stepz=3"], "did you mean 'steps'?"),
        (["--set", "price_per_hour=-1"], "greater than or equal to 0"),
        (["--until", "zeor"], "did you mean 'zero'?"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], shown: str
) -> None:
    code, out, err = call(capsys, "plan", recipe, "--home", tmp_path / "home", *arguments)
    assert (code, out) == (2, "")
    assert shown in err
    assert not (tmp_path / "home").exists()
