"""docs/your-own-data.md is true: its files and commands, in a folder outside of the package."""

import json
import os
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from reasonmill.cli import main
from reasonmill.recipe.load import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "your-own-data.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"In `(\S+)`:\n\n```(?:python|toml)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^    reasonmill (.+)$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, without_charts: None) -> Path:
    """A folder with all that the page makes, and a home in which its recipe has run."""
    folder = tmp_path_factory.mktemp("mine")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    (copy,) = re.findall(r'^python -c "(.+)"$', TEXT, re.MULTILINE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(copy, {})
        runpy.run_path("make_rows.py")
        told("run mine.toml")
    finally:
        os.chdir(before)
    return folder


def told(command: str) -> int:
    """The exit code of a command of the page."""
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_page_has_these_files_and_commands() -> None:
    assert list(FILES) == ["make_rows.py", "brief.py", "mine.toml"]
    assert [command.split()[0] for command in COMMANDS] == [
        *("data", "problems", "audit", "grade", "plan", "run", "eval", "chat"),
    ]


def test_the_recipe_trains_on_the_rows_and_compares(folder: Path) -> None:
    summary = json.loads((folder / "mill" / "runs" / "mine" / "summary.json").read_text())
    stages: dict[str, dict[str, Any]] = {stage["name"]: stage for stage in summary["stages"]}
    trained = stages["trained"]["metrics"]
    assert 0 < trained["reward/brief"] < 1
    assert trained["reward/mean"] == pytest.approx(
        trained["reward/accuracy"] + 0.2 * trained["reward/format"] + 0.1 * trained["reward/brief"]
    )
    before, after = (stages[name]["metrics"]["tasks"]["sums"] for name in ("before", "after"))
    assert before["problems"] == after["problems"] == 20
    assert before["ungraded"] == after["ungraded"] == 0
    assert before["pass@1"]["value"] > 0  # the model that is copied knows sums like these
    verdict = stages["verdict"]["metrics"]
    assert verdict["promoted"] in (True, False)
    assert (folder / "mill" / "runs" / "mine" / "model" / "model.safetensors").is_file()
    assert (folder / "mill" / "runs" / "mine" / "report.html").is_file()


def test_no_row_is_trained_on_and_measured_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    task = load_recipe(str(folder / "mine.toml")).catalogue.task("sums")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    by_split = {
        split: {problem.messages[-1].content for problem in task.problems(split, 0)} for split in ("train", "test")
    }
    assert not by_split["train"] & by_split["test"]
    assert by_split["train"] | by_split["test"] == {row["question"] for row in rows}


def test_a_changed_reward_trains_again_and_a_changed_row_does_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    def keys(place: Path) -> dict[str, Any]:
        nodes = load_recipe(str(place / "mine.toml")).nodes
        return {node.settings.name: {key: p.identity for key, p in node.plugins.items()} for node in nodes}

    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("mill"))
    assert keys(other) == keys(folder)
    (other / "brief.py").write_text(FILES["brief.py"].replace("most=60", "most=70"))
    assert {name for name, key in keys(other).items() if key != keys(folder)[name]} == {"trained"}
    lines = (other / "rows.jsonl").read_text().splitlines()
    (other / "rows.jsonl").write_text("\n".join([*lines[1:], lines[0].replace("start", "begin")]))
    assert {name for name, key in keys(other).items() if key != keys(folder)[name]} == {"before", "trained", "after"}


def test_the_commands_of_the_page_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "responses.jsonl").write_text('{"answer": "7", "response": "<think></think><answer>7</answer>"}\n')
    codes = {command: told(command) for command in COMMANDS if command.split()[0] in ("data", "problems", "grade")}
    assert set(codes.values()) == {0}
    assert "right" in capsys.readouterr().out
    assert told("audit sums --recipe mine.toml --problems 2") in (0, 11)
    assert "responses judged; 2 of 2 gold answers are right" in capsys.readouterr().out
