"""GRPO on the CPU, side by side: reasonmill against TRL's GRPOTrainer, each in processes of its own.

Both get the same checkpoint, the same problems in the same order, the same grader and rewards, the same loss, clipping,
optimizer settings and number of rollouts, and one update a step. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo_workload import REWARDS, TASK, Measured, Step, Workload, environment, graded, say
from trl_side import run_trl

from reasonmill.algo.intervals import Estimate, clustered_mean
from reasonmill.algo.losses import LossSettings
from reasonmill.errors import ReasonmillError
from reasonmill.recipe.reference import model_directory
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home

STEP_BAR = 6.0  # how many times shorter reasonmill's median step must be
TOKENS_BAR = 5.0  # how many times more tokens a second its rollouts must make
BUSY_LOAD = 0.5  # above this load average something else is running
LAST_STEPS = 5  # the steps whose rewards are compared
RECIPE = "cpu-vs-trl"


def main() -> int:
    options = _parser().parse_args()
    base = Workload(
        model=str(model_directory(options.model)),
        seed=0,
        steps=options.steps,
        problems=options.problems,
        samples=options.samples,
        max_tokens=options.max_tokens,
        learning_rate=options.learning_rate,
        threads=options.threads,
    )
    say(f"model {base.model}; seeds {list(range(options.seeds))}; {base.steps} steps of {base.rollouts} rollouts")
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        say(f"warning: the load average is {load:.1f}; threads that wait for a shared core spoil the timings")
    batch_size, pilot = _fastest_batch_size(base, options.trl_batch_sizes, options.pilot_steps)
    sides: dict[str, Callable[[Workload], Measured]] = {
        "reasonmill": run_reasonmill,
        "trl": lambda workload: run_trl(workload, batch_size),
    }
    runs: dict[str, list[Measured]] = {name: [] for name in sides}
    for seed in range(options.seeds):
        # Who goes first alternates, so that a machine that grows warmer or busier favours neither.
        for name in list(sides) if seed % 2 == 0 else reversed(list(sides)):
            say(f"seed {seed}: {name} ...")
            runs[name].append(sides[name](replace(base, seed=seed)))
            say(f"seed {seed}: {name} took {runs[name][-1].total_s:.1f} s for {base.steps} steps")
    result = _compare(runs)
    if options.json:
        workload = {**asdict(base), "seed": list(range(options.seeds))}
        trl = {"per_device_train_batch_size": batch_size, "pilot_median_step_s": pilot}
        details = {name: [asdict(run) for run in measured] for name, measured in runs.items()}
        print(json.dumps({"workload": workload, "load_before": load, "trl": trl, **result, "runs": details}, indent=2))
    else:
        _print_table(result)
    return 0 if all(bar["met"] for bar in result["bars"].values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="tiny-base", help="a shipped base or a model directory")
    parser.add_argument("--steps", type=int, default=15, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; they are 0, 1, ...")
    parser.add_argument("--problems", type=int, default=32, help="problems of a step")
    parser.add_argument("--samples", type=int, default=16, help="completions of each problem")
    parser.add_argument("--max-tokens", type=int, default=256, help="length limit of a completion")
    parser.add_argument("--learning-rate", type=float, default=1.5e-4, help="constant on both sides")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument(
        "--trl-batch-sizes",
        type=int,
        nargs="+",
        default=[32, 64, 128, 512],
        help="TRL's per_device_train_batch_size; of several, a pilot takes the fastest",
    )
    parser.add_argument("--pilot-steps", type=int, default=3, help="steps of the pilot at each batch size")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


# --- reasonmill -----------------------------------------------------------------------------------------------------


def run_reasonmill(workload: Workload) -> Measured:
    """Runs a recipe of one `rl` stage by the command line and reads what the ledger says of it."""
    with tempfile.TemporaryDirectory(prefix="cpu-vs-trl-") as work:
        recipe, home = Path(work) / "recipe.toml", Path(work) / "mill"
        recipe.write_text(_recipe(workload))
        command = [sys.executable, "-m", "reasonmill", "run", str(recipe), "--home", str(home), "--device", "cpu"]
        subprocess.run(command, env=environment(workload.threads), check=True, stdout=sys.stderr)
        threads = json.loads((home / "runs" / RECIPE / "summary.json").read_text())["threads"]
        if threads != workload.threads:
            raise RuntimeError(f"reasonmill ran with {threads} threads instead of {workload.threads}")
        with Home.open(home, write=False) as opened:
            return _from_ledger(opened, workload.seed)


def _recipe(workload: Workload) -> str:
    clip = LossSettings(algorithm="grpo").constants
    return f"""
name = "{RECIPE}"
seed = {workload.seed}

[[stage]]
name = "zero"
kind = "rl"
from = {json.dumps(workload.model)}
tasks = {{ {TASK} = 1.0 }}
rewards = {{ {", ".join(f"{name} = {weight}" for name, weight in REWARDS.items())} }}
steps = {workload.steps}
problems_per_step = {workload.problems}
group_size = {workload.samples}
updates_per_step = 1
precision = "fp32"
sampling = {{ temperature = 1.0, max_tokens = {workload.max_tokens} }}
loss = {{ algorithm = "grpo", clip_low = {clip["clip_low"]}, clip_high = {clip["clip_high"]}, kl_coefficient = 0.0 }}
schedule = {{ peak = {workload.learning_rate!r} }}
"""


def _from_ledger(home: Home, seed: int) -> Measured:
    (run,) = home.ledger.runs()
    key = run.stages[0].key
    record = home.ledger.stage(key)
    assert record is not None  # the command line ended well
    steps = []
    for entry in home.ledger.metrics(key):
        digest = home.ledger.step_groups(key, entry["step"])
        assert digest is not None
        groups = read_groups(home.objects.path(digest) / GROUPS_FILE)
        rewards = [statistics.fmean(graded(group.rewards)) for group in groups]
        steps.append(Step(entry["speed/step_s"], entry["speed/sampling_s"], int(entry["tokens/sampled"]), rewards))
    return Measured(seed, steps, record.seconds)


def _fastest_batch_size(base: Workload, sizes: Sequence[int], pilot_steps: int) -> tuple[int, dict[int, float]]:
    """TRL's micro-batch with the shortest median step, and that of each candidate; no pilot where there is one."""
    if len(sizes) == 1:
        return sizes[0], {}
    medians = {}
    for size in sizes:
        if base.rollouts % size == 0:
            measured = run_trl(replace(base, steps=pilot_steps), size)
            medians[size] = statistics.median(step.step_s for step in measured.steps)
            say(f"pilot: TRL with per_device_train_batch_size {size}: {medians[size]:.2f} s a step")
    if not medians:
        raise SystemExit(f"none of --trl-batch-sizes {list(sizes)} divides the {base.rollouts} rollouts of a step")
    return min(medians, key=lambda size: medians[size]), medians


# --- comparison -----------------------------------------------------------------------------------------------------


def _compare(runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """Figures of both sides, their ratios, the bars, and the difference of the last rewards."""
    figures = {name: _figures(measured) for name, measured in runs.items()}
    ours, theirs = figures["reasonmill"], figures["trl"]
    shorter = {name: theirs[name] / ours[name] for name in ours if name.endswith("_s")}
    more = {name: ours[name] / theirs[name] for name in ours if name not in shorter}
    bars = {
        "step shorter": {"ratio": shorter["step_s"], "bar": STEP_BAR, "met": shorter["step_s"] >= STEP_BAR},
        "rollout tokens/s": {
            "ratio": more["rollout_tokens_per_second"],
            "bar": TOKENS_BAR,
            "met": more["rollout_tokens_per_second"] >= TOKENS_BAR,
        },
    }
    return {"figures": figures, "ratios": {**shorter, **more}, "bars": bars, "last_rewards": _last_rewards(runs)}


def _figures(measured: Sequence[Measured]) -> dict[str, float]:
    steps = [step for run in measured for step in run.steps]
    return {
        "step_s": statistics.median(step.step_s for step in steps),
        "whole_run_per_step_s": sum(run.total_s for run in measured) / len(steps),
        "rollout_s": statistics.median(step.rollout_s for step in steps),
        "rollout_tokens_per_second": statistics.median(step.tokens / step.rollout_s for step in steps),
        "step_tokens_per_second": statistics.median(step.tokens / step.step_s for step in steps),
        "tokens_per_step": statistics.fmean(step.tokens for step in steps),
    }


def _last_rewards(runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """Mean reward of the last steps, and the difference, which is paired: both sides have the same problems.

    With three seeds or more an interval is that of the seeds, which holds the spread between runs; with fewer it is
    that of the problems, and too narrow by that spread.
    """
    by_seed = len(runs["reasonmill"]) >= 3
    values: dict[str, list[float]] = {}
    clusters: list[int] = []
    for name, measured in runs.items():
        groups = [(run.seed, reward) for run in measured for step in run.steps[-LAST_STEPS:] for reward in step.rewards]
        # Runs of the two sides are in the order of seeds, so equal places are the same problem.
        values[name] = [reward for _, reward in groups]
        clusters = [seed if by_seed else place for place, (seed, _) in enumerate(groups)]
    values["difference"] = [ours - other for ours, other in zip(values["reasonmill"], values["trl"], strict=True)]
    estimates = {name: clustered_mean(numbers, clusters) for name, numbers in values.items()}
    difference = estimates["difference"]
    return {
        **{name: estimate.as_metric() for name, estimate in estimates.items()},
        "interval_over": "seeds" if by_seed else "problems",
        "steps": min(LAST_STEPS, len(runs["reasonmill"][0].steps)),
        "within_noise": difference.low <= 0 <= difference.high,
    }


_ROWS = {
    "step_s": ("step, median s", ".2f"),
    "whole_run_per_step_s": ("whole run, s per step", ".2f"),
    "rollout_s": ("rollout, median s", ".2f"),
    "rollout_tokens_per_second": ("tokens/s in rollouts, median", ",.0f"),
    "step_tokens_per_second": ("tokens/s over whole steps, median", ",.0f"),
    "tokens_per_step": ("tokens sampled in a step, mean", ",.0f"),
}


def _print_table(result: dict[str, Any]) -> None:
    print(f"{'':36}{'reasonmill':>12}{'TRL':>12}{'ratio':>9}")
    for name, (label, form) in _ROWS.items():
        ours, theirs = (result["figures"][side][name] for side in ("reasonmill", "trl"))
        print(f"{label:36}{ours:>12{form}}{theirs:>12{form}}{result['ratios'][name]:>8.2f}x")
    rewards = result["last_rewards"]
    print(f"\nreward, mean of the last {rewards['steps']} steps (95 % interval over {rewards['interval_over']}):")
    for name in ("reasonmill", "trl", "difference"):
        estimate = Estimate(**rewards[name])
        print(f"  {name:12}{estimate.value:7.3f}  [{estimate.low:.3f}, {estimate.high:.3f}]")
    print(f"  the difference is {'within' if rewards['within_noise'] else 'outside of'} the noise\n")
    for name, bar in result["bars"].items():
        print(f"{'met   ' if bar['met'] else 'MISSED'}  {name}: {bar['ratio']:.2f}x, bar {bar['bar']:.0f}x")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReasonmillError, subprocess.CalledProcessError) as error:
        sys.exit(f"cpu_vs_trl.py: {error}")
