"""How much of a GPU's matrix rate the learner uses, and how exact and repeatable it is there.

Random weights of the shapes of Qwen2.5; nothing is fetched. The rows are ragged: prompts of 128 tokens, which are not
trained on, and completions of 1 to 1,024. An update is the real one: forward and backward of all batches with the
policy gradient, and the optimizer's step. Its rate is 6 * parameters * positions / seconds, over the rate of a large
product of bf16 matrices that is measured in the same command.

    PYTHONPATH=src python benchmarks/gpu/learner.py --size 0.5b 1.5b
    PYTHONPATH=src python benchmarks/gpu/learner.py --size 0.5b --any-order --profile

With groups, completions of one prompt follow each other, and each load is measured twice: packed as the learner packs
it, which reads a long prompt once in a row, and as if no prompt were long enough for that. Positions of prompts are
counted once for a group then, for both.

    PYTHONPATH=src python benchmarks/gpu/learner.py --size 0.5b --group 8 --prompt 2048 --sequences 64
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from card import MATRIX, matrix_rate, seconds, wait
from shapes import COMMON
from shapes import SIZES as QWEN
from torch import Tensor
from transformers import AutoModelForCausalLM

from reasonmill.algo import packing
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch, pack, unpack
from reasonmill.learn import local
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.attention import NAME
from reasonmill.model.decoder import Decoder, config_from, new_decoder
from reasonmill.randomness import generator
from reasonmill.types import Example

PROMPT, LONGEST = 128, 1024
SIZES: dict[str, dict[str, Any]] = {
    **QWEN,
    # For what is compared with fp32: heads are larger than the usual 0.02 makes them, so that predictions differ.
    "small": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 20000,
        "initializer_range": 0.05,
    },
}


def main() -> int:
    options = _parser().parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        print(f"card: {torch.cuda.get_device_name(device)}; torch {torch.__version__}")
    packing.SHARED_FROM = options.shared_from
    if not options.no_checks:
        (_check if options.group == 1 else _check_groups)(device)
    if options.any_order:
        local.deterministic = lambda device: nullcontext()
    if not options.size:
        return 0
    peak = matrix_rate(device)
    print(f"product of bf16 matrices of {MATRIX}: {peak / 1e12:.0f} TFLOP/s")
    for size in options.size:
        _measure(size, device, peak, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="*", choices=["0.5b", "1.5b", "small"], default=["0.5b", "1.5b"])
    parser.add_argument("--sequences", type=int, default=128, help="of an update")
    parser.add_argument("--group", type=int, default=1, help="of them that have the same prompt")
    parser.add_argument("--prompt", type=int, default=PROMPT, help="tokens of each")
    parser.add_argument("--longest", type=int, default=LONGEST, help="tokens of a completion at most")
    parser.add_argument(
        "--shared-from", type=int, default=packing.SHARED_FROM, help="tokens of a prompt that is shared"
    )
    parser.add_argument("--tokens", type=int, default=16384, help="positions of a batch")
    parser.add_argument("--updates", type=int, default=3, help="that are timed, after one that is not")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--any-order", action="store_true", help="without deterministic gradients, for their cost")
    parser.add_argument("--recompute", action="store_true", help="keep no activations of layers")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take longest")
    parser.add_argument("--no-checks", action="store_true")
    return parser


def _examples(
    number: int, vocabulary: int, *, longest: int = LONGEST, prompt: int = PROMPT, group: int = 1
) -> list[Example]:
    numbers = generator("learner benchmark", number)
    made = []
    asked: list[int] = []
    for index in range(number):
        length = prompt + numbers.randrange(1, longest + 1)
        weights = [0.0] * prompt + [1.0] * (length - prompt)
        tokens = [numbers.randrange(vocabulary) for _ in range(length)]
        asked = tokens[:prompt] if index % group == 0 else asked
        made.append(
            Example(
                tokens=asked + tokens[prompt:],
                weights=weights,
                loss="pg",
                advantages=[float(1 - 2 * (index % 2))] * length,
                sampler_logprobs=[-10.0] * length,
            )
        )
    return made


def _measure(size: str, device: torch.device, peak: float, options: argparse.Namespace) -> None:
    config = config_from("qwen2", {**COMMON, **SIZES[size]})
    load = {"longest": options.longest, "prompt": options.prompt, "group": options.group}
    examples = _examples(options.sequences, config.vocab_size, **load)
    needed = _positions(pack(examples, sys.maxsize))
    cases = {"": pack(examples, options.tokens)}
    if options.group > 1:
        with _nothing_shared():
            repeated = pack(examples, options.tokens)
        cases = {", each prompt once in a row": cases[""], ", with each completion": repeated}
    with device:  # drawn there, which takes a moment; `new_decoder` draws the same weights everywhere
        decoder = Decoder(AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=torch.bfloat16))
    keywords = {"recompute": True} if options.recompute else {}
    learner = LocalLearner(decoder, OptimizerSettings(), **keywords)
    for name, batches in cases.items():
        began = time.perf_counter()
        learner.forward_backward(batches[0], LossSettings(), 1.0)
        learner.optim_step(1e-6)
        wait(device)
        print(f"{size}{name}: first step after {time.perf_counter() - began:.1f} s")
        _report(learner, batches, needed, device, peak, options)


def _positions(batches: Sequence[Batch]) -> int:
    return sum(batch.num_tokens for batch in batches)


@contextmanager
def _nothing_shared() -> Iterator[None]:
    """In the block, no prompt is long enough to be shared."""
    before, packing.SHARED_FROM = packing.SHARED_FROM, sys.maxsize
    try:
        yield
    finally:
        packing.SHARED_FROM = before


def _report(
    learner: LocalLearner,
    batches: Sequence[Batch],
    needed: int,
    device: torch.device,
    peak: float,
    options: argparse.Namespace,
) -> None:
    """Prints what an update by these batches takes, for `needed` positions that no update can do without."""
    trained = float(sum(batch.weights.sum() for batch in batches))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def gradients() -> None:
        for batch in batches:
            learner.forward_backward(batch, LossSettings(), trained)

    def update() -> None:
        gradients()
        learner.optim_step(1e-6)

    def scores() -> None:
        for batch in batches:
            learner.logprobs(batch)

    update()
    whole = statistics.median(seconds(device, update) for _ in range(options.updates))
    scoring = [seconds(device, scores) for _ in range(2)][-1]
    gathered = seconds(device, gradients)
    stepping = seconds(device, lambda: learner.optim_step(1e-6))
    rate = 6 * learner.num_parameters * needed / whole
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    order = "any order" if options.any_order else "deterministic"
    how = f"{order}, recomputed" if options.recompute else order
    print(
        f"  {how}: {learner.num_parameters / 1e9:.3f} billion parameters, {len(batches)} batches of "
        f"{_positions(batches)} positions, of which {needed} must be, and {trained:.0f} are trained on\n"
        f"  {rate / 1e12:.0f} TFLOP/s, {rate / peak:.1%} of the matrix rate; {needed / whole:,.0f} positions/s, "
        f"{trained / whole:,.0f} trained on\n"
        f"  update {whole:.3f} s (gradients {gathered:.3f}, optimizer {stepping:.3f}); scoring {scoring:.3f} s; "
        f"peak of memory {memory:.1f} GiB",
        flush=True,
    )
    if options.profile:
        _profile(update)


def _profile(work: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        work()
        torch.cuda.synchronize()
    kernels = [event for event in seen.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    print(f"  kernels: {total / 1e3:.1f} ms in all")
    for event in kernels[:24]:
        share = event.self_device_time_total / total
        print(f"    {event.self_device_time_total / 1e3:8.2f} ms {share:6.1%} {event.count:6} x {event.key[:100]}")


def _decoders(config: Any, device: torch.device) -> tuple[Decoder, Decoder]:
    """The same weights in fp32 and in bf16."""
    exact = new_decoder(config, seed=0, device="cpu", dtype=torch.bfloat16)  # weights that bf16 holds exactly
    rounded = new_decoder(config, seed=0, device=str(device), dtype=torch.bfloat16)
    return Decoder(exact.network.float().to(device)), rounded


def _check_groups(device: torch.device) -> None:
    """Rows that hold a prompt once and rows that repeat it, in bf16 against fp32; and the same bits twice."""
    config = config_from("qwen2", {**COMMON, **SIZES["small"]})
    examples = _examples(48, config.vocab_size, longest=256, prompt=512, group=8)
    exact, rounded = _decoders(config, device)
    once = pack(examples, 8192)
    with _nothing_shared():
        repeated = pack(examples, 8192)
    trained = torch.cat([torch.tensor(example.weights) for example in examples]) > 0
    cases = {
        "fp32, each prompt once in a row": (exact, once),
        "bf16, with each completion": (rounded, repeated),
        "bf16, each prompt once in a row": (rounded, once),
    }

    def scored(decoder: Decoder, batches: Sequence[Batch]) -> tuple[Tensor, list[Tensor]]:
        logprobs, gradients = _scored(decoder, batches)
        rows = unpack(logprobs, batches, examples)
        return torch.tensor([value for row in rows for value in row])[trained], gradients

    wanted, exact_gradients = scored(exact, repeated)
    print(
        f"{_positions(repeated)} positions, or {_positions(once)}: log-probs of {len(wanted)} tokens against fp32 with "
        "each completion, mean and largest difference, and the gradients' relative error"
    )
    for name, (decoder, batches) in cases.items():
        found, gradients = scored(decoder, batches)
        gap = (found - wanted).abs()
        print(f"  {name}: {gap.mean():.7f}, {gap.max():.6f}; {_distance(gradients, exact_gradients):.7f}")
    _print_whether_same((found, *gradients), scored(rounded, once))


def _print_whether_same(first: Sequence[Tensor], again: tuple[Tensor, list[Tensor]]) -> None:
    digest = hashlib.blake2b(digest_size=8)
    for values in first:
        digest.update(values.numpy().tobytes())
    same = all(map(torch.equal, first, (again[0], *again[1])))
    print(f"the same bits twice: {same}; another process must print {digest.hexdigest()}, too", flush=True)


def _check(device: torch.device) -> None:
    """Log-probs and gradients in bf16 against fp32, beside those of transformers; and the same bits twice."""
    config = config_from("qwen2", {**COMMON, **SIZES["small"]})
    examples = _examples(64, config.vocab_size, longest=512)
    exact, rounded = _decoders(config, device)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="sdpa", dtype=torch.bfloat16)
    plain.load_state_dict(rounded.network.state_dict())
    plain = plain.to(device).eval()
    batches = pack(examples, 8192)
    wanted, exact_gradients = _scored(exact, batches)
    found, own_gradients = _scored(rounded, batches)
    again = _scored(rounded, batches)
    other_batches = pack(examples, 3000)
    cut, cut_gradients = _scored(rounded, other_batches)
    theirs = torch.cat([_plain_logprobs(plain, batch) for batch in batches])
    trained = torch.cat([batch.weights for batch in batches]) > 0
    print(f"log-probs of {int(trained.sum())} tokens against fp32: mean and largest difference")
    for name, values in (("reasonmill", found), ("transformers, one sequence at a time", theirs)):
        gap = (values - wanted).abs()[trained]
        print(f"  {name}: {gap.mean():.5f}, {gap.max():.4f}")
    gap = (found - cut).abs()[trained]  # the same order: packing sorts by length
    print(f"  reasonmill in smaller batches, against itself: {gap.mean():.5f}, {gap.max():.4f}")
    for name, gradients in (("one size of batches", own_gradients), ("smaller batches", cut_gradients)):
        print(f"gradients, {name}, relative error against fp32: {_distance(gradients, exact_gradients):.4f}")
    _print_whether_same((found, *own_gradients), again)


def _scored(decoder: Decoder, batches: Sequence[Batch]) -> tuple[Tensor, list[Tensor]]:
    """Log-probs of all positions and the gradients of one update, on the CPU."""
    learner = LocalLearner(decoder, OptimizerSettings())
    logprobs = torch.cat([learner.logprobs(batch).cpu() for batch in batches])
    trained = sum(float(batch.weights.sum()) for batch in batches)
    for batch in batches:
        learner.forward_backward(batch, LossSettings(algorithm="reinforce"), trained)
    gradients = [parameter.grad.float().cpu() for parameter in decoder.network.parameters()]
    for parameter in decoder.network.parameters():
        parameter.grad = None
    return logprobs, gradients


@torch.no_grad()
def _plain_logprobs(network: Any, batch: Batch) -> Tensor:
    rows = []
    for inputs, targets in zip(batch.inputs.split(batch.lengths), batch.targets.split(batch.lengths), strict=True):
        logits = network(inputs[None].to(network.device)).logits[0].float()
        rows.append(torch.log_softmax(logits, -1).gather(1, targets[:, None].to(network.device))[:, 0].cpu())
    return torch.cat(rows)


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    squares = sum(float((mine - theirs).double().square().sum()) for mine, theirs in zip(found, wanted, strict=True))
    return float((squares / sum(float(theirs.double().square().sum()) for theirs in wanted)) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
