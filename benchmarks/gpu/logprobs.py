"""How far log-probs of sampler, learner and transformers are from fp32 on one GPU, and the first two from each other.

The same tokens four ways: as the sampler gave them when it drew them (the ragged load of `rollouts.py`), by the learner
over packed rows, by transformers one sequence at a time in the model's dtype, and by transformers in fp32, which the
others are compared with. With `--dtype float32` all are in fp32, by other kernels. Exit code 1 if a bar is missed.

    PYTHONPATH=src python benchmarks/gpu/logprobs.py --size 0.5b
    PYTHONPATH=src python benchmarks/gpu/logprobs.py --size 0.5b --dtype float32 --completions 40
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rollouts import ARCHITECTURES, Words, decoder_of, requests_of, run
from shapes import SIZES
from torch import Tensor
from transformers import AutoModelForCausalLM

from reasonmill.algo.packing import pack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder
from reasonmill.sample.cuda.engine import CudaEngine
from reasonmill.types import Completion, Example, Request

ROW = 16384  # positions of a row of the learner
# Bars in bf16: sampler and learner as many times as far from fp32 as transformers, and from each other. In fp32: nats.
NO_FURTHER, APART = 1.0, 1.5
EXACT_MEAN, EXACT_MAX = 1e-5, 1e-3


@torch.inference_mode()
def scored(network: Any, request: Request, completion: Completion) -> Tensor:
    """Log-probs of a completion's tokens, [T], by a plain forward pass of transformers."""
    row = torch.tensor([request.prompt_tokens + completion.tokens], device="cuda")
    first = len(request.prompt_tokens) - 1
    logits = network(row, use_cache=False).logits[0, first:-1].float()
    return torch.log_softmax(logits, -1).gather(1, row[0, first + 1 :, None]).squeeze(1).cpu()


def plain(decoder: Decoder, dtype: torch.dtype) -> Any:
    """The same weights in transformers' own network."""
    with torch.device("cuda"):
        config = copy.deepcopy(decoder.config)
        network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    network.load_state_dict(decoder.network.state_dict())
    return network.eval()


def all_ways(decoder: Decoder, requests: Sequence[Request], completions: Sequence[Completion]) -> dict[str, Tensor]:
    """Log-probs of all completions' tokens by name, fp64 [T], in the same order."""
    dtype = next(decoder.network.parameters()).dtype
    networks = {"fp32": plain(decoder, torch.float32), "transformers": plain(decoder, dtype)}
    examples = []
    for request, completion in zip(requests, completions, strict=True):
        context = [0.0] * len(request.prompt_tokens)
        found = {name: scored(network, request, completion).tolist() for name, network in networks.items()}
        examples.append(
            Example(
                tokens=[*request.prompt_tokens, *completion.tokens],
                weights=[*context, *[1.0] * len(completion.tokens)],
                loss="pg",
                advantages=[0.0] * (len(context) + len(completion.tokens)),
                # The learner's rows are packed in an order of their own; what is to be compared travels with them.
                sampler_logprobs=[*context, *completion.logprobs],
                old_logprobs=[*context, *found["transformers"]],
                ref_logprobs=[*context, *found["fp32"]],
            )
        )
    del networks
    learner = LocalLearner(decoder, OptimizerSettings())
    ways: dict[str, list[Tensor]] = {"fp32": [], "transformers": [], "sampler": [], "learner": []}
    for batch in pack(examples, ROW):
        sampled = batch.weights > 0
        given = {"fp32": batch.ref_logprobs, "transformers": batch.old_logprobs, "sampler": batch.sampler_logprobs}
        for name, values in {**given, "learner": learner.logprobs(batch).cpu()}.items():
            assert values is not None
            ways[name].append(values[sampled].double())
    return {name: torch.cat(parts) for name, parts in ways.items()}


def distances(ways: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Mean and largest distance in nats: of each way from fp32, and of sampler and learner from each other."""
    pairs = {name: (ways[name], ways["fp32"]) for name in ("sampler", "learner", "transformers")}
    pairs["sampler and learner"] = (ways["sampler"], ways["learner"])
    gaps = {name: (one - other).abs() for name, (one, other) in pairs.items()}
    return {name: (float(gap.mean()), float(gap.max())) for name, gap in gaps.items()}


def verdicts(found: dict[str, tuple[float, float]], dtype: str) -> dict[str, bool]:
    """Which bars are met."""
    if dtype == "float32":
        mean, largest = found["sampler and learner"]
        return {
            f"apart by {EXACT_MEAN} in the mean and {EXACT_MAX} at most": mean <= EXACT_MEAN and largest <= EXACT_MAX
        }
    theirs = found["transformers"][0]
    return {
        f"{name} at most {NO_FURTHER} times as far from fp32 as transformers": found[name][0] <= NO_FURTHER * theirs
        for name in ("sampler", "learner")
    } | {f"apart by at most {APART} times that": found["sampler and learner"][0] <= APART * theirs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2")
    parser.add_argument("--layers", choices=("kernels", "transformers"), default="kernels", help="the sampler's")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--completions", type=int, default=220, help="of 512 tokens in the mean (default: 220)")
    args = parser.parse_args()
    by_kernels = args.layers == "kernels"
    decoder = decoder_of(args.size, args.architecture, by_kernels=by_kernels, dtype=getattr(torch, args.dtype))
    requests = requests_of("ragged")[: args.completions]
    engine = CudaEngine(decoder, Words(), num_slots=len(requests))
    completions, _ = run(engine, requests)
    del engine
    ways = all_ways(decoder, requests, completions)
    found = distances(ways)
    met = verdicts(found, args.dtype)
    settings = {"size": args.size, "architecture": args.architecture, "layers": args.layers, "dtype": args.dtype}
    print(json.dumps({**settings, "tokens": ways["fp32"].numel(), "nats": found, "met": met}))
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
