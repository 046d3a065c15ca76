"""Asks a finished model with transformers alone, and compares with what `reasonmill eval` measures.

The model is loaded by AutoModelForCausalLM, generation is `generate()`, and a checker of a few lines grades the
answers: nothing of reasonmill is imported; its command line only prints the problems and its own figure. Exit code 1 if
the two pass@1 differ at the 99 % level (two-sample z).
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import operator
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Z_95, Z_99 = 1.959964, 2.575829  # two-sided quantiles of the normal distribution
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def main() -> int:
    options = _parser().parse_args()
    mill = shlex.split(options.reasonmill)
    seed, num = str(options.seed), str(options.problems)
    _say(f"seed {seed}: {num} held-out problems of {options.task}, {options.samples} answers to each")
    lines = _output([*mill, "problems", options.task, "--num", num, "--seed", seed, "--json"])
    problems = [json.loads(line) for line in lines.splitlines()]
    torch.manual_seed(options.seed)
    answers = _answers(options, problems)
    correct = [[float(solves(text, problem["meta"])) for text in answers[i]] for i, problem in enumerate(problems)]
    outside, error = _clustered_mean(correct)

    _say("reasonmill eval ...")
    sampling = ["--samples", str(options.samples), "--max-tokens", str(options.max_tokens), "--temperature", "1"]
    asked = ["--task", options.task, "--problems", num, "--seed", seed, *sampling, "--json"]
    figure = json.loads(_output([*mill, "eval", options.model, *asked]))["tasks"][options.task]["pass@1"]
    inside, inside_error = figure["value"], (figure["high"] - figure["low"]) / 2 / Z_95
    # Both sides have the same problems, which only makes the true error of the difference smaller than this bound.
    difference, bound = outside - inside, Z_99 * math.hypot(error, inside_error)
    agree = abs(difference) <= bound

    if options.json:
        interval = {"value": outside, "low": outside - Z_95 * error, "high": outside + Z_95 * error}
        figures = {"transformers": interval, "reasonmill": figure}
        compared = {"difference": difference, "bound_99": bound, "agree": agree}
        print(json.dumps({"task": options.task, "seed": options.seed, **figures, **compared}, indent=2))
    else:
        print(f"pass@1 on {options.task}, {num} problems x {options.samples}, seed {seed} (95 % interval by problem)")
        print(f"  transformers  {_shown(outside, outside - Z_95 * error, outside + Z_95 * error)}")
        print(f"  reasonmill    {_shown(inside, figure['low'], figure['high'])}")
        print(f"  difference    {_shown(difference, difference - bound, difference + bound)} (99 %)")
        print(f"{'met   ' if agree else 'MISSED'}  both measure the same")
    return 0 if agree else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="directory of a finished run's model, as in HOME/runs/RUN/model")
    parser.add_argument("--task", choices=["countdown", "countdown-3", "countdown-4"], default="countdown-3")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems")
    parser.add_argument("--samples", type=int, default=4, help="answers to each problem")
    parser.add_argument("--seed", type=int, default=0, help="of the problems and of generation")
    parser.add_argument("--max-tokens", type=int, default=256, help="length limit of an answer")
    parser.add_argument("--batch-size", type=int, default=256, help="answers that are generated together")
    parser.add_argument(
        "--reasonmill",
        metavar="COMMAND",
        default=shlex.join([sys.executable, "-m", "reasonmill"]),
        help="how reasonmill's command line is started",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@torch.inference_mode()
def _answers(options: argparse.Namespace, problems: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The texts of all answers, by problem."""
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    stops = set(_as_list(model.generation_config.eos_token_id)) | {tokenizer.eos_token_id}
    prompts = [
        tokenizer.apply_chat_template(problem["messages"], add_generation_prompt=True, tokenize=False)
        for problem in problems
        for _ in range(options.samples)
    ]
    texts: list[str] = []
    for first in range(0, len(prompts), options.batch_size):
        inputs = tokenizer(
            prompts[first : first + options.batch_size], return_tensors="pt", padding=True, add_special_tokens=False
        )
        generated = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=options.max_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id,
        )
        for row in generated[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            texts.append(tokenizer.decode(row[:end], skip_special_tokens=False))
        _say(f"generated {len(texts)}/{len(prompts)}")
    return [texts[i : i + options.samples] for i in range(0, len(texts), options.samples)]


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else value


def solves(text: str, meta: dict[str, Any]) -> bool:
    """Whether the one answer that stands outside of the thinking uses each number once and reaches the target."""
    before, opened, after = text.partition("<think>")
    said = before + after.partition("</think>")[2] if opened else text.split("</think>", 1)[-1]
    answers = re.findall(r"<answer>(.*?)</answer>", said, re.DOTALL)
    if len(answers) != 1:
        return False
    used: list[int] = []
    try:
        value = _value(ast.parse(" ".join(answers[0].split()), mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return sorted(used) == sorted(meta["numbers"]) and value == meta["target"]


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The exact value of an expression of whole numbers; `used` gets the numbers that it is written with."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError("no expression of whole numbers and + - * /")


def _clustered_mean(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean and its standard error; the answers to one problem are one observation, and as many for each problem."""
    means = [math.fsum(row) / len(row) for row in values]
    mean = math.fsum(means) / len(means)
    if len(means) == 1:
        return mean, math.inf
    return mean, math.sqrt(math.fsum((m - mean) ** 2 for m in means) / (len(means) - 1) / len(means))


def _shown(value: float, low: float, high: float) -> str:
    return f"{value * 100:6.1f} %  [{low * 100:.1f}, {high * 100:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
