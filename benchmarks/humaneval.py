"""HumanEval in the jail: its own solutions, and each of them with one operator changed, beside plain Python.

    python benchmarks/humaneval.py HumanEval.jsonl.gz [--every]

Every solution must be right. Of each one's changed forms the first (with --every: all) is graded in the jail, and run
together with the tests by a Python of its own, as is usual; the two are compared. The second runs what a model might
have written with your rights: here it is what this script made of the published solutions.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reasonmill.grading.code import CodeGrader
from reasonmill.jail.found import found_level
from reasonmill.types import Message, Problem

CHANGED: dict[type[ast.AST], type[Any]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitXor: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
SECONDS = 3.0


def operators(tree: ast.AST, first_line: int) -> list[tuple[Any, int | None]]:
    """The nodes with an operator that can be changed, after a line; of comparisons also which of their operators."""
    found: list[tuple[Any, int | None]] = []
    for node in ast.walk(tree):
        if getattr(node, "lineno", 0) <= first_line:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in CHANGED:
            found.append((node, None))
        elif isinstance(node, ast.Compare):
            found += [(node, place) for place, operator in enumerate(node.ops) if type(operator) in CHANGED]
    return found


def changed(prompt: str, solution: str) -> Iterator[str]:
    """The program with one operator of its solution changed, for each of them."""
    first_line = prompt.count("\n")
    for index in range(len(operators(ast.parse(prompt + solution), first_line))):
        tree = ast.parse(prompt + solution)
        node, place = operators(tree, first_line)[index]
        if place is None:
            node.op = CHANGED[type(node.op)]()
        else:
            node.ops[place] = CHANGED[type(node.ops[place])]()
        yield ast.unparse(tree)


def plainly(program: str, row: dict[str, Any]) -> str:
    """The verdict of a Python that runs the program and its tests together."""
    text = f"import random\nrandom.seed(0)\n{program}\n{row['test']}\ncheck({row['entry_point']})\n"
    try:
        done = subprocess.run([sys.executable, "-S", "-"], input=text, text=True, capture_output=True, timeout=8)
    except subprocess.TimeoutExpired:
        return "wrong"
    return "right" if done.returncode == 0 else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--every", action="store_true", help="every operator, not only the first of each solution")
    arguments = parser.parse_args()
    with gzip.open(arguments.file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    grader = CodeGrader(SECONDS)

    def judged(row: dict[str, Any], response: str) -> str:
        verdict = grader.judge(Problem("code", (Message("user", row["prompt"]),), "", row), response)
        return verdict.outcome

    begun = time.monotonic()
    own = Counter(judged(row, row["canonical_solution"]) for row in rows)
    took = time.monotonic() - begun
    print(f"level {found_level().name}; own solutions: {dict(own)}; {len(rows) / took:.0f} a second")
    both: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for number, program in enumerate(changed(row["prompt"], row["canonical_solution"])):
            if number and not arguments.every:
                break
            verdicts = judged(row, f"```python\n{program}\n```"), plainly(program, row)
            both[verdicts] += 1
            if verdicts[0] != verdicts[1]:
                print(f"{row['task_id']}: {verdicts[0]} in the jail, {verdicts[1]} in plain Python\n{program}\n")
    for (ours, plain), count in sorted(both.items()):
        print(f"one operator changed: {ours} in the jail, {plain} in plain Python: {count}")


if __name__ == "__main__":
    main()
