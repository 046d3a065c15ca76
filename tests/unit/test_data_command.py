"""`reasonmill data`: what it says of a file is what a recipe would make of it."""

import json
from pathlib import Path

import pytest

from reasonmill.cli import main

ROWS = [
    {"question": "What is 7 + 5?", "answer": "It is 12.\n#### 12", "id": 1},
    {"question": "What is 7 + 5?", "answer": "#### 12", "id": 2},
    {"question": "What is 8 + 5?", "answer": "thirteen", "id": 3},
]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", *arguments])
    out, err = capsys.readouterr()
    code = stop.value.code
    assert isinstance(code, int)
    return code, out, err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


def test_every_row_is_shown_or_named_with_the_reason(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(file), "--json")
    shown = json.loads(out)
    assert code == 2
    assert shown["columns"] == {"prompt": "question", "answer": "answer"}
    assert (shown["makes"], shown["answer"], shown["other_columns"]) == ("problems", "hashes", ["id"])
    (row,) = shown["rows"]
    assert (row["place"], row["prompt"], row["answer"]) == (f"{file}:1", "What is 7 + 5?", "12")
    assert shown["not_used"] == [{"place": f"{file}:2", "why": f"it is the same as {file}:1"}]
    assert shown["not_understood"] == [{"place": f"{file}:3", "column": "answer", "why": "nothing stands behind ####"}]


def test_the_table_says_the_same(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(file))
    assert code == 2
    said = " ".join(out.split())
    assert "the answer, behind ####" in said
    assert "id kept for graders and rewards" in said
    assert "the same as another row, dropped: 1" in said
    assert f"{file}:3, column 'answer': nothing stands behind ####" in said


def test_columns_can_be_named_and_a_table_of_a_recipe_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--column", "prompt=question", "--column", "answer=answer", "--answer", "column", "--json"]
    code, out, _ = run(capsys, str(file), *named)
    assert (code, json.loads(out)["counts"]["contradictory"]) == (0, 2)
    recipe = file.with_name("own.toml")
    stage = '[[stage]]\nname = "x"\nkind = "evaluate"\nfrom = "tiny-base-weak"\ntasks = { arithmetic = 1 }\n'
    recipe.write_text(f'name = "own"\n[data.mine]\ntest = "rows.jsonl"\nbad_rows = "drop"\n{stage}')
    code, out, _ = run(capsys, "mine", "--recipe", str(recipe), "--json")
    assert json.loads(out)["counts"]["splits"] == {"test": 1}
    code, _, err = run(capsys, "mine", "--recipe", str(recipe), "--column", "prompt=question")
    assert (code, "the recipe's table says what the columns are" in err) == (2, True)
    code, _, err = run(capsys, str(file), "--column", "question")
    assert (code, "does not say what a column is" in err) == (2, True)
