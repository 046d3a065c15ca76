"""The table of r1-smollm2 over seeds, from files as its sittings write them."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("seeds", "r1_table"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("r1_table")


def a_sitting(out: Path, seed: int, values: Any, *bars: tuple[str, str, str, bool | None]) -> Path:
    out.mkdir(exist_ok=True)
    named = [dict(zip(("part", "what", "bar", "met"), bar, strict=True)) for bar in bars]
    (out / f"r1-smollm2-seed-{seed}.json").write_text(json.dumps({"bars": named, "metrics": {}}))
    (out / f"r1-smollm2-seed-{seed}.values.json").write_text(json.dumps(values))
    return out


def of_family(*accuracies: float, seed: int, name: str = "sums") -> dict[str, list[float]]:
    return {f"{name}/{seed}-{place}/{seed}-{place}": [value] for place, value in enumerate(accuracies)}


def test_levels_and_changes_are_over_seeds_and_the_better_prompt_is_that_of_the_seed(
    table: Any, tmp_path: Path
) -> None:
    outs = []
    for seed, (base, told, r1) in enumerate(
        [((0, 0, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1)), ((0,) * 4, (1, 1, 0, 0), (1,) * 4)]
    ):
        models = {
            name: {"sums": of_family(*values, seed=seed), "legs": of_family(*values[:2], seed=seed, name="legs")}
            for name, values in (("base", base), ("told", told), ("r1", r1))
        }
        outs.append(a_sitting(tmp_path / str(seed), seed, models))
    by_seed = table.values_of(outs)
    levels = table.levels_of(by_seed)
    assert levels["base"]["sums"].seeds == (0.25, 0.0)
    assert levels["r1"]["all"].by_problem.value == 1.0
    assert levels["base"]["all"].seeds == pytest.approx((1 / 6, 0.0))  # of four sums and two of legs
    changes = table.changes_of(by_seed)
    assert list(changes) == ["r1 over best prompt"]  # dev1 and dev2 are not there
    # base in the first seed, told in the second.
    assert changes["r1 over best prompt"]["sums"].seeds == (0.75, 0.5)
    found = changes["r1 over best prompt"]["sums"].by_seed
    assert found.low < 0 < found.value < 1 < found.high  # two seeds: one degree of freedom


def test_each_seed_has_a_verdict_on_each_bar_and_one_miss_counts(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = [("chat", "rules", "a loss is excluded", True), ("chat", "refusals", "a loss is excluded", False)]
    told = ("gain", "sums, r1 over told", "", None)
    values = {"base": {"sums": of_family(0, 1, seed=0)}}
    first = a_sitting(tmp_path / "a", 0, values, told, ("gain", "families", "five", True), *chat)
    second = a_sitting(tmp_path / "b", 2, values, ("gain", "other families", "five", True))
    shuffled = {"bars": [{"part": "shuffled", "what": "dev2", "bar": "refused", "met": True}]}
    (second / "r1-smollm2-shuffled-seed-2.json").write_text(json.dumps(shuffled))
    outside = {"verdicts": [{"bar": "prompts have the same tokens", "met": True, "figures": ""}]}
    (second / "r1-smollm2-seed-2-outside-r1.json").write_text(json.dumps(outside))
    (second / "r1-smollm2-seed-2-summary.json").write_text("{}")  # a sitting copies it beside them
    assert list(table.bar_lines(table.bars_of([first, second]))) == [
        "seed 0     seed 2     bar",
        "met        met        gain: families: five",
        "met        –          chat: rules: a loss is excluded",
        "MISSED     –          chat: refusals: a loss is excluded",
        "–          met        outside-r1: prompts have the same tokens",
        "–          met        shuffled: dev2: refused",
    ]
    monkeypatch.setattr(sys, "argv", ["r1_table.py", str(first), str(second)])
    assert table.main() == 1
    assert "MISSED" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["r1_table.py", str(second)])
    with pytest.raises(SystemExit, match="two of them"):
        table.main()
    with pytest.raises(SystemExit, match="twice"):
        table.values_of([first, a_sitting(tmp_path / "c", 0, values)])
