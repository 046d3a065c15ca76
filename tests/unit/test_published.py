"""Published sets: their rows, in the shapes that they are published in, and the prompts that their scores are of."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from reasonmill.data.files import BadRow
from reasonmill.data.hub import HubRows
from reasonmill.errors import RecipeError
from reasonmill.published import sets
from reasonmill.published.rows import problem_of
from reasonmill.recipe.reference import shipped_bases
from reasonmill.recipe.suite import Asked, put_to, read_suite, shipped_suites
from reasonmill.types import Completion, Problem

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
CASES = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
FUNCTIONAL = [{"input": "[1, 2]", "output": "3", "testtype": "functional"}]


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


GPQA = {
    "Question": "Which?",
    "Correct Answer": "this one\n",
    "Incorrect Answer 1": "a",
    "Incorrect Answer 2": "b",
    "Incorrect Answer 3": "c",
    "Subdomain": "",
}
LIVE = {
    "question_title": "Sum",
    "question_content": "Add {starter} numbers.",
    "starter_code": "",
    "public_test_cases": json.dumps(CASES),
    "private_test_cases": packed(json.dumps(CASES)),
    "metadata": "{}",
}
# The set, a row, what its prompt ends and starts with, the answer, and what the grader needs.
ROWS: list[tuple[str, dict[str, Any], str, str, str, dict[str, Any]]] = [
    ("gsm8k", {"question": "How many?", "answer": "9 + 9\n#### 1,018"}, "Q: How many?\n", "step by step.", "1018", {}),
    ("math-500", {"problem": "{x} $x$?", "answer": "\\frac12", "level": 2}, "{x} $x$?\n", BOXED, "\\frac12", {}),
    ("aime", {"ID": "2024-I-1", "Problem": "m+n?", "Answer": 25}, "m+n?\n", BOXED, "25", {}),
    ("aime", {"problem": "m+n?", "answer": "025"}, "m+n?\n", BOXED, "25", {}),
    (
        "mmlu",
        {"question": "Which?", "subject": "law", "choices": ["p", "q {A}", "r", "s"], "answer": 1},
        "Answer the following multiple choice question. The last line",
        "Which?\n\nA) p\nB) q {A}\nC) r\nD) s",
        "B",
        {"choices": ["p", "q {A}", "r", "s"]},
    ),
    (
        "mmlu",
        {"Question": "Which?", "A": "p", "B": "q", "C": "r", "D": "s", "Answer": "D", "Subject": "law"},
        "Answer the following",
        "\nD) s",
        "D",
        {"choices": ["p", "q", "r", "s"]},
    ),
    (
        "humaneval",
        {"task_id": "0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1", "test": "t"},
        "Read the following function signature",
        "for this function.\ndef f():\n",
        "    return 1",
        {"prompt": "def f():\n", "test": "t", "entry_point": "f"},
    ),
    (
        "mbpp",
        {"task_id": 1, "text": "Add two.", "code": "def f(): 1", "test_list": ["assert f(1)", "assert f(2)"]},
        "You are an expert Python programmer, and here is your task: Add two. Your code",
        "tests:\n\nassert f(1)\nassert f(2)",
        "def f(): 1",
        {"test_list": ["assert f(1)", "assert f(2)"]},
    ),
    (
        "mbpp",
        {"prompt": "Add two.", "code": "def f(): 1", "test_list": ["assert f(1)"], "test_imports": ["import math"]},
        "You are an expert",
        "assert f(1)",
        "def f(): 1",
        {"test_list": ["assert f(1)"], "test_imports": ["import math"]},
    ),
    (
        "livecodebench",
        LIVE,
        "### Question:\nAdd {starter} numbers.\n\n### Format: Read the inputs from stdin",
        "```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n",
        "",
        {"tests": [*CASES, *CASES]},
    ),
    (
        "livecodebench",
        LIVE
        | {"starter_code": "class S:\n    def add(self):", "metadata": '{"func_name": "add"}'}
        | {"public_test_cases": FUNCTIONAL, "private_test_cases": packed(json.dumps(FUNCTIONAL))},
        "### Question:\nAdd {starter} numbers.\n\n### Format: You will use the following starter code",
        "```python\nclass S:\n    def add(self):\n```\n\n### Answer: (use the provided format with backticks)\n\n",
        "",
        {"tests": [*FUNCTIONAL, *FUNCTIONAL], "fn_name": "add"},
    ),
    (
        "ifeval",
        {
            "key": 1000,
            "prompt": "Write {it}.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{"num_words": None}],
        },
        "Write {it}.",
        "Write {it}.",
        "",
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    ),
]


@pytest.mark.parametrize(("name", "row", "start", "end", "answer", "meta"), ROWS)
def test_rows_as_they_are_published(
    name: str, row: dict[str, Any], start: str, end: str, answer: str, meta: dict[str, Any]
) -> None:
    problem = problem_of(name, row)
    asked = problem.messages[-1].content
    assert asked.startswith(start)
    assert asked.endswith(end)
    assert problem.answer == answer
    assert problem.meta == {**meta, "language": "en"}
    assert [message.role for message in problem.messages] == ["system"] * (name == "livecodebench") + ["user"]


def test_the_options_of_gpqa_stand_in_an_order_of_their_own() -> None:
    letters = set()
    for number in range(40):
        problem = problem_of("gpqa", GPQA | {"Question": f"Which of {number}?"})
        choices = problem.meta["choices"]
        assert sorted(choices) == ["a", "b", "c", "this one"]
        assert choices["ABCD".index(problem.answer)] == "this one"
        listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
        assert problem.messages[0].content.endswith(listed)
        letters.add(problem.answer)
    assert letters == set("ABCD")
    assert problem_of("gpqa", GPQA) == problem_of("gpqa", dict(reversed(GPQA.items())))


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("REASONMILL_PLANTED", "1")


@pytest.mark.parametrize(
    ("name", "row", "column", "what"),
    [
        ("gsm8k", {"question": "How many?"}, "answer", "it has no 'answer'"),
        ("gsm8k", {"question": 3, "answer": "3"}, "question", "a text is needed"),
        ("aime", {"problem": "m+n?", "answer": "1000"}, "answer", "from 0 to 999"),
        ("aime", {"problem": "m+n?", "answer": "\\frac12"}, "answer", "from 0 to 999"),
        ("mmlu", {"question": "Which?", "choices": ["a", "b"], "answer": 1}, "choices", "four options"),
        ("mmlu", {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 4}, "answer", "none of the options"),
        ("mbpp", {"text": "Add", "test_list": "assert f()"}, "test_list", "list of assertions"),
        ("livecodebench", LIVE | {"private_test_cases": packed(Planted())}, "private_test_cases", "not for a text"),
        ("livecodebench", LIVE | {"private_test_cases": "AAAA"}, "private_test_cases", "can't be read"),
        ("livecodebench", LIVE | {"public_test_cases": "[1"}, "public_test_cases", "no JSON"),
        ("ifeval", {"prompt": "Write", "instruction_id_list": "a", "kwargs": []}, "instruction_id_list", "a list"),
    ],
)
def test_rows_of_something_else_are_refused_by_their_column(
    name: str, row: dict[str, Any], column: str, what: str
) -> None:
    with pytest.raises(BadRow) as refused:
        problem_of(name, row)
    assert refused.value.column == column
    assert what in refused.value.what
    assert "REASONMILL_PLANTED" not in os.environ


def test_a_file_is_a_task(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps({"question": f"How many of {number}?", "answer": f"#### {number}"}) for number in (3, 4, 3)]
    file.write_text("\n".join(rows))
    task = sets.gsm8k(file)
    problems = sorted(task.problems("test", 0), key=lambda problem: problem.answer)
    assert [problem.answer for problem in problems] == ["3", "4"]
    assert [reward(task, problems[0], text) for text in ("4 of them, no: 3", "3 of them, no: 4")] == [1.0, 0.0]
    assert {problem.answer for problem in sets.gsm8k(file, split="train").problems("train", 0)} == {"3", "4"}
    with pytest.raises(RecipeError, match="no problems of split 'train'"):
        task.problem("train", 0, 0)


def test_the_file_of_mbpp_holds_all_splits_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "found_level", lambda: None)  # nothing is graded
    file = tmp_path / "mbpp.jsonl"
    row = {"code": "def f(): return 1", "test_setup_code": "", "test_list": ["assert f()"], "challenge_test_list": []}
    rows = [row | {"text": f"Task {number}.", "task_id": number} for number in (2, 10, 11, 510, 511, 601, 974)]
    file.write_text("\n".join(map(json.dumps, rows)))

    def asked(split: sets.Split) -> list[int]:
        problems = sets.mbpp(file, split=split).problems(split, 0)
        return sorted(int(problem.messages[0].content.split("Task ")[1].split(".")[0]) for problem in problems)

    assert (asked("test"), asked("dev"), asked("train")) == ([11, 510], [511], [601, 974])
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(RecipeError, match="no rows of split 'test'"):
        asked("test")


def test_gpqa_is_a_csv_with_numbers_and_line_ends_in_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "gpqa_diamond.csv"
    columns = ["Pre-Revision Question", "Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))]
    file.write_text(f'{",".join(columns)}\n"Old?","Two lines,\nhow many ""eV""?\n",11,10,"12\n",-0.7\n')
    (problem,) = sets.gpqa(file).problems("test", 0)
    assert sorted(problem.meta["choices"]) == ["-0.7", "10", "11", "12"]
    assert problem.meta["choices"]["ABCD".index(problem.answer)] == "11"
    assert 'Two lines,\nhow many "eV"?\n\nA) ' in problem.messages[0].content
    rewards = [reward(sets.gpqa(file), problem, f"So.\n\nAnswer: ${letter}") for letter in "ABCD"]
    assert sorted(rewards, key=float) == [0.0, 0.0, 0.0, 1.0]
    assert rewards["ABCD".index(problem.answer)] == 1.0


def test_a_file_of_something_else_is_refused_by_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "How many?", "answer": "#### 3"}\n{"problem": "How many?"}\n')
    with pytest.raises(RecipeError, match="1 rows are not of the set gsm8k") as refused:
        sets.gsm8k(file).problem("test", 0, 0)
    assert f"{file}:2, column 'question'" in refused.value.what
    with pytest.raises(RecipeError, match="no problems of split 'test'"):
        sets.gsm8k().problem("test", 0, 0)
    with pytest.raises(RecipeError, match="split says what the rows of a file are, and gsm8k has none"):
        sets.gsm8k(hub=HubRows(name="lab/sums", revision="0" * 40), split="train")


def reward(task: Any, problem: Problem, text: str) -> float | None:
    (grade,) = task.grade(problem, [Completion((1,), (0.0,), (True,), text, "stop", 0)])
    value: float | None = grade.reward
    return value


# To look for the jail takes seconds.
IN_JAIL = ("humaneval", "livecodebench", "reasoning-gym")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.check) if name in IN_JAIL else name for name in shipped_suites()]
)
def test_each_shipped_suite_can_be_put_to_a_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "reasoning-gym":
        pytest.importorskip("reasoning_gym")
    rows = {"gpqa": GPQA, **{named: row for named, row, *_ in ROWS}}
    monkeypatch.chdir(tmp_path)  # where the files of shipped suites are looked for
    suite = read_suite(name)
    overrides = []
    for task, table in suite.table.get("tasks", {}).items():
        if "file" in table:
            (tmp_path / f"{task}.jsonl").write_text(json.dumps(rows[table["use"]]))
            overrides.append(f"tasks.{task}.file={task}.jsonl")
    try:
        recipe = put_to(suite, Asked("tiny-base", shipped_bases()["tiny-base"]), "run", {"problems": 1}, overrides)
    except RecipeError as error:
        if "jail" not in str(error):
            raise
        pytest.skip("this machine has no jail")
    (node,) = recipe.nodes
    assert {"temperature": 0.6, "top_p": 0.95}.items() <= node.settings.model_dump()["sampling"].items()
