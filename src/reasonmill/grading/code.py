"""Code by hidden tests: functions that tests call (HumanEval, MBPP), and programs that read and print."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from reasonmill.grading.verdict import Isolation, Verdict
from reasonmill.jail import programs
from reasonmill.jail.found import Jails, borrowed
from reasonmill.jail.jail import JailFailed, Limits
from reasonmill.jail.level import Level
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN, read_transcript
from reasonmill.types import Problem
from reasonmill.workers.limits import Limits as WorkerLimits

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)")
_LANGUAGES = ("", "python", "py", "python3")
# What numbers look like in outputs; others are texts.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_MAX_NUMBER = 400
# What sites that ask for a function have imported for it.
_IMPORTED = """\
from typing import *
from collections import *
from heapq import *
from bisect import *
from itertools import *
from functools import *
from math import *
from builtins import *
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
sys.setrecursionlimit(50000)
"""


class UnreadableTests(Exception):
    """The tests of a problem can't be read."""


@dataclass(frozen=True)
class FunctionTests:
    """Tests that call a function of the program.

    Attributes:
        examination: arguments of `jail.inside.examine.examine`.
    """

    examination: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        return str(self.examination["prompt"])

    @property
    def entry(self) -> str:
        return str(self.examination["entry"])


@dataclass(frozen=True)
class PrintedTests:
    """Inputs, and what a program prints for them."""

    inputs: Sequence[str]
    outputs: Sequence[str] = field(repr=False)


def read_tests(meta: Mapping[str, Any]) -> FunctionTests | PrintedTests:
    """The tests of a problem, in one of the shapes of the field.

    HumanEval: `test` with a function `check`, `entry_point`, `prompt`. MBPP: `test_list`, with `test_setup_code` and
    `test_imports`. APPS, TACO: `inputs`, `outputs` and, for functions, `fn_name`. LiveCodeBench: a list of `input`,
    `output`, `testtype`. They stand in `meta` itself, or in its `tests` or `input_output`, also as text of JSON.

    Raises:
        UnreadableTests: there are none, or they are in no shape that is known.
    """
    tests: Any = next((meta[name] for name in ("tests", "input_output") if meta.get(name)), meta)
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError:
            tests = [tests]  # code
    if isinstance(tests, list) and tests:
        if all(isinstance(test, str) for test in tests):
            tests = {"test_list": tests}
        elif all(isinstance(test, Mapping) and {"input", "output"} <= test.keys() for test in tests):
            kinds = {test.get("testtype", "stdin") for test in tests}
            tests = {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}
            if kinds == {"functional"}:
                tests["fn_name"] = meta.get("fn_name") or meta.get("func_name") or ""
                tests["inputs"] = [[json.loads(line) for line in text.split("\n")] for text in tests["inputs"]]
                tests["outputs"] = [json.loads(text) for text in tests["outputs"]]
                tests["is_exact"] = True
                if not tests["fn_name"]:
                    raise UnreadableTests("functional tests need the name of the function, in fn_name")
    if not isinstance(tests, Mapping):
        raise UnreadableTests("the tests are neither a table nor a list")
    found = {**meta, **tests}
    if found.get("test") and found.get("entry_point"):
        return _function_tests(
            prompt=found.get("prompt", ""), tests=[found["test"]], entry=found["entry_point"], check="check"
        )
    if found.get("test_list"):
        setup = [*found.get("test_imports", ()), found.get("test_setup_code", "")]
        return _function_tests(setup=setup, tests=found["test_list"])
    if found.get("inputs"):
        inputs, outputs = list(found["inputs"]), list(found.get("outputs", ()))
        if len(inputs) != len(outputs):
            raise UnreadableTests(f"there are {len(inputs)} inputs and {len(outputs)} outputs")
        if found.get("fn_name"):
            calls = _calls(inputs, outputs, is_exact=bool(found.get("is_exact")))
            return _function_tests(calls=calls, entry=found["fn_name"])
        return PrintedTests([_text(one) for one in inputs], [_text(one) for one in outputs])
    raise UnreadableTests("there are no tests: neither test and entry_point, nor test_list, nor inputs and outputs")


def _function_tests(**given: Any) -> FunctionTests:
    return FunctionTests({"prompt": "", "setup": [], "tests": [], "calls": [], "entry": "", "check": "", **given})


def _calls(inputs: Sequence[Any], outputs: Sequence[Any], *, is_exact: bool) -> list[tuple[list[Any], list[Any]]]:
    """Arguments, and what may be returned: APPS writes the result itself, or a list of it alone; LiveCodeBench, which
    is exact, writes the result."""

    def accepted(output: Any) -> list[Any]:
        return [output, output[0]] if not is_exact and isinstance(output, list) and len(output) == 1 else [output]

    return [(list(given), accepted(output)) for given, output in zip(inputs, outputs, strict=True)]


def _text(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def code_in(response: str, entry: str = "") -> str:
    """The code of a response: the last fenced block of Python in its answer, or else in what follows its thinking; all
    of that where there is no block.

    Args:
        entry: the function that is wanted; the last block that defines it goes before others.
    """
    # Thinking that was never closed is no answer.
    after = response.rpartition(THINK_CLOSE)[2].partition(THINK_OPEN)[0]
    answer = read_transcript(response).answer
    texts = [after] if answer is None else [answer, after]
    for text in texts:
        blocks = fenced(text)
        if blocks:
            defining = [block for block in blocks if entry and defines(block, entry)]
            return (defining or blocks)[-1]
    return texts[0]


def fenced(text: str) -> list[str]:
    """The fenced blocks of Python in a text, by CommonMark's rules; where none was closed, the one that was cut off."""
    closed: list[str] = []
    begun: list[str] = []
    fence, is_python = "", False
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if not fence:
            if mark is not None:
                fence, is_python, begun = mark[1], mark[2].lower() in _LANGUAGES, []
        elif mark is not None and mark[1].startswith(fence) and not line[mark.end(1) :].strip():
            if is_python:
                closed.append("".join(begun))
            fence = ""
        else:
            begun.append(line)
    return closed or (["".join(begun)] if fence and is_python else [])


def defines(code: str, name: str) -> bool:
    """Whether code defines a function, a class or a variable of this name."""
    named = re.escape(name)
    return (
        re.search(rf"^[ \t]*(?:(?:async[ \t]+)?def|class)[ \t]+{named}\b|^{named}[ \t]*=", code, re.MULTILINE)
        is not None
    )


def sources_of(response: str, tests: FunctionTests) -> list[str]:
    """The program that a response stands for, as it may be meant, the likeliest first: whole, or going on with the
    prompt where that left off."""
    prompt, entry = tests.prompt, tests.entry
    code = code_in(response, entry)
    if tests.examination["calls"]:
        return [_IMPORTED + code, code]
    if not prompt or defines(code, entry):
        # What the prompt imports and defines is there without being repeated.
        return [f"{prompt}\n    pass\n\n{code}", f"{prompt}\n\n{code}", code] if prompt else [code]
    lines = code.split("\n")
    ends = next((place for place, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    indented = "\n".join(f"    {line}" for line in lines)
    return [f"{prompt}{code}", f"{prompt}{indented}", "{}{}".format(prompt, "\n".join(lines[:ends]))]


def printed_alike(output: str, expected: str) -> bool:
    """Whether two outputs are the same but for white space at the ends of lines and how numbers are written."""
    ours, theirs = (_lines(text) for text in (output, expected))
    if len(ours) != len(theirs):
        return False
    return all(
        line == other or _words_alike(line.split(), other.split()) for line, other in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _words_alike(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    return len(ours) == len(theirs) and all(map(_word_alike, ours, theirs))


def _word_alike(word: str, other: str) -> bool:
    if word == other:
        return True
    if max(len(word), len(other)) > _MAX_NUMBER or not (_NUMBER.fullmatch(word) and _NUMBER.fullmatch(other)):
        return False
    return Decimal(word) == Decimal(other)


class CodeGrader:
    """Runs the code of a response in the jail, against the tests of the problem.

    Args:
        seconds: of a core for a test that reads and prints, or for all tests that call a function; as long and a second
            for sleeping and waiting.
        total_seconds: of a core for all tests of a response together.
        memory_mb: what a program may use.
        level: how it is kept apart; the best that this machine has without it.
    """

    isolation: Isolation = "worker"  # it brings its own jails along
    asks = "Write the code in one block of Python between ```python and ```."

    def __init__(
        self,
        seconds: float = 6.0,
        total_seconds: float = 60.0,
        memory_mb: int = 1024,
        level: Level | None = None,
    ) -> None:
        self._limits = Limits(seconds, memory_mb)
        self._total_s = total_seconds
        self._level = level
        # The jail ends programs by what they compute; these bound the jail, on whatever busy machine.
        self.limits = WorkerLimits(
            seconds=100 + 20 * (seconds + total_seconds), memory_gb=2 + memory_mb / 1000, processes=1000
        )

    def judge(self, problem: Problem, response: str) -> Verdict:
        """Right if all tests pass. Failures of the jail and of the tests themselves are "could not tell"."""
        try:
            tests = read_tests(problem.meta)
        except (UnreadableTests, ValueError, TypeError) as error:
            return Verdict.could_not_tell(f"the tests can't be read: {error}")
        if not code_in(response).strip():
            return Verdict.wrong("there is no code in the response")
        try:
            with borrowed(self._level) as jails:
                if isinstance(tests, FunctionTests):
                    verdict = self._examine(jails, tests, response)
                else:
                    verdict = self._print(jails, tests, code_in(response))
                # Whoever reads the reward later learns how far the program was kept apart.
                return replace(verdict, parts={"isolation": float(jails.level.rank)})
        except JailFailed as error:
            return Verdict.could_not_tell(f"the jail failed: {error}")

    def _examine(self, jails: Jails, tests: FunctionTests, response: str) -> Verdict:
        sources = sources_of(response, tests)
        found = programs.examine(jails.program, jails.tests, sources, tests.examination, self._limits)
        if found.outcome == "broken":
            return Verdict.could_not_tell(f"the tests are at fault: {found.reason}")
        return Verdict.right() if found.outcome == "passed" else Verdict.wrong(found.reason)

    def _print(self, jails: Jails, tests: PrintedTests, source: str) -> Verdict:
        left = self._total_s
        for number, (given, expected) in enumerate(zip(tests.inputs, tests.outputs, strict=True), 1):
            ran = programs.run(jails.program, source, given.encode(errors="surrogatepass"), self._limits)
            if ran.fault:
                return Verdict.wrong(f"test {number}: {ran.fault}")
            if not printed_alike(ran.output.decode(errors="replace"), expected):
                return Verdict.wrong(f"test {number}: it printed something else")
            left -= ran.cpu_s
            if left < 0:
                return Verdict.wrong(f"all tests together took longer than {self._total_s:g} s")
        return Verdict.right()
