"""A whole step of GRPO on one GPU, side by side: reasonmill's `rl` against TRL's GRPOTrainer with colocated vLLM.

Both get the same random weights of Qwen2.5's shape, prompts of 128 tokens, 64 problems a step with 8 completions of up
to 512 tokens, the same reward function, loss, clipping and optimizer settings, and one update a step. A pilot chooses
TRL's micro-batch. Exit code 1 if the bar is missed.

    PYTHONPATH=src python benchmarks/gpu/against_trl.py --trl-python VENV/bin/python
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from children import lines_of
from shapes import LETTERS, SIZES

from reasonmill.randomness import generator
from reasonmill.store.home import Home

HERE = Path(__file__).parent
BAR = 4.0  # how many times shorter reasonmill's step must be
PROBLEMS, SAMPLES, PROMPT, MAX_TOKENS = 64, 8, 128, 512
LEARNING_RATE = 1e-6
# The first steps of a run compile, capture graphs and take memory.
UNTIMED = 2
NAME = "against-trl"
RECIPE = """
name = "{name}"
seed = 0

[models.shape]
path = "./model"

[data.letters]
train = "./rows.jsonl"

[rewards.even]
use = "./even.py:even"
completions_are = "texts"

[tasks.letters]
use = "rows"
data = "letters"
reward = "even"

[[stage]]
name = "zero"
kind = "rl"
from = "shape"
tasks = {{ letters = 1.0 }}
rewards = {{ even = 1.0 }}
steps = {steps}
problems_per_step = {problems}
group_size = {samples}
updates_per_step = 1
tokens_per_batch = {tokens_per_batch}
sampling = {{ temperature = 1.0, max_tokens = {max_tokens} }}
loss = {{ algorithm = "grpo", clip_low = 0.2, clip_high = 0.2, kl_coefficient = 0.0 }}
schedule = {{ peak = {learning_rate!r} }}
"""


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if shutil.which(options.trl_python) is None:
        parser.error(f"there is no program {options.trl_python!r}")
    if wrong := [size for size in options.trl_batch_sizes if options.problems * SAMPLES % size]:
        parser.error(f"the {options.problems * SAMPLES} completions of a step can't be cut into parts of {wrong[0]}")
    with tempfile.TemporaryDirectory(prefix="against-trl-") as work:
        result = _measured(Path(work), options)
    ratio = result["trl"]["step_s"] / result["reasonmill"]["step_s"]
    result["bar"] = {"ratio": ratio, "bar": BAR, "met": ratio >= BAR}
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        _print_table(result)
    return 0 if result["bar"]["met"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help=f"of a step (default: {PROBLEMS})")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help=f"of a completion (default: {MAX_TOKENS})")
    parser.add_argument("--steps", type=int, default=6, help=f"of reasonmill; the first {UNTIMED} are not timed")
    parser.add_argument("--tokens-per-batch", type=int, default=16384, help="positions of reasonmill's micro-batch")
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter that has TRL and vLLM")
    parser.add_argument("--trl-steps", type=int, default=3, help="of TRL that are timed, after its pilot")
    parser.add_argument(
        "--trl-batch-sizes", type=int, nargs="+", default=[16, 32, 64], help="TRL's micro-batches that the pilot tries"
    )
    parser.add_argument("--pilot-steps", type=int, default=2, help="of each micro-batch")
    parser.add_argument("--trl-memory", type=float, default=0.2, help="vLLM's share of the card's memory")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: without vLLM, to try the script"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _measured(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of both sides, and the runs that they are from."""
    model, rows = work / "model", work / "rows.jsonl"
    make_model = [sys.executable, str(HERE / "random_model.py"), str(model), "--size", options.size]
    lines_of([*make_model, "--device", options.device])
    _write_rows(rows, options)
    shutil.copy(HERE / "even.py", work)
    ours = _run_reasonmill(work, options)
    order = {
        "model": str(model),
        "rows": str(rows),
        "work": str(work / "trl"),
        "problems": options.problems,
        "samples": SAMPLES,
        "prompt": PROMPT,
        "max_tokens": options.max_tokens,
        "learning_rate": LEARNING_RATE,
        "batch_sizes": options.trl_batch_sizes,
        "pilot_steps": options.pilot_steps,
        "steps": options.trl_steps,
        "memory_share": options.trl_memory,
        "device": options.device,
    }
    began = time.time()
    command = [options.trl_python, str(HERE / "trl_on_gpu.py"), json.dumps(order)]
    *pilot, theirs = lines_of(command, own_path=True)
    sides = {
        "reasonmill": _figures(ours["steps"][UNTIMED:], ours["first_step_after_s"]),
        "trl": _figures(theirs["steps"], theirs["first_end"] - began),
    }
    return {**sides, "size": options.size, "runs": {"reasonmill": ours, "pilot": pilot, "trl": theirs}}


def _write_rows(path: Path, options: argparse.Namespace) -> None:
    """Writes problems of random letters, one token each; no two are equal."""
    numbers = generator("against trl")
    steps = max(options.steps, options.pilot_steps * len(options.trl_batch_sizes) + options.trl_steps)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(steps * options.problems):
            letters = "".join(numbers.choice(LETTERS) for _ in range(PROMPT))
            file.write(json.dumps({"prompt": letters, "answer": "none"}) + "\n")


def _run_reasonmill(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a recipe of one `rl` stage by the command line and reads what the ledger says of its steps."""
    recipe, home = work / "recipe.toml", work / "mill"
    settings = {"problems": options.problems, "samples": SAMPLES, "max_tokens": options.max_tokens}
    settings |= {"steps": options.steps, "tokens_per_batch": options.tokens_per_batch}
    recipe.write_text(RECIPE.format(name=NAME, learning_rate=LEARNING_RATE, **settings), encoding="utf-8")
    began = time.monotonic()
    command = [sys.executable, "-m", "reasonmill", "run", str(recipe), "--home", str(home), "--device", options.device]
    subprocess.run(command, check=True, stdout=sys.stderr)
    seconds = time.monotonic() - began
    with Home.open(home, write=False) as opened:
        (run,) = opened.ledger.runs()
        entries = opened.ledger.metrics(run.stages[0].key)
    steps = [
        {
            "step_s": entry["speed/step_s"],
            "rollout_s": entry["speed/sampling_s"],
            "scoring_s": entry["speed/scoring_s"],
            "tokens": entry["tokens/sampled"],
        }
        for entry in entries
    ]
    # What is saved and reported in the end is in it, too.
    first = seconds - sum(step["step_s"] for step in steps[1:])
    return {"steps": steps, "first_step_after_s": first, "command_s": seconds}


def _figures(steps: list[dict[str, float]], first_step_after_s: float) -> dict[str, float]:
    return {
        "step_s": statistics.median(step["step_s"] for step in steps),
        "rollout_s": statistics.median(step["rollout_s"] for step in steps),
        "rollout_tokens_per_s": statistics.median(step["tokens"] / step["rollout_s"] for step in steps),
        "tokens": statistics.fmean(step["tokens"] for step in steps),
        "first_step_after_s": first_step_after_s,
    }


_ROWS = {
    "step_s": ("step, median s", ".2f"),
    "rollout_s": ("rollouts, median s", ".2f"),
    "rollout_tokens_per_s": ("tokens/s in rollouts, median", ",.0f"),
    "tokens": ("tokens sampled in a step, mean", ",.0f"),
    "first_step_after_s": ("first step done after, s", ".0f"),
}


def _print_table(result: dict[str, Any]) -> None:
    for tried in result["runs"]["pilot"]:
        seconds = [f"{step['step_s']:.2f}" for step in tried["steps"] or ()]
        print(f"TRL, micro-batch {tried['batch_size']}: {', '.join(seconds) or 'out of memory'}")
    theirs = result["runs"]["trl"]
    print(f"TRL {theirs['trl']}, micro-batch {theirs['batch_size']}, trains in {theirs['dtype']}\n")
    print(f"{result['size']:36}{'reasonmill':>12}{'TRL':>12}")
    for name, (label, form) in _ROWS.items():
        print(f"{label:36}{result['reasonmill'][name]:>12{form}}{result['trl'][name]:>12{form}}")
    bar = result["bar"]
    print(f"\n{'met   ' if bar['met'] else 'MISSED'}  step shorter: {bar['ratio']:.2f}x, bar {bar['bar']:.0f}x")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"against_trl.py: {error}")
