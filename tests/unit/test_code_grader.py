"""Code by hidden tests: which code a response stands for, the shapes of tests, and verdicts by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reasonmill.cli import main
from reasonmill.grading.code import (
    CodeGrader,
    FunctionTests,
    PrintedTests,
    UnreadableTests,
    code_in,
    printed_alike,
    read_tests,
    sources_of,
)
from reasonmill.grading.verdict import Verdict
from reasonmill.jail.found import close_jails, found_level
from reasonmill.jail.level import levels
from reasonmill.plugins.catalogue import Catalogue, TaskUse
from reasonmill.types import Completion, Message, Problem

jailed = pytest.mark.skipif(not levels(), reason="this machine has no jail")

HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "import math\n\n\ndef helper(x):\n    return x + 1\n\n\n"
    'def root(x: float) -> float:\n    """ The root. """\n',
    "entry_point": "root",
    "canonical_solution": "    return math.sqrt(x)\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert abs(candidate(4) - 2) < 1e-6\n"
    "    assert candidate(helper(8)) == 3\n    assert root(16) == 4\n",
}
MBPP = {
    "text": "Write a function to find shared elements.",
    "test_setup_code": "",
    "test_imports": ["import math"],
    "test_list": [
        "assert set(shared((3, 4), (4, 5))) == set((4,))",
        "assert math.isclose(shared((1,), (1,))[0], 1.0)",
    ],
}
LIVE_FUNCTION = {"input": "1\n2", "output": "[3]", "testtype": "functional"}
VALUES = "{1: (2.5, 'a', None), 'b': {3}, b'c': [True, 1j, frozenset()], -1: '\\ud800'}"
SHARED = "def shared(a, b): return tuple(set(a) & set(b))"


# A task that does what nobody should outside of a jail.
EVALUATING = """
from collections.abc import Iterator, Sequence
from reasonmill.protocols import Domain
from reasonmill.types import Completion, Grade, Message, Problem

class Evaluating:
    domain: Domain = "reasoning"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem("mine", (Message("user", "?"),), "3")

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        return iter([self.problem(split, seed, 0)])

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(self.value(problem, completion.text)) for completion in completions]

    def value(self, problem: Problem, text: str) -> float:
        try:
            return float(str(eval(text)) == problem.answer)
        except OSError:
            return 0.0
"""


@pytest.fixture(scope="module", autouse=True)
def _no_jails_afterwards() -> Iterator[None]:
    yield
    close_jails()


def judged(meta: dict[str, Any], response: str, **settings: Any) -> Verdict:
    return CodeGrader(**settings).judge(Problem("code", (Message("user", "?"),), "", meta), response)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Try\n```python\nx = 1\n```\nno, better\n```py\nx = 2\n```\nDone.", "x = 2\n"),
        ("```python\ndef f(): pass\n```\nUse it:\n```python\nf()\n```", "def f(): pass\n"),
        ("```python\nx = 1\n```\nIt prints\n```text\n1\n```", "x = 1\n"),
        ("<think>```python\nx = 1\n```</think>\n```python\nx = 2\n```", "x = 2\n"),
        ("<think>x</think><answer>```python\nx = 3\n```</answer>", "x = 3\n"),
        ("~~~\nx = 4\n~~~", "x = 4\n"),
        ("````python\ntext = '''\n```\n'''\n````", "text = '''\n```\n'''\n"),
        ("  ```python\n  x = 5\n  ```", "  x = 5\n"),
        ("Sure:\n```python\nx = 6\nand here it was cut off", "x = 6\nand here it was cut off"),
        ("x = 7", "x = 7"),
        ("```python\nx = 8\n```\n<answer>as above</answer>", "x = 8\n"),
        ("```cpp\nint x;\n```\n```\nx = 9\n```", "x = 9\n"),
        ("```python\nx = 10\n```\n```python\nx = 11 and cut", "x = 10\n"),
        ("```python\n" * 20_000 + "x", "```python\n" * 19_999 + "x"),
    ],
)
def test_which_code_is_meant(response: str, code: str) -> None:
    assert code_in(response, "f") == code


def test_a_body_goes_on_with_the_prompt_and_a_whole_function_replaces_it() -> None:
    tests = read_tests(HUMAN_EVAL)
    assert isinstance(tests, FunctionTests)
    body = "    return x ** 0.5\n\nprint(root(4))\n# and prose that goes on"
    sources = sources_of(body, tests)
    assert sources[0] == HUMAN_EVAL["prompt"] + body
    assert sources[-1] == HUMAN_EVAL["prompt"] + "    return x ** 0.5\n"
    assert sources_of("```python\ndef root(x): return 1\n```", tests)[-1] == "def root(x): return 1\n"


@pytest.mark.parametrize(
    ("meta", "inputs"),
    [
        ({"inputs": ["1"], "outputs": ["2"]}, ["1"]),
        ({"tests": {"inputs": ["1"], "outputs": ["2"]}}, ["1"]),
        ({"tests": '{"inputs": ["1"], "outputs": ["2"]}'}, ["1"]),
        ({"input_output": '{"inputs": [["1", "2"]], "outputs": [["2"]]}'}, ["1\n2"]),
        ({"tests": [{"input": "1", "output": "2", "testtype": "stdin"}]}, ["1"]),
    ],
)
def test_tests_that_read_and_print(meta: dict[str, Any], inputs: list[str]) -> None:
    tests = read_tests(meta)
    assert isinstance(tests, PrintedTests)
    assert (tests.inputs, tests.outputs) == (inputs, ["2"])


@pytest.mark.parametrize(
    "meta",
    [
        HUMAN_EVAL,
        {"tests": HUMAN_EVAL},
        {"tests": HUMAN_EVAL["test"], **HUMAN_EVAL},
        MBPP,
        {"tests": MBPP["test_list"]},
        {"tests": json.dumps(MBPP["test_list"])},
        {"tests": "assert f(1) == 2"},
        {"input_output": '{"fn_name": "f", "inputs": [[1]], "outputs": [[2]]}'},
        {"fn_name": "f", "tests": [{"input": "1\n2", "output": "3", "testtype": "functional"}]},
    ],
)
def test_tests_that_call_a_function(meta: dict[str, Any]) -> None:
    assert isinstance(read_tests(meta), FunctionTests)


@pytest.mark.parametrize(
    "meta",
    [{}, {"tests": []}, {"tests": 3}, {"inputs": ["1"], "outputs": []}, {"test": "def check(f): pass"}],
)
def test_what_is_no_test_is_no_fault_of_the_response(meta: dict[str, Any]) -> None:
    with pytest.raises(UnreadableTests):
        read_tests(meta)
    assert judged(meta, "```python\nx = 1\n```").outcome == "could not tell"


@pytest.mark.parametrize(
    ("output", "expected", "alike"),
    [
        ("1\n", "1", True),
        ("  1 2  \n\n", "1 2", True),
        ("1  2", "1 2", True),
        ("1.0", "1", True),
        ("1e3", "1000", True),
        ("0.1", "0.10000", True),
        ("YES", "yes", False),
        ("12", "1 2", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("", "0", False),
        ("nan", "nan", True),
        ("nan", "1", False),
        ("1" * 500 + ".0", "1" * 500, False),
    ],
)
def test_when_outputs_are_the_same(output: str, expected: str, alike: bool) -> None:
    assert printed_alike(output, expected) is alike


@jailed
@pytest.mark.parametrize(
    ("meta", "response", "outcome"),
    [
        (HUMAN_EVAL, HUMAN_EVAL["canonical_solution"], "right"),
        (HUMAN_EVAL, f"```python\n{HUMAN_EVAL['prompt']}{HUMAN_EVAL['canonical_solution']}```", "right"),
        (HUMAN_EVAL, "```python\ndef root(x):\n    return math.sqrt(x)\n```", "right"),
        (HUMAN_EVAL, "return math.sqrt(x)", "right"),
        (HUMAN_EVAL, "    return math.sqrt(x)\n\nand this is why it is right", "right"),
        (HUMAN_EVAL, "    return x", "wrong"),
        (HUMAN_EVAL, "", "wrong"),
        (HUMAN_EVAL, "I don't know (", "wrong"),
        (MBPP, SHARED, "right"),
        (MBPP, "def shared(a, b): return a", "wrong"),
        (MBPP, "def other(a, b): return a", "wrong"),
        ({"test_list": ["x = [3, 1]\nsort(x)\nassert x == [1, 3]"]}, "def sort(x): x.sort()", "right"),
        ({"test_list": ["x = [3, 1]\nsort(x)\nassert x == [1, 3]"]}, "def sort(x): return sorted(x)", "wrong"),
        ({"test_list": ["assert list(count(3)) == [0, 1, 2]"]}, "def count(n):\n  yield from range(n)", "right"),
        (
            {"test_setup_code": "n = Node(1)\nn.left = Node(2)", "test_list": ["assert depth(n) == 2"]},
            "class Node:\n  def __init__(s, v): s.v, s.left = v, None\n"
            "def depth(n): return n and 1 + depth(n.left) or 0",
            "right",
        ),
        ({"test_list": ["assert S().add(1, 2) == 3"]}, "class S:\n  def add(s, a, b): return a + b", "right"),
        (
            {"test_list": ["try:\n  f(-1)\n  assert False\nexcept ValueError: pass"]},
            "class Own(ValueError): pass\ndef f(x): raise Own('no')",
            "right",
        ),
        ({"test_list": [f"assert f() == {VALUES}"]}, f"f = lambda: {VALUES}", "right"),
        ({"test_list": ["assert f(7) == 3 ** 500"]}, "def f(x): return 3 ** 500", "right"),
        ({"test_list": ["assert f(abs) == 1"]}, "def f(g): return g(-1)", "right"),
        ({"test_list": ["assert f(lambda x: x) == 1"]}, "def f(g): return g(1)", "could not tell"),
        ({"test_list": ["import no_such_module\nassert f(1) == 1"]}, "def f(x): return x", "could not tell"),
        ({"test_list": ["assert 1 == 1"]}, "def f(x): return x", "could not tell"),
        ({"fn_name": "f", "inputs": [[1, 2]], "outputs": [[3]]}, "def f(a, b): return a + b", "right"),
        ({"fn_name": "f", "inputs": [[[1, 2]]], "outputs": [[[2, 4]]]}, "def f(a): return (*a, 4)[1:]", "right"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [0.3333333]}, "def f(a): return 1 / 3", "right"),
        (
            {"fn_name": "two", "inputs": [[[1, 2]]], "outputs": [3]},
            "class Solution:\n  def two(self, a: List[int]) -> int:\n    return pow(sum(a), 1, 7)",
            "right",
        ),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[4]]}, "def f(a): return 3", "wrong"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[3]]}, "def f(a): return 3", "right"),
        ({"fn_name": "f", "tests": [LIVE_FUNCTION]}, "def f(a, b): return [a + b]", "right"),
        ({"fn_name": "f", "tests": [LIVE_FUNCTION]}, "def f(a, b): return a + b", "wrong"),
        ({"inputs": ["2\n3 4"], "outputs": ["7"]}, "n = int(input())\nprint(sum(map(int, input().split())))", "right"),
        ({"inputs": ["3"], "outputs": ["3"]}, "if __name__ == '__main__':\n  print(open(0).read())", "right"),
        (
            {"inputs": ["3"], "outputs": ["3"]},
            "import threading\nthreading.stack_size(2 ** 26)\nthreading.Thread(target=lambda: print(input())).start()",
            "right",
        ),
        ({"inputs": ["3"], "outputs": ["3"]}, "import atexit\natexit.register(print, input())", "right"),
        ({"inputs": ["3"], "outputs": ["3"]}, "print(3)\n1 / 0", "wrong"),
        ({"inputs": ["3", "4"], "outputs": ["3", "4"]}, "print(3)", "wrong"),
    ],
)  # fmt: skip
def test_verdicts(meta: dict[str, Any], response: str, outcome: str) -> None:
    verdict = judged(meta, response, seconds=5)
    assert verdict.outcome == outcome, verdict.reason
    if outcome != "could not tell" and response:
        assert verdict.parts == {"isolation": found_level().rank}


@jailed
def test_reasons_say_what_happened() -> None:
    reasons = {
        "def f(x): return x +": "does not load: SyntaxError",
        "def f(x): return 1 / 0": "ZeroDivisionError: division by zero",
        "def f(x): return 2": "a test fails: line 1",
        "import os; os._exit(3)": "it ended with the exit code 3",
        "import os, signal; os.kill(os.getpid(), 11)": "it crashed",
        "x = [0] * 10 ** 10": "MemoryError",
        "def f(x): raise ValueError('\\x1b[2J\\ud800')": "ValueError: ?[2J?",
    }
    for response, reason in reasons.items():
        verdict = judged({"test_list": ["assert f(1) == 1"]}, response)
        assert verdict.outcome == "wrong"
        assert reason in verdict.reason
    assert judged({"inputs": [""], "outputs": ["1"]}, "print(2)").reason == "test 1: it printed something else"


@jailed
def test_a_jail_that_failed_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonmill.jail.jail import Jail, JailFailed

    tests, response = {"test_list": ["assert f(1) == 1"]}, "def f(x): return x"
    with monkeypatch.context() as broken:
        broken.setattr(Jail, "begin", lambda *_: (_ for _ in ()).throw(JailFailed("gone")))
        assert judged(tests, response).reason == "the jail failed: gone"
    assert judged(tests, response).outcome == "right"


@jailed
def test_a_recipe_names_it_and_workers_grade() -> None:
    catalogue = Catalogue({"tasks": {"programs": TaskUse(use="code", seconds=2.0)}})
    problem = Problem("programs", (Message("user", "?"),), "", {"test_list": ["assert f(1) == 1"]})
    said = [Completion((1,), (0.0,), (True,), text, "stop", 0) for text in ("def f(x): return x", "def f(x): return 2")]
    try:
        grades = catalogue.task("programs").grade(problem, said)
    finally:
        catalogue.workers.close()
    assert [grade.reward for grade in grades] == [1.0, 0.0]
    assert grades[0].parts["isolation"] == found_level().rank


@jailed
def test_users_graders_run_in_the_jail(tmp_path: Path) -> None:
    """One that evaluates what a model wrote, which tries to write beside the grader and to connect."""
    secret = tmp_path / "secret"
    (tmp_path / "evaluating.py").write_text(EVALUATING, encoding="utf-8")
    table = TaskUse(use="./evaluating.py:Evaluating", isolation="jail")
    catalogue = Catalogue({"tasks": {"mine": table}}, tmp_path)
    problem = Problem("mine", (Message("user", "?"),), "3")
    texts = ["1 + 2", f"open({str(secret)!r}, 'w') and 3", "__import__('socket').socket() and 3", "1 + 3"]
    try:
        said = [Completion((1,), (0.0,), (True,), text, "stop", 0) for text in texts]
        grades = catalogue.task("mine").grade(problem, said)
    finally:
        catalogue.workers.close()
    assert [grade.reward for grade in grades] == [1.0, 0.0, 0.0, 0.0], grades
    assert not secret.exists()


@jailed
def test_the_command_grade_reads_rows_with_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"response": HUMAN_EVAL["canonical_solution"], **HUMAN_EVAL},
        {"response": "    return x", "tests": HUMAN_EVAL},
        {"response": SHARED, **MBPP},
        {"response": "print(input())", "tests": {"inputs": ["1"], "outputs": ["1"]}, "id": "7"},
        {"response": "print(input())"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["grade", "code", str(file), "--json"])
    assert ended.value.code == 0
    verdicts = [json.loads(line)["verdict"] for line in capsys.readouterr().out.splitlines()]
    assert verdicts == ["right", "wrong", "right", "right", "could not tell"]
