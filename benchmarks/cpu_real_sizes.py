"""Models of real size on the CPU: sampling, forward and backward passes and whole GRPO steps, beside others' code.

    python benchmarks/cpu_real_sizes.py MODEL

What is compared are CPU-seconds of the processes, not time, so that a machine that does other things, too, gives nearly
the same figures. Both sides are in fp32, have the same number of threads, and take turns. Exit code 1 if a bar is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_vs_trl import run_reasonmill
from grpo_workload import TASK, Workload, say
from transformers import AutoModelForCausalLM
from trl_side import run_trl

from reasonmill.algo import packing
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import load_decoder
from reasonmill.plugins.catalogue import installed
from reasonmill.randomness import key
from reasonmill.render import renderer_for
from reasonmill.sample.engines import engine_of
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Example, Request, SamplingParams

# How many times as many CPU-seconds the others must take.
BARS = {"sampling": 2.0, "passes": 1.0, "prompts": 3.0, "step": 1.5}
GROUP = 8  # completions of a problem
# Lengths of texts that are learned from, and what part of each is context that the loss does not weigh.
TEXTS = {"ragged": ([96, 88, 80, 72, 64, 60, 56, 52], 1 / 3), "all weighed": ([96] * 8, 0.0)}


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    # What is evaluated in child processes has the same.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    figures: dict[str, dict[str, Any]] = {}
    for part in options.parts:
        if part == "sampling":
            figures |= {f"sampling {count}": _sampling(options, count) for count in options.sequences}
        elif part == "passes":
            figures |= {f"passes {name}": _passes(options, *shape) for name, shape in TEXTS.items()}
        elif part == "prompts":
            figures[part] = _prompts(options)
        else:
            figures[part] = _step(options)
    missed = False
    for name, figure in figures.items():
        bar = BARS[name.partition(" ")[0]]
        figure |= {"ratio": figure["others"] / figure["reasonmill"], "bar": bar}
        figure["met"] = figure["ratio"] >= bar
        missed |= not figure["met"]
    if options.json:
        print(json.dumps({"model": options.model, "threads": options.threads, "figures": figures}, indent=2))
    else:
        for name, figure in figures.items():
            print(
                f"{'met   ' if figure['met'] else 'MISSED'}  {name}: {figure['ratio']:.2f}x, bar {figure['bar']}x  "
                f"({figure['unit']}: reasonmill {figure['reasonmill']:.3f}, others {figure['others']:.3f})"
            )
    return int(missed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="a model directory")
    parser.add_argument("--parts", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--sequences", type=int, nargs="+", default=[16, 64], help="that are sampled together")
    parser.add_argument("--max-tokens", type=int, default=64, help="length limit of a completion")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that a group shares (prompts)")
    parser.add_argument("--repeat", type=int, default=3, help="turns of sampling and of passes; medians are compared")
    parser.add_argument("--steps", type=int, default=2, help="GRPO steps that are counted")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _cpu_s(of: int = resource.RUSAGE_SELF) -> float:
    """CPU-seconds so far of this process, or of child processes that have ended."""
    used = resource.getrusage(of)
    return used.ru_utime + used.ru_stime


def _turns(
    options: argparse.Namespace, unit: str, ours: Callable[[], int], others: Callable[[], int]
) -> dict[str, Any]:
    """Milliseconds of both, for each of the tokens that they return; a first turn is not counted."""
    taken: dict[str, list[float]] = {"reasonmill": [], "others": []}
    for turn in range(options.repeat + 1):
        for name, do in (("reasonmill", ours), ("others", others)):
            began = _cpu_s()
            tokens = do()
            if turn:
                taken[name].append((_cpu_s() - began) * 1000 / tokens)
                say(f"{unit}: {name} {taken[name][-1]:.3f}")
    return {"unit": unit, "turns": taken, **{name: statistics.median(values) for name, values in taken.items()}}


def _sampling(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Completions of groups of problems: continuous batching against one call of `generate()`, until all have ended."""
    model = Path(options.model)
    renderer = renderer_for(model)
    problems = [installed().task(TASK).problem("train", options.seed, index) for index in range(count // GROUP)]
    prompts = [renderer.render(problem.messages) for problem in problems for _ in range(GROUP)]
    params = SamplingParams(max_tokens=options.max_tokens)
    sampler = EngineSampler(
        engine_of(load_decoder(model, device="cpu", dtype=torch.float32), renderer, num_slots=count)
    )
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    stops = sorted(renderer.stop_tokens)

    def ours() -> int:
        requests = [Request(prompt, params, key("bench", options.seed, place)) for place, prompt in enumerate(prompts)]
        return sum(completion.num_sampled for _, completion in sampler.generate(requests))

    @torch.inference_mode()
    def others() -> int:
        torch.manual_seed(options.seed)
        width = max(map(len, prompts))
        padded = torch.tensor([[stops[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        rows = network.generate(
            input_ids=padded,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=options.max_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )[:, width:]
        # Up to its first stop token, which counts.
        ended = torch.isin(rows, torch.tensor(stops)).cumsum(1)
        return int((ended.roll(1, 1).index_fill(1, torch.tensor([0]), 0) == 0).sum())

    return _turns(options, f"ms a token, {count} sequences", ours, others)


def _passes(options: argparse.Namespace, lengths: list[int], context: float) -> dict[str, Any]:
    """Forward and backward of texts of these lengths, a part of each of which the loss does not weigh."""
    model = Path(options.model)
    numbers = np.random.default_rng(options.seed)
    learner = LocalLearner(load_decoder(model, device="cpu", dtype=torch.float32), OptimizerSettings())
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    texts = [numbers.integers(0, network.config.vocab_size, length) for length in lengths]
    # The first token of a text is no target.
    weighed = [(np.arange(len(text)) >= max(1, int(context * len(text)))).astype(np.float32) for text in texts]
    (batch,) = pack([Example(text, weights, "ce") for text, weights in zip(texts, weighed, strict=True)], sum(lengths))
    ids = torch.zeros(len(texts), max(lengths), dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (text, weights) in enumerate(zip(texts, weighed, strict=True)):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), 1
        labels[row, : len(text)] = torch.where(torch.from_numpy(weights) > 0, torch.from_numpy(text), -100)

    def ours() -> int:
        learner.forward_backward(batch, LossSettings(), float(batch.weights.sum()))
        learner.decoder.network.zero_grad(set_to_none=True)
        return sum(lengths)

    def others() -> int:
        network(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        network.zero_grad(set_to_none=True)
        return sum(lengths)

    return _turns(options, f"ms a token of forward and backward, {sum(lengths)} tokens", ours, others)


def _prompts(options: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward of a group's completions after one prompt, against rows that repeat it for each of them."""
    learner = LocalLearner(load_decoder(Path(options.model), device="cpu", dtype=torch.float32), OptimizerSettings())
    numbers = np.random.default_rng(options.seed)
    prompt, *own = (
        numbers.integers(0, learner.decoder.head_weight.shape[0], length)
        for length in (options.prompt, *range(32, 32 + 8 * GROUP, 8))
    )
    trained = sum(map(len, own))
    examples = [
        Example(np.concatenate([prompt, text]), np.repeat(np.float32([0, 1]), [len(prompt), len(text)]), "ce")
        for text in own
    ]
    packed = {}
    shared_from = packing.SHARED_FROM
    for name, packing.SHARED_FROM in (("once", 1), ("repeated", sys.maxsize)):
        packed[name] = pack(examples, 4096)
        positions = [batch.num_tokens for batch in packed[name]]
        say(f"prompt {name}: {sum(positions)} positions in rows of {positions}")
    packing.SHARED_FROM = shared_from

    def passes(name: str) -> int:
        for batch in packed[name]:
            learner.forward_backward(batch, LossSettings(), float(trained))
        learner.decoder.network.zero_grad(set_to_none=True)
        return trained

    unit = f"ms a token of a completion, forward and backward, prompt of {options.prompt}"
    return _turns(options, unit, partial(passes, "once"), partial(passes, "repeated"))


def _step(options: argparse.Namespace) -> dict[str, Any]:
    """A GRPO step with its start left out: what a run of some more steps takes than a run of one."""
    workload = Workload(
        model=str(Path(options.model).resolve()),
        seed=options.seed,
        steps=1,
        problems=2,
        samples=GROUP,
        max_tokens=options.max_tokens,
        learning_rate=1e-6,
        threads=options.threads,
    )
    sides: dict[str, Callable[[Workload], Any]] = {
        "reasonmill": run_reasonmill,
        "others": lambda asked: run_trl(asked, asked.rollouts),
    }
    taken = {}
    for name, run in sides.items():
        used = []
        for steps in (1, 1 + options.steps):
            began = _cpu_s(resource.RUSAGE_CHILDREN)
            run(replace(workload, steps=steps))
            used.append(_cpu_s(resource.RUSAGE_CHILDREN) - began)
        taken[name] = (used[1] - used[0]) / options.steps
        say(f"step: {name} {taken[name]:.1f} CPU-seconds")
    return {"unit": "CPU-seconds a step", **taken}


if __name__ == "__main__":
    sys.exit(main())
