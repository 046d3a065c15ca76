"""The recipes of SmolLM2 in a small form: every stage runs, with a shipped base in the model's place."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from reasonmill.cli import main
from reasonmill.recipe.load import shipped_recipes

pytestmark = pytest.mark.check

FAMILIES = ("countdown", "sums", "products", "divisors", "letters", "backwards", "legs", "equations")
GSM8K = [{"question": f"Ann has {n} apples and buys 3.", "answer": f"{n}+3={n + 3}\n#### {n + 3}"} for n in range(40)]
PROMPTS = [f"How do I kill process {n}?" for n in range(40)]


@pytest.fixture(autouse=True)
def packages() -> None:
    pytest.importorskip("reasoning_gym")


def small(name: str, folder: Path) -> list[str]:
    """The path of a shipped recipe as a file of its own, on a shipped base, and `--set`s that make it small.

    The base knows no sums, so that wrong answers are kept, too, and judged by something that differs.
    """
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    text = re.sub(r"^package = .*\nversion = .*\n(?:\w+ = [\d.e]+\n)*", 'path = "tiny-base"\n', text, flags=re.M)
    text = re.sub(r'^system = """.*?"""$', 'system = "Think."', text, flags=re.M | re.S)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    for split in ("train", "test"):
        rows = "".join(json.dumps(row) + "\n" for row in GSM8K[split == "test" :: 2])
        (folder / f"gsm8k_{split}.jsonl").write_text(rows, encoding="utf-8")
    asked = [f"{prompt},{'unsafe' if place % 2 else 'safe'}" for place, prompt in enumerate(PROMPTS)]
    (folder / "xstest_prompts.csv").write_text("\n".join(["prompt,label", *asked]), encoding="utf-8")
    (folder / "simple_safety_tests.csv").write_text("\n".join(["prompts_final", *PROMPTS]), encoding="utf-8")
    return [str(path), "--home", str(folder / "home")]


def run(arguments: list[str], *settings: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments, *(word for setting in settings for word in ("--set", setting))])
    assert ended.value.code == 0
    recipe = Path(arguments[0]).stem
    summary = json.loads((Path(arguments[2]) / "runs" / recipe / "summary.json").read_text(encoding="utf-8"))
    return {stage["name"]: stage["metrics"] for stage in summary["stages"]}


def test_every_stage_of_r1_smollm2_runs(tmp_path: Path, without_charts: None) -> None:
    arguments = small("r1-smollm2", tmp_path)
    written = {stage["name"]: stage for stage in tomllib.loads(Path(arguments[0]).read_text())["stage"]}
    settings = []
    for name, stage in written.items():
        sampled = {"evaluate": 2, "collect": 4}.get(stage["kind"])
        if sampled:
            settings += [f"{name}.tasks={_toml(dict.fromkeys(stage['tasks'], sampled))}", f"{name}.samples=2"]
        elif stage["kind"] in ("rl", "distill"):
            settings += [f"{name}.steps=1", f"{name}.problems_per_step=4", f"{name}.group_size=2"]
        elif stage["kind"] == "curate":
            settings += [f"{name}.keep={{ correct = false, well_formed = false }}"]
            settings += [f"{name}.decontaminate={_toml(dict.fromkeys(stage['decontaminate'], 2))}"]
        if "sampling" in stage:
            settings += [f"{name}.sampling.max_tokens=12"]
    settings += ["general-rollouts.tasks={ everyday = 40, harmful = 20 }", "general-rollouts.samples=4"]
    settings += [f"{name}.held_out=0.4" for name in ("helpfulness-rm", "safety-rm")]
    settings += ["small.layers=2"]  # of four
    settings += [f"data.worked-{family}.problems=2" for family in ("gsm8k", *FAMILIES)]
    figures = run(arguments, *settings)
    assert figures.keys() == written.keys()
    assert figures["dev1"]["conversations"] == 18
    assert figures["gate"]["promoted"] is False


def test_the_laptop_s_share_runs(tmp_path: Path, without_charts: None) -> None:
    arguments = small("r1-smollm2-laptop", tmp_path)
    tasks = [f"{name}.tasks.sums=4" for name in ("before", "told", "after")]
    small_rl = ["trained.steps=1", "trained.problems_per_step=4", "trained.group_size=2"]
    figures = run(arguments, *tasks, *small_rl, "data.worked.problems=20")
    assert figures["taught"]["conversations"] == 20
    assert figures["verdict"]["promoted"] is False


def _toml(table: dict[str, int]) -> str:
    return f"{{ {', '.join(f'{name} = {value}' for name, value in table.items())} }}"
