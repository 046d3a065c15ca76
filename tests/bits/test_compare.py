"""The comparison of bits is red where a room that no key covers changes what a stage makes, and green where not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPARE = Path(__file__).with_name("compare.py")
SEED = "seed=self._recipe.seed,"

pytestmark = pytest.mark.check


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose one commit has the present sources."""
    sources = ROOT / "src"
    shutil.copytree(sources, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    author = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false")
    for command in (("init", "--quiet"), ("add", "--all"), (*author, "commit", "--quiet", "--message", "all")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_another_seed_under_the_same_keys_is_noticed(checkout: Path) -> None:
    pipeline = checkout / "src" / "reasonmill" / "mill" / "pipeline.py"
    text = pipeline.read_text(encoding="utf-8")
    assert text.count(SEED) == 1
    pipeline.write_text(text.replace(SEED, "seed=self._recipe.seed + 1,"), encoding="utf-8")
    compared = subprocess.run(
        [sys.executable, str(COMPARE), "--root", str(checkout)], capture_output=True, text=True, check=False
    )
    assert compared.returncode == 1, compared.stderr
    assert "zero: DIFFERENT bits than in" in compared.stdout
    assert "raise the version of the room that was changed" in compared.stdout
