"""The tiny world's problems asked by inspect_ai, to compare with `reasonmill eval` of the same model.

It needs nothing of reasonmill, and its graders are its own. In an environment with inspect_ai and openai:

    reasonmill problems arithmetic --num 80 --json > arithmetic.jsonl
    python benchmarks/inspect_side.py arithmetic.jsonl --url http://127.0.0.1:8000/v1 --model /models/tiny-base
    reasonmill eval tiny-base --task arithmetic --problems 80 --samples 4 --max-tokens 64 --name ours
    reasonmill compare ours logs/*_arithmetic_*.eval

The task is called as the file, and samples have the ids of the problems, so that `compare` finds them.
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import inspect_ai as inspect
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import Score, accuracy, scorer, stderr
from inspect_ai.solver import generate

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(text: str) -> Fraction:
    """What an expression of whole numbers comes to.

    Raises:
        ValueError, SyntaxError, ZeroDivisionError: it is none.
    """

    def of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            found: Fraction = _OPERATORS[type(node.op)](of(node.left), of(node.right))
            return found
        raise ValueError(f"no expression: {text}")

    return of(ast.parse(text.strip(), mode="eval").body)


def is_right(reply: str, answer: str, meta: Mapping[str, Any]) -> bool:
    """Whether the one answer block of a reply solves a problem: by its numbers and target, or by its answer."""
    blocks = re.findall(r"<answer>(.*?)</answer>", reply, re.DOTALL)
    if len(blocks) != 1:
        return False
    try:
        if "target" in meta:
            said = blocks[0].split("=")[0]
            given = sorted(int(number) for number in re.findall(r"\d+", said))
            return given == sorted(meta["numbers"]) and value(said) == meta["target"]
        return value(blocks[0].split("=")[-1]) == int(answer)
    except (ValueError, SyntaxError, ZeroDivisionError):
        return False


def main() -> None:
    """Asks the problems, and prints the accuracy; the log is below logs/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("problems", type=Path, help="what `reasonmill problems --json` printed")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True, help="as the server names it")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()

    @scorer(metrics=[accuracy(), stderr()])
    def solves() -> Any:
        async def score(state: Any, target: Any) -> Any:
            return Score(value="C" if is_right(state.output.completion, target.text, state.metadata) else "I")

        return score

    rows = [json.loads(line) for line in options.problems.read_text(encoding="utf-8").splitlines()]
    dataset = [
        Sample(id=row["id"], input=row["messages"][-1]["content"], target=row["answer"], metadata=row["meta"])
        for row in rows
    ]
    config = GenerateConfig(temperature=0.6, top_p=0.95, max_tokens=options.max_tokens, max_connections=2)
    model = get_model(f"openai-api/local/{options.model}", base_url=options.url, api_key="none", config=config)
    asked = inspect.Task(
        name=options.problems.stem, dataset=dataset, solver=generate(), scorer=solves(), epochs=options.samples
    )
    (log,) = inspect.eval(asked, model=model, log_dir="logs", display="none")
    print(options.problems.stem, log.status, log.results and log.results.scores[0].metrics)


if __name__ == "__main__":
    main()
