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
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reasonmill.algo.intervals import Estimate, clustered_mean
from reasonmill.algo.losses import LossSettings
from reasonmill.errors import ReasonmillError
from reasonmill.learn.adamw import OptimizerSettings
from reasonmill.recipe.reference import model_directory
from reasonmill.render import renderer_for
from reasonmill.rewards.combination import RewardWeights
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.tasks import registry
from reasonmill.types import Completion, Problem

STEP_BAR = 6.0  # how many times shorter reasonmill's median step must be
TOKENS_BAR = 5.0  # how many times more tokens a second its rollouts must make
BUSY_LOAD = 0.5  # above this load average something else is running
LAST_STEPS = 5  # the steps whose rewards are compared
TASK = "countdown-3"
REWARDS = {"accuracy": 1.0, "format": 1.0}
RECIPE = "cpu-vs-trl"


@dataclass(frozen=True)
class Workload:
    """What both sides are given."""

    model: str
    seed: int
    steps: int
    problems: int
    samples: int
    max_tokens: int
    learning_rate: float
    threads: int

    @property
    def rollouts(self) -> int:
        """Completions of one step."""
        return self.problems * self.samples

    def problem(self, index: int) -> Problem:
        """Training problem `index`; step s uses those from s * problems on."""
        return registry.get(TASK).problem("train", self.seed, index)


@dataclass
class Step:
    """One step of one side. `rewards` holds the mean reward of each problem's group, in the order of the problems."""

    step_s: float
    rollout_s: float
    tokens: int
    rewards: list[float]


@dataclass
class Measured:
    """All steps of one run. `total_s` has everything between the first step's begin and the trained model."""

    seed: int
    steps: list[Step]
    total_s: float


def main() -> int:
    options = _parser().parse_args()
    if options.trl_child is not None:
        _trl_child(json.loads(options.trl_child))
        return 0
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
    _say(f"model {base.model}; seeds {list(range(options.seeds))}; {base.steps} steps of {base.rollouts} rollouts")
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        _say(f"warning: the load average is {load:.1f}; threads that wait for a shared core spoil the timings")
    batch_size, pilot = _fastest_batch_size(base, options.trl_batch_sizes, options.pilot_steps)
    sides: dict[str, Callable[[Workload], Measured]] = {
        "reasonmill": _run_reasonmill,
        "trl": lambda workload: _run_trl(workload, batch_size),
    }
    runs: dict[str, list[Measured]] = {name: [] for name in sides}
    for seed in range(options.seeds):
        # Who goes first alternates, so that a machine that grows warmer or busier favours neither.
        for name in list(sides) if seed % 2 == 0 else reversed(list(sides)):
            _say(f"seed {seed}: {name} ...")
            runs[name].append(sides[name](replace(base, seed=seed)))
            _say(f"seed {seed}: {name} took {runs[name][-1].total_s:.1f} s for {base.steps} steps")
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
    parser.add_argument("--trl-child", help=argparse.SUPPRESS)  # how this script starts TRL in a process of its own
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _environment(threads: int) -> dict[str, str]:
    """The same for both sides; nothing is fetched from anywhere."""
    count = str(threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}


# --- reasonmill -----------------------------------------------------------------------------------------------------


def _run_reasonmill(workload: Workload) -> Measured:
    """Runs a recipe of one `rl` stage by the command line and reads what the ledger says of it."""
    with tempfile.TemporaryDirectory(prefix="cpu-vs-trl-") as work:
        recipe, home = Path(work) / "recipe.toml", Path(work) / "mill"
        recipe.write_text(_recipe(workload))
        command = [sys.executable, "-m", "reasonmill", "run", str(recipe), "--home", str(home), "--device", "cpu"]
        subprocess.run(command, env=_environment(workload.threads), check=True, stdout=sys.stderr)
        threads = json.loads((home / "runs" / RECIPE / "summary.json").read_text())["threads"]
        if threads != workload.threads:
            raise RuntimeError(f"reasonmill ran with {threads} threads instead of {workload.threads}")
        with Home.open(home, write=False) as opened:
            return _from_ledger(opened, workload.seed)


def _recipe(workload: Workload) -> str:
    low, high = LossSettings(algorithm="grpo").clip
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
loss = {{ algorithm = "grpo", clip_low = {low}, clip_high = {high}, kl_coefficient = 0.0 }}
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
        rewards = [statistics.fmean(_graded(group.rewards)) for group in groups]
        steps.append(Step(entry["speed/step_s"], entry["speed/sampling_s"], int(entry["tokens/sampled"]), rewards))
    return Measured(seed, steps, record.seconds)


def _graded(rewards: Sequence[float | None]) -> list[float]:
    graded = [reward for reward in rewards if reward is not None]
    if len(graded) != len(rewards):
        raise RuntimeError("a rollout could not be graded, which the rules of this task never refuse")
    return graded


# --- TRL ------------------------------------------------------------------------------------------------------------


def _fastest_batch_size(base: Workload, sizes: Sequence[int], pilot_steps: int) -> tuple[int, dict[int, float]]:
    """TRL's micro-batch with the shortest median step, and that of each candidate; no pilot where there is one."""
    if len(sizes) == 1:
        return sizes[0], {}
    medians = {}
    for size in sizes:
        if base.rollouts % size == 0:
            measured = _run_trl(replace(base, steps=pilot_steps), size)
            medians[size] = statistics.median(step.step_s for step in measured.steps)
            _say(f"pilot: TRL with per_device_train_batch_size {size}: {medians[size]:.2f} s a step")
    if not medians:
        raise SystemExit(f"none of --trl-batch-sizes {list(sizes)} divides the {base.rollouts} rollouts of a step")
    return min(medians, key=lambda size: medians[size]), medians


def _run_trl(workload: Workload, batch_size: int) -> Measured:
    """Runs TRL in a child process."""
    with tempfile.TemporaryDirectory(prefix="cpu-vs-trl-") as work:
        order = {"workload": asdict(workload), "batch_size": batch_size, "work": work}
        command = [sys.executable, __file__, "--trl-child", json.dumps(order)]
        subprocess.run(command, env=_environment(workload.threads), check=True, stdout=sys.stderr)
        measured = json.loads((Path(work) / "measured.json").read_text())
    return Measured(workload.seed, [Step(**step) for step in measured["steps"]], measured["total_s"])


class _Grader:
    """TRL's reward function: reasonmill's renderer and grader on the completion's tokens."""

    __name__ = "accuracy_and_format"  # TRL names its metrics after the function

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._renderer = renderer_for(Path(workload.model))
        self._weights = RewardWeights(REWARDS)
        self.group_means: list[list[float]] = []  # of each step

    def __call__(self, completion_ids: list[list[int]], problem_index: list[int], **_: Any) -> list[float]:
        attempts: dict[int, list[int]] = {}
        for place, index in enumerate(problem_index):
            attempts.setdefault(index, []).append(place)
        rewards = [0.0] * len(completion_ids)
        for index, places in attempts.items():
            completions = [self._completion(completion_ids[place]) for place in places]
            problem = self._workload.problem(index)
            grades = self._weights.grade(registry.get(TASK), problem, completions, noise=(index,))
            for place, reward in zip(places, _graded([grade.reward for grade in grades]), strict=True):
                rewards[place] = reward
        self.group_means.append(
            [statistics.fmean(rewards[place] for place in attempts[index]) for index in sorted(attempts)]
        )
        return rewards

    def _completion(self, tokens: list[int]) -> Completion:
        stopped = bool(tokens) and tokens[-1] in self._renderer.stop_tokens
        return Completion(
            tokens=tuple(tokens),
            logprobs=None,
            sampled=(True,) * len(tokens),
            text=self._renderer.text(tokens),
            finish="stop" if stopped else "length",
            policy_version=0,
        )


def _trl_child(order: dict[str, Any]) -> None:
    """Trains with TRL and writes what was measured to measured.json of the working directory."""
    import torch
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    workload = Workload(**order["workload"])
    torch.set_num_threads(workload.threads)
    grader = _Grader(workload)
    rollouts: list[tuple[float, int]] = []
    step_ends: list[float] = []

    class TimedTrainer(GRPOTrainer):  # type: ignore[misc]
        def _generate(self, prompts: list[Any]) -> Any:
            began = time.perf_counter()
            generated = super()._generate(prompts)
            seconds = time.perf_counter() - began
            prompt_ids, completion_ids = generated[:2]
            if not rollouts:
                _require_same_prompts(workload, prompt_ids)
            rollouts.append((seconds, sum(len(tokens) for tokens in completion_ids)))
            return generated

    class StepClock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            step_ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_ends.append(time.perf_counter())
            _say(
                f"trl  {len(rollouts)}/{workload.steps}  reward {statistics.fmean(grader.group_means[-1]):.2f}  "
                f"length {rollouts[-1][1] / workload.rollouts:.1f}  {step_ends[-1] - step_ends[-2]:.2f} s"
            )

    trainer = TimedTrainer(
        model=workload.model,
        args=_trl_config(workload, order["batch_size"], order["work"]),
        reward_funcs=grader,
        train_dataset=_trl_dataset(workload),
        callbacks=[StepClock()],
    )
    began = time.perf_counter()
    trainer.train()
    total = time.perf_counter() - began
    if len(rollouts) != workload.steps:
        raise RuntimeError(f"TRL made {len(rollouts)} rollouts in {workload.steps} steps; they should be as many")
    steps = [
        asdict(Step(step_ends[i + 1] - step_ends[i], *rollouts[i], grader.group_means[i])) for i in range(len(rollouts))
    ]
    (Path(order["work"]) / "measured.json").write_text(json.dumps({"steps": steps, "total_s": total}))


def _trl_config(workload: Workload, batch_size: int, work: str) -> Any:
    """The same computation as reasonmill's recipe, and TRL's fastest way to do it on a CPU."""
    from trl import GRPOConfig

    optimizer = OptimizerSettings()
    low, high = LossSettings(algorithm="grpo").clip
    return GRPOConfig(
        output_dir=work,
        seed=workload.seed,
        max_steps=workload.steps,
        # One rollout phase of all completions at once, and one optimizer step on them.
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=workload.rollouts // batch_size,
        generation_batch_size=workload.rollouts,
        num_generations=workload.samples,
        num_iterations=1,
        shuffle_dataset=False,
        max_completion_length=workload.max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        loss_type="grpo",
        scale_rewards="group",
        epsilon=low,
        epsilon_high=high,
        beta=0.0,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch_fused",
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.clip_norm,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _trl_dataset(workload: Workload) -> Any:
    from datasets import Dataset

    indices = range(workload.steps * workload.problems)
    prompts = [
        [{"role": message.role, "content": message.content} for message in workload.problem(index).messages]
        for index in indices
    ]
    return Dataset.from_dict({"prompt": prompts, "problem_index": list(indices)})


def _require_same_prompts(workload: Workload, prompt_ids: Sequence[Sequence[int]]) -> None:
    """Both sides must read the same tokens, or they would not solve the same problems."""
    renderer = renderer_for(Path(workload.model))
    for place, tokens in enumerate(prompt_ids):
        expected = renderer.render(workload.problem(place // workload.samples).messages)
        if tuple(tokens) != expected:
            raise RuntimeError(f"TRL's prompt {place} is {list(tokens)}, reasonmill's is {list(expected)}")


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
