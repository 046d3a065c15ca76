"""The grader of mathematics on published data: every reference right, each against the next one wrong, and how fast.

    python benchmarks/math_grading.py DATA                    # GSM8K, MATH-500 and AIME in a folder
    python benchmarks/math_grading.py DATA --math-verify      # also what math-verify says otherwise, and its rate

DATA has gsm8k_test.jsonl, gsm8k_train.jsonl, math500.jsonl and aime24.json; what is absent is named and left out. It
ends with exit code 1 if a verdict is not what it must be. math-verify is the extra `math`, used as its authors show it:
`verify(parse(reference), parse(response))` in the main process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reasonmill.grading.math_reference import reference_text
from reasonmill.grading.mathematics import MathGrader
from reasonmill.types import Message, Problem

FILES = ("gsm8k_test.jsonl", "gsm8k_train.jsonl", "math500.jsonl", "aime24.json")
TABLE = Path(__file__).parents[1] / "tests" / "data" / "math_answers.toml"
RESPONSE = "Let us think about it: there are 3 cases.\n\nTherefore, the answer is $\\boxed{%s}$."
# Pairs of neighbours that are equal although they are spelled differently.
EQUAL = {("5", "x=5")}


class Row(NamedTuple):
    """A reference, a response that ends with an answer, and the verdict that it must get."""

    answer: str
    given: str
    wanted: str

    @property
    def response(self) -> str:
        return RESPONSE % self.given


def references(file: Path) -> list[str]:
    """What the rows of a file call their answers."""
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return [row["answer"] for row in rows]


def rows_of(answers: list[str]) -> Iterator[Row]:
    """Each reference as an answer to itself, and to the one before it."""
    for place, answer in enumerate(answers):
        own = reference_text(answer)
        following = reference_text(answers[(place + 1) % len(answers)])
        yield Row(answer, own, "right")
        same = own == following or (own, following) in EQUAL or (following, own) in EQUAL
        yield Row(answer, following, "right" if same else "wrong")


def table_rows() -> Iterator[Row]:
    """The adversarial answers of the tests."""
    for wanted, entries in tomllib.loads(TABLE.read_text(encoding="utf-8")).items():
        for entry in entries:
            yield from (Row(entry["reference"], answer, wanted) for answer in entry["answers"])


def judge_all(name: str, rows: list[Row]) -> int:
    """Prints what is not as it must be; returns how many these are."""
    grader = MathGrader()
    problems = [Problem("math", (Message("user", "?"),), row.answer) for row in rows]
    started = time.perf_counter()
    verdicts = [grader.judge(problem, row.response) for problem, row in zip(problems, rows, strict=True)]
    rate = len(rows) / (time.perf_counter() - started)
    failed = [pair for pair in zip(rows, verdicts, strict=True) if pair[0].wanted != pair[1].outcome]
    for row, verdict in failed:
        print(f"  {reference_text(row.answer)!r} answered by {row.given!r}: {verdict.outcome}, not {row.wanted}")
    print(f"{name}: {len(rows)} verdicts, {len(failed)} not as they must be, {rate:,.0f} a second on one core")
    return len(failed)


def compare(name: str, rows: list[Row]) -> None:
    """Prints what math-verify says otherwise, and its rate."""
    from math_verify import parse, verify

    others: list[tuple[Row, str]] = []
    started = time.perf_counter()
    for row in rows:
        gold = reference_text(row.answer)
        says = "right" if verify(parse(f"${gold}$"), parse(row.response)) else "wrong"
        if says != row.wanted:
            others.append((row, says))
    rate = len(rows) / (time.perf_counter() - started)
    for row, says in others:
        print(f"  {reference_text(row.answer)!r} answered by {row.given[:80]!r}: {row.wanted}; math-verify: {says}")
    print(f"{name}: math-verify differs in {len(others)} of {len(rows)}, {rate:,.0f} a second on one core")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--math-verify", action="store_true", help="compare with math-verify")
    arguments.add_argument("--limit", type=int, help="at most so many references of each file")
    given = arguments.parse_args()
    sets = {}
    for name in FILES:
        file = given.data / name
        if file.is_file():
            sets[name] = list(rows_of(references(file)[: given.limit]))
        else:
            print(f"{name}: not there")
    sets["the table of tests/data"] = list(table_rows())
    failed = sum(judge_all(name, rows) for name, rows in sets.items())
    if given.math_verify:
        for name, rows in sets.items():
            compare(name, rows)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
