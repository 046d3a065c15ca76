"""docs/extending.md is true: its files, in a folder outside of the package, work without any other change."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from forked import fork_server
from lab import FILES, PAGE, put_lab
from reasonmill.cli import main
from reasonmill.errors import RecipeError
from reasonmill.recipe.load import load_recipe
from reasonmill.recipe.reference import shipped_bases

ENTRY_POINTS = """
[reasonmill.tasks]
largest = my_lab.largest:Largest
[reasonmill.rewards]
brief = my_lab.brief:Brief
[reasonmill.environments]
calculator = my_lab.calculator:Calculator
[reasonmill.stages]
average = my_lab.average
"""
# Reports have no charts there: to draw them takes longer than all else (as `without_charts` of conftest.py).
IN_SITE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from reasonmill.cli import main
from reasonmill.mill import report
report._chart = lambda *_: None
main()
"""
# The same recipe where the names are offered by an installed package.
OFFERED = """
name = "offered"
[tasks.largest-again]
use = "largest"
environment = "calculator"
[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base-weak"
steps = 1
problems_per_step = 2
group_size = 2
tasks = { largest = 0.5, largest-again = 0.5 }
rewards = { accuracy = 1.0, brief = 0.5 }
schedule = { peak = 1e-4 }
sampling = { max_tokens = 8 }
[[stage]]
name = "mean"
kind = "average"
models = ["tiny-base-weak", "zero"]
"""


@pytest.fixture(scope="module")
def lab(without_charts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, and a home in which its recipe has run."""
    folder = tmp_path_factory.mktemp("lab")
    recipe = put_lab(folder)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--home", str(folder / "home")])
    assert ended.value.code == 0
    return folder


def test_every_file_of_the_page_is_placed() -> None:
    assert list(FILES) == ["largest.py", "brief.py", "calculator.py", "average.py", "lab.toml"]
    assert PAGE.read_text(encoding="utf-8").count("```python") == 4


def test_the_recipe_of_the_page_runs(lab: Path) -> None:
    summary = json.loads((lab / "home" / "runs" / "lab" / "summary.json").read_text())
    stages: dict[str, dict[str, Any]] = {stage["name"]: stage for stage in summary["stages"]}
    trained = stages["brief-zero"]["metrics"]
    assert 0 < trained["reward/brief"] < 1
    assert trained["reward/mean"] == pytest.approx(trained["reward/accuracy"] + 0.5 * trained["reward/brief"])
    assert stages["mean-eval"]["metrics"]["tasks"]["largest-of-two"]["problems"] == 20
    base = load_file(shipped_bases()["tiny-base"] / "model.safetensors")
    after = load_file(lab / "home" / "objects" / stages["brief-zero"]["digest"] / "model.safetensors")
    mean = load_file(lab / "home" / "runs" / "lab" / "model" / "model.safetensors")
    assert any(not after[name].equal(base[name]) for name in base)
    assert all(mean[name].allclose((base[name] + after[name]) / 2, atol=1e-6) for name in base)


def test_the_commands_of_the_page_know_its_task(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["problems", "largest", "--recipe", str(lab / "lab.toml"), "--num", "2", "--json"])
    assert ended.value.code == 0
    problems = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [max(map(int, re.findall(r"\d+", p["messages"][0]["content"]))) for p in problems] == [
        int(problem["answer"]) for problem in problems
    ]


@pytest.mark.parametrize(
    ("name", "line", "changed"),
    [
        ("largest.py", "        return tuple(rng.sample(range(1, 100), self._count))", {"brief-zero", "mean-eval"}),
        ("brief.py", "        self._words = words", {"brief-zero"}),
        ("calculator.py", "        self.max_turns = calls + 1", {"brief-zero"}),
        ("average.py", "    context.progress.end(metrics)", {"mean"}),
    ],
)
def test_a_changed_line_re_keys_exactly_the_stages_that_name_it(
    tmp_path: Path, name: str, line: str, changed: set[str]
) -> None:
    recipe = put_lab(tmp_path)
    before = covered(recipe)
    assert FILES[name].count(f"{line}\n") == 1
    (tmp_path / name).write_text(FILES[name].replace(line, f"{line}  # changed"), encoding="utf-8")
    after = covered(recipe)
    assert {stage for stage in before if after[stage] != before[stage]} == changed


def covered(recipe: Path) -> dict[str, Any]:
    """What the key of each stage covers of code."""
    nodes = load_recipe(str(recipe)).nodes
    return {node.settings.name: (node.kind.code, {k: p.identity for k, p in node.plugins.items()}) for node in nodes}


def test_a_lab_elsewhere_is_the_same_lab(lab: Path, tmp_path: Path) -> None:
    assert covered(put_lab(tmp_path / "elsewhere")) == covered(lab / "lab.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("./largest.py:Largest", "./smallest.py:Largest", r"tasks.largest: missing module.*\.toml:4"),
        ("./largest.py:Largest", "./largest.py:Smallest", r"has no 'Smallest'.*\.toml:4"),
        ("./largest.py:Largest", "./brief.py:Brief", r"'Brief' is no task: it has no domain.*problem.*\.toml:4"),
        ("./largest.py:Largest", "./largest.py:in_any_order", r"numbers.*missing.*\.toml:3"),
        ("count = 2", "count = 2.5", r"count: Input should be a valid integer.*\.toml:9"),
        ("count = 2", "cuont = 2", r"unknown key 'cuont'.*\.toml:9.*did you mean 'count'"),
        ("./average.py", "./averages.py", r"stages.average: missing module.*\.toml:20"),
        ('environment = "calculator"', 'environment = "calculater"', r"unknown environment 'calculater'.*\.toml:5"),
        ("brief = 0.5", "breif = 0.5", r"unknown reward 'breif'.*did you mean 'brief'.*\.toml:30"),
    ],
)
def test_what_is_wrong_is_refused_with_file_and_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    recipe = put_lab(tmp_path)
    recipe.write_text(FILES["lab.toml"].replace(old, new, 1))
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(recipe))
    assert re.search(said, str(refused.value), re.DOTALL), str(refused.value)


def test_an_installed_package_offers_its_own_by_entry_points(tmp_path: Path) -> None:
    site, package = tmp_path / "site", tmp_path / "site" / "my_lab"
    put_lab(package)
    (package / "__init__.py").touch()
    info = site / "my_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "offered.toml").write_text(OFFERED)
    said = fork_server().run(IN_SITE, site, "run", tmp_path / "offered.toml", "--home", tmp_path / "home")
    assert said.returncode == 0, said.stderr
    summary = json.loads((tmp_path / "home" / "runs" / "offered" / "summary.json").read_text())
    assert [stage["kind"] for stage in summary["stages"]] == ["rl", "average"]
    assert "reward/brief" in summary["stages"][0]["metrics"]
