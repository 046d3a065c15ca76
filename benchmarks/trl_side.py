"""TRL's side of `cpu_vs_trl.py`: its GRPOTrainer in a process of its own, which this file is as a script."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpo_workload import REWARDS, TASK, Measured, Step, Workload, environment, graded, say

from reasonmill.algo.losses import LossSettings
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.plugins.catalogue import installed
from reasonmill.render import renderer_for
from reasonmill.rewards.combination import RewardWeights
from reasonmill.types import Completion


def run_trl(workload: Workload, batch_size: int) -> Measured:
    """Runs TRL in a child process."""
    with tempfile.TemporaryDirectory(prefix="cpu-vs-trl-") as work:
        order = {"workload": asdict(workload), "batch_size": batch_size, "work": work}
        command = [sys.executable, __file__, json.dumps(order)]
        subprocess.run(command, env=environment(workload.threads), check=True, stdout=sys.stderr)
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
            grades = self._weights.grade(installed().task(TASK), problem, completions, noise=(index,))
            for place, reward in zip(places, graded([grade.reward for grade in grades]), strict=True):
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


def _train(order: dict[str, Any]) -> None:
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
            say(
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
    clip = LossSettings(algorithm="grpo").constants
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
        epsilon=clip["clip_low"],
        epsilon_high=clip["clip_high"],
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


if __name__ == "__main__":
    _train(json.loads(sys.argv[1]))
