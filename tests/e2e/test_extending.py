"""docs/extending.md is true: its files, put where it says into a copy of the package, work without any other change."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reasonmill.recipe.code_digest import code_digest
from safetensors.torch import load_file

import reasonmill
from reasonmill.recipe.reference import shipped_bases

SOURCE = Path(reasonmill.__file__).parent
TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "extending.md").read_text(encoding="utf-8")
PLACED = re.compile(r"In `src/reasonmill/(\S+)`:\n\n```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the files of the page."""
    package = tmp_path_factory.mktemp("extended") / "reasonmill"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for place, code in PLACED.findall(PAGE):
        assert not (package / place).exists()
        (package / place).write_text(code, encoding="utf-8")
    return package


def python(copy: Path, *arguments: str) -> str:
    """What Python says where the copy is the package."""
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=copy.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_the_page_is_placed(copy: Path) -> None:
    assert [place for place, _ in PLACED.findall(PAGE)] == [
        "tasks/largest.py",
        "rewards/rules/brief.py",
        "stages/average.py",
    ]
    assert PAGE.count("```python") == 3


def test_the_task_keeps_what_every_task_promises(copy: Path) -> None:
    contract = str(TESTS / "contract" / "test_task.py")
    said = python(copy, "-m", "pytest", "-p", "no:cacheprovider", contract, "-k", "largest or two_splits")
    assert " passed" in said


def test_the_recipe_of_the_page_runs(copy: Path, tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "extended.toml").write_text(recipe)
    home = tmp_path / "home"
    python(copy, "-m", "reasonmill", "run", str(tmp_path / "extended.toml"), "--home", str(home))
    summary = json.loads((home / "runs" / "extended" / "summary.json").read_text())
    stages: dict[str, dict[str, Any]] = {stage["name"]: stage for stage in summary["stages"]}
    trained = stages["brief-zero"]["metrics"]
    assert 0 < trained["reward/brief"] < 1
    assert trained["reward/mean"] == pytest.approx(trained["reward/accuracy"] + 0.5 * trained["reward/brief"])
    assert stages["mean-eval"]["metrics"]["tasks"]["largest"]["problems"] == 20
    base = load_file(shipped_bases()["tiny-base"] / "model.safetensors")
    (zero,) = (home / "objects").rglob(f"{stages['brief-zero']['digest']}/model.safetensors")
    after, mean = load_file(zero), load_file(home / "runs" / "extended" / "model" / "model.safetensors")
    assert any(not after[name].equal(base[name]) for name in base)
    assert all(mean[name].allclose((base[name] + after[name]) / 2, atol=1e-6) for name in base)


def test_a_change_of_a_file_changes_the_keys_of_the_stages_that_use_it(copy: Path) -> None:
    before = digests(copy)
    changed = {}
    for place, code in PLACED.findall(PAGE):
        (copy / place).write_text(f"{code}\n# changed\n", encoding="utf-8")
        after = digests(copy)
        changed[place] = {stage for stage in before if after[stage] != before[stage]}
        (copy / place).write_text(code, encoding="utf-8")
    assert changed == {
        "tasks/largest.py": {"rl", "reward_model"},
        "rewards/rules/brief.py": {"rl"},
        "stages/average.py": {"average"},
    }


def digests(package: Path) -> dict[str, str]:
    """The code digests of some stage modules; to read all of them takes long."""
    paths = {stage: package / "stages" / f"{stage}.py" for stage in ("rl", "reward_model", "sft", "average")}
    return {stage: code_digest(f"reasonmill.stages.{stage}", path, package) for stage, path in paths.items()}
