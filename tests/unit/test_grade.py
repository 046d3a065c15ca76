"""`reasonmill grade`: a verdict for each row of a file, in order, with the reason."""

import gzip
import json
import os
from pathlib import Path

import pytest

from reasonmill import grade
from reasonmill.cli import main
from reasonmill.plugins.catalogue import installed

ROWS = [
    {"answer": "42", "response": r"\boxed{42}"},
    {"answer": 42, "response": r"\boxed{41}"},
    {"answer": "42", "response": r"\boxed{\int_0^{42} dx}"},
    {"answer": "408", "response": r"\boxed{17 \cdot 24}", "problem": r"What is $17 \cdot 24$?"},
    {"answer": "42"},
    ["no object"],
    {"answer": ["1/3", "0.3"], "response": [{"role": "assistant", "content": r"\boxed{0.3}"}]},
]
VERDICTS = ["right", "wrong", "could not tell", "wrong", "could not tell", "could not tell", "right"]


def graded(task: str, file: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    with pytest.raises(SystemExit) as ended:
        main(["grade", task, str(file), "--json", *options])
    assert ended.value.code == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def written(file: Path, rows: list[object]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def test_each_row_gets_its_verdict_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = graded("math", written(tmp_path / "rows.jsonl", [*ROWS]), capsys)
    assert [row["verdict"] for row in found] == VERDICTS
    assert [row["row"] for row in found] == list(range(1, len(ROWS) + 1))
    assert all(row["reason"] for row in found if row["verdict"] == "could not tell")
    assert found[0]["parts"] == {"answered": 1.0}
    assert "response" in str(found[4]["reason"])


def test_lines_that_are_no_json_and_byte_order_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'\xef\xbb\xbf{"answer": "1", "response": "1"}\n\n{"answer": \n'))
    assert [row["verdict"] for row in graded("math", file, capsys)] == ["right", "could not tell"]


def test_options_of_a_row_reach_the_grader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"answer": "B", "response": "<answer>fire</answer>", "options": ["ice", "fire"]}]
    assert graded("choice", written(tmp_path / "rows.jsonl", [*rows]), capsys)[0]["verdict"] == "right"


def test_a_problem_is_named_by_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grade, "_LOOKED_THROUGH", 5)
    problem = installed().task("arithmetic").problem("test", 3, 1)
    rows = [
        {"id": problem.id, "response": f"<answer>{problem.answer}</answer>"},
        {"id": problem.id, "response": "<answer>-1</answer>"},
        {"id": "none", "response": "<answer>1</answer>"},
    ]
    found = graded("arithmetic", written(tmp_path / "rows.jsonl", [*rows]), capsys, "--seed", "3")
    assert [row["verdict"] for row in found] == ["right", "wrong", "could not tell"]


def test_the_table_counts_the_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["grade", "math", str(written(tmp_path / "rows.jsonl", [*ROWS]))])
    captured = capsys.readouterr()
    assert "2 right, 2 wrong, 3 could not tell" in captured.err + captured.out


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["grade", "math", str(tmp_path / "none.jsonl")])
    assert ended.value.code == 2
    assert "none.jsonl" in capsys.readouterr().err


HANGS = """
import os, time
from reasonmill.types import Grade, Message, Problem

class Hangs:
    domain = "reasoning"

    def problem(self, split, seed, index):
        return Problem("hangs", (Message("user", "?"),), "1")

    def problems(self, split, seed):
        return iter((self.problem(split, seed, 0),))

    def grade(self, problem, completions):
        text = completions[0].text
        if text == "hang":
            time.sleep(1000)
        if text == "exit":
            os._exit(3)
        right = float(text == problem.answer)
        return [Grade(right, {"accuracy": right, "other_process": float(os.getpid() != %d)})]
"""


def test_graders_are_isolated_and_limited_as_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hangs.py").write_text(HANGS % os.getpid())
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[tasks.mine]\nuse = "./hangs.py:Hangs"\nlimits = { seconds = 0.5 }\n'
        '[[stage]]\nname = "before"\nkind = "evaluate"\nfrom = "tiny-base"\ntasks = { mine = 1 }\n'
    )
    rows = [{"answer": "7", "response": response} for response in ("7", "hang", "exit", "8")]
    file = written(tmp_path / "rows.jsonl", [*rows])
    found = graded("mine", file, capsys, "--recipe", str(tmp_path / "own.toml"))
    assert [row["verdict"] for row in found] == ["right", "could not tell", "could not tell", "wrong"]
    assert "took longer than 0.5 s" in str(found[1]["reason"])
    assert "exit code 3" in str(found[2]["reason"])
    assert found[0]["parts"] == {"other_process": 1.0}
