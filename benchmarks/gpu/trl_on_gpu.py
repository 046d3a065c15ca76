"""TRL's side of `against_trl.py`: its GRPOTrainer with colocated vLLM, in a process of its own.

It needs an interpreter that has TRL, datasets and vLLM, and nothing of reasonmill. What it is to do is a JSON text, its
only argument; it prints a line of JSON for each micro-batch that it tried, and a last one for the steps that count.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from even import even


def main(order: dict[str, Any]) -> None:
    """Tries each micro-batch for a few steps, and goes on with the fastest.

    Args:
        order: "model" and "rows", paths; "work", a directory for what TRL writes; "problems" of a step and "samples" of
            each; "max_tokens"; "prompt", tokens of a prompt; "learning_rate"; "batch_sizes" that are tried, and for how
            many "pilot_steps"; "steps"; vLLM's "memory_share", 0 for none of vLLM; "device".
    """
    import torch
    import transformers
    import trl
    from datasets import Dataset

    rows = [json.loads(line) for line in Path(order["rows"]).read_text(encoding="utf-8").splitlines()]
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    steps: list[dict[str, float]] = []
    ends: list[float] = []
    first_ends: list[float] = []  # by the clock that other processes have, too

    class Timed(trl.GRPOTrainer):  # type: ignore[misc]
        def _generate(self, prompts: list[Any]) -> Any:
            began = time.perf_counter()
            generated = super()._generate(prompts)
            if {len(tokens) for tokens in generated[0]} != {order["prompt"]}:
                raise RuntimeError("TRL reads prompts of other lengths than reasonmill")
            tokens = sum(len(tokens) for tokens in generated[1])
            steps.append({"rollout_s": time.perf_counter() - began, "tokens": tokens})
            return generated

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if order["device"] == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            steps[-1]["step_s"] = ends[-1] - ends[-2]
            first_ends.append(time.time())

    trainer = Timed(
        model=order["model"],
        args=_config(order),
        reward_funcs=even,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        callbacks=[Clock()],
    )

    def trained(batch_size: int, count: int) -> list[dict[str, float]]:
        steps.clear()
        rollouts = order["problems"] * order["samples"]
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = batch_size
        trainer.args.gradient_accumulation_steps = trainer.args.steps_per_generation = rollouts // batch_size
        trainer.args.max_steps = count
        trainer._step, trainer._buffered_inputs = 0, None
        trainer.train()
        if len(steps) != count:
            raise RuntimeError(f"TRL made {len(steps)} rollouts in {count} steps; they should be as many")
        return list(steps)

    tried: dict[int, float] = {}
    for batch_size in order["batch_sizes"]:
        result: dict[str, Any] = {"batch_size": batch_size}
        try:
            result["steps"] = trained(batch_size, order["pilot_steps"])
            tried[batch_size] = min(step["step_s"] for step in result["steps"])
        except torch.OutOfMemoryError:
            result["steps"] = None
            trainer.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        print(json.dumps(result), flush=True)
    if not tried:
        sys.exit("trl_on_gpu.py: no micro-batch fits into the card's memory")
    fastest = min(tried, key=lambda size: tried[size])
    result = {"batch_size": fastest, "steps": trained(fastest, order["steps"])}
    result |= {"first_end": first_ends[0], "trl": trl.__version__, "dtype": str(trainer.model.dtype)}
    if order["device"] == "cuda":
        free, whole = torch.cuda.mem_get_info()
        result["used_gib"] = round((whole - free) / 2**30, 1)
    print(json.dumps(result), flush=True)


def _config(order: dict[str, Any]) -> Any:
    """The same computation as reasonmill's recipe, and TRL's fastest way to do it."""
    from trl import GRPOConfig

    batch_size = order["batch_sizes"][0]
    rollouts = order["problems"] * order["samples"]
    on_cuda = order["device"] == "cuda"
    return GRPOConfig(
        output_dir=order["work"],
        seed=0,
        # One rollout phase of all completions at once, and one optimizer step on them.
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=rollouts // batch_size,
        generation_batch_size=rollouts,
        num_generations=order["samples"],
        num_iterations=1,
        max_completion_length=order["max_tokens"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        use_vllm=on_cuda,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=order["memory_share"],
        vllm_max_model_length=order["prompt"] + order["max_tokens"],
        loss_type="grpo",
        scale_rewards="group",
        epsilon=0.2,
        epsilon_high=0.2,
        beta=0.0,
        learning_rate=order["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=on_cuda,
        use_cpu=not on_cuda,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
