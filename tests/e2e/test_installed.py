"""The wheel by itself, without a checkout: it runs the quickstart's recipe and a lab, and never writes where it lies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import put_lab

ROOT = Path(__file__).parents[2]
# The quickstart's recipe with less of everything.
QUICK = [
    *("--set", "base-eval.tasks={countdown-3=4}"),
    *("--set", "zero-eval.tasks={countdown-3=4}"),
    *("--set", "zero.steps=1"),
    *("--set", "zero.problems_per_step=4"),
    *("--set", "zero.sampling.max_tokens=32"),
]

pytestmark = pytest.mark.check


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, which nobody may write to."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed") / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(wheels)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    for path in [site, *site.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return site


def reasonmill(site: Path, folder: Path, *arguments: str) -> str:
    """What the installed command says, run in a folder of its own."""
    program = (
        "import sys, reasonmill; from reasonmill.cli import main; "
        "assert reasonmill.__file__.startswith(sys.argv[1]), reasonmill.__file__; main(sys.argv[2:])"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(site), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_the_quickstarts_recipe(site: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*")}
    reasonmill(site, tmp_path, "run", "r1-zero-tiny", "--home", "home", *QUICK)
    summary = json.loads((tmp_path / "home" / "runs" / "r1-zero-tiny" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base-eval", "zero", "zero-eval"]
    assert "r1-zero-tiny" in reasonmill(site, tmp_path, "status", "--home", "home")
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*")} == before


def test_it_runs_users_own_code(site: Path, tmp_path: Path) -> None:
    put_lab(tmp_path)
    reasonmill(site, tmp_path, "run", "lab.toml", "--home", "home")
    summary = json.loads((tmp_path / "home" / "runs" / "lab" / "summary.json").read_text())
    assert [stage["kind"] for stage in summary["stages"]] == ["rl", "average", "evaluate"]
