"""The short form of `benchmarks/hacking_alarm.py`: a reward with a hole, and an honest one."""

import sys
from pathlib import Path

import pytest

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.mill.pipeline import run_recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.check
@pytest.mark.usefixtures("without_charts")
@pytest.mark.parametrize(("name", "is_raised"), [("any-number", True), ("sloppy", False)])
def test_a_hole_raises_the_alarm_and_an_honest_reward_does_not(
    name: str, is_raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "hacking_alarm", raising=False)
    import hacking_alarm

    plant = next(p for p in (*hacking_alarm.PLANTS, *hacking_alarm.HONEST) if p.name == name)
    recipe = tmp_path / "planted.toml"
    recipe.write_text(hacking_alarm.recipe_of(plant, steps=2, problems=8, group_size=4, seed=0))
    with Home.open(tmp_path / "home") as home:
        run_recipe(
            load_recipe(str(recipe)), home, KeptProgress(), until=None, backend=BACKEND, stop_requested=lambda: False
        )
    seen = hacking_alarm.seen_in(tmp_path / "home", plant, 0)
    assert len(seen.shares) == 2
    assert seen.is_in_time
    assert (seen.alarm is not None) == is_raised
