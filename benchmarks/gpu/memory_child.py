"""What processes of `together.py` do that look at memory: the engine's is given back while the learner works, and
outputs of 32,768 tokens. Each prints one line of JSON last.

python memory_child.py give_back
python memory_child.py long_outputs SECONDS
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rollouts import Words, decoder_of, requests_of, run
from torch import Tensor

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack, unpack
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.mill.model_size import size_of
from reasonmill.mill.workload import Workload
from reasonmill.peak_memory import begin_peak, memory_of, peak_bytes, used_bytes
from reasonmill.placement import Largest
from reasonmill.planning.costs import numbers_of
from reasonmill.planning.memory import peak
from reasonmill.planning.probes import LearnerPasses, measure_learning
from reasonmill.protocols import MemoryNeed
from reasonmill.randomness import generator
from reasonmill.sample.cuda.engine import CudaEngine
from reasonmill.types import Completion, Example, Request, SamplingParams

STEPS, TOGETHER, ROW, RATE = 3, 256, 16384, 1e-5
# Of `give_back`: more and longer sequences than run, so that the memory is large: 14 GB at 0.5B.
SEQUENCES, LONGEST = 512, 2176
LONG, PROMPT, CONTEXT, LONG_SEQUENCES = 32768, 64, 40960, 4
FAR = 768  # tokens of outputs that begin where the longest ends


def give_back() -> dict[str, Any]:
    """A few steps of sampling and learning with the memory held, and the same ones with the memory given back."""
    learner = LocalLearner(decoder_of("0.5b"), OptimizerSettings())
    learning, kept = learner.rehearse(Largest(ROW, LONGEST, "pg", LossSettings()))
    engine = CudaEngine(learner.decoder, Words(), num_slots=SEQUENCES)
    tokens = engine.reserve(MemoryNeed(SEQUENCES, LONGEST, 128, kept, learning))
    begun = {name: tensor.to("cpu", copy=True) for name, tensor in learner._optimizer.state().items()}
    found: dict[str, Any] = {"memory_bytes": tokens * (engine._parts.memory.bytes_per_token if engine._parts else 0)}
    for way in ("held", "given_back"):
        learner._optimizer.load_state(begun)
        found[way] = [one_step(engine, learner, step, rests=way == "given_back") for step in range(STEPS)]
    last = requests_of("ragged")[-TOGETHER:]
    after, _ = run(engine, last)
    engine.rest()
    fresh = CudaEngine(learner.decoder, Words(), num_slots=SEQUENCES)
    fresh.reserve(MemoryNeed(SEQUENCES, LONGEST, 128, kept, learning, tokens))
    found["fresh"] = digest_of(after) == digest_of(run(fresh, last)[0])
    return found


def one_step(engine: CudaEngine, learner: LocalLearner, step: int, *, rests: bool) -> dict[str, Any]:
    """Samples and learns; digests, peaks of both phases and seconds of giving back and taking again."""
    assert engine._parts is not None
    memory, found = engine._parts.memory, dict[str, Any]()
    found["take_s"] = seconds_of(memory.take)
    begin_peak("cuda")
    done, found["sampling_s"] = run(engine, requests_of("ragged")[step * TOGETHER : (step + 1) * TOGETHER])
    found["sampling_bytes"] = peak_bytes("cuda")
    if rests:
        found["rest_s"] = seconds_of(engine.rest)
        # What the card is used for meanwhile is not what was there before.
        others = torch.full((memory_of("cuda")[0] // 5 * 4 // 4,), math.nan, device="cuda")
        found["others_bytes"] = others.nbytes
        del others
        torch.cuda.empty_cache()
    begin_peak("cuda")
    asked = requests_of("ragged")[step * TOGETHER : (step + 1) * TOGETHER]
    examples = [example_of(r.prompt_tokens, c.tokens, c.logprobs or ()) for r, c in zip(asked, done, strict=True)]
    found["learning_s"] = seconds_of(lambda: learn(learner, examples, ROW))
    found["learning_bytes"] = peak_bytes("cuda")
    found["digests"] = [digest_of(done), bits_of(learner)]
    return found


def long_outputs(seconds: float) -> dict[str, Any]:
    """Outputs of 32,768 tokens as far as the time goes, short ones at the end of contexts as long, and a step on
    sequences of full length."""
    decoder, length = decoder_of("1.5b", context=CONTEXT), PROMPT + LONG
    learner = LocalLearner(decoder, OptimizerSettings(), recompute=True)
    measured = measure_learning(LearnerPasses(learner, length), row=length, device="cuda", budget_s=20.0)
    work = Workload(sampled=1, trained=1, sequences=LONG_SEQUENCES, longest=length, row=length, recompute=True)
    numbers = numbers_of(work, size_of(decoder.config), {}, 2, None, measured, 0.0, memory_of("cuda")[1])
    learner._forget()
    learning, kept = learner.rehearse(Largest(length, length, "pg", LossSettings()))
    found: dict[str, Any] = {"planned_bytes": peak(numbers).total, "rehearsal_bytes": peak_bytes("cuda")}
    engine = CudaEngine(decoder, Words())
    found["memory_tokens"] = engine.reserve(MemoryNeed(LONG_SEQUENCES, length, LONG, kept, learning))
    draws = generator("long outputs")
    begin_peak("cuda")
    prompts = [tuple(draws.randrange(150_000) for _ in range(PROMPT)) for _ in range(LONG_SEQUENCES)]
    asked = [Request(prompt, SamplingParams(max_tokens=LONG), place) for place, prompt in enumerate(prompts)]
    outputs, found["ms_per_step"] = drawn_within(engine, asked, seconds)
    found["drawn"] = [len(output) for output in outputs]
    far = [Request(tuple(draws.randrange(150_000) for _ in range(LONG)), SamplingParams(max_tokens=FAR), 9)]
    (ended,), found["far_s"] = run(engine, far)
    found["sampling_bytes"] = peak_bytes("cuda")
    engine.rest()
    begin_peak("cuda")
    example = example_of(far[0].prompt_tokens, ended.tokens, ended.logprobs or ())
    batches = pack([example], ROW)
    (scored,) = unpack(learner.logprobs(batches[0]), batches, [example])
    apart = [abs(a - b) for a, b in zip(scored[LONG:], ended.logprobs or (), strict=True)]
    found["far_apart"] = sum(apart) / len(apart)
    filled = [(output * (LONG // len(output) + 1))[:LONG] for output in outputs]
    examples = [example_of(prompt, output, [-11.0] * LONG) for prompt, output in zip(prompts, filled, strict=True)]
    found["learning_s"] = seconds_of(lambda: found.update(learn(learner, examples, ROW)))
    found["learning_bytes"] = peak_bytes("cuda")
    found["used_bytes"] = max(found[f"{phase}_bytes"] for phase in ("rehearsal", "sampling", "learning"))
    return found


def drawn_within(engine: CudaEngine, asked: Sequence[Request], seconds: float) -> tuple[list[list[int]], list[float]]:
    """What was drawn of requests when they or the time ended, and milliseconds of a step of all, early and late."""
    tickets, ended = [engine.submit(request) for request in asked], dict[int, list[int]]()
    times = [time.perf_counter()]
    while len(ended) < len(tickets) and times[-1] - times[0] < seconds:
        engine.step()
        ended.update((ticket, list(one.tokens)) for ticket, one in engine.finished())
        times.append(time.perf_counter())
    outputs = [ended[ticket] if ticket in ended else engine.drawn(ticket) for ticket in tickets]
    for ticket in tickets:
        engine.cancel(ticket)
    part, steps = max(1, len(times) // 10), 8  # steps of the device in one of the engine
    early, late = times[2 * part] - times[part], times[-1] - times[-1 - part]
    return outputs, [1e3 * span / part / steps for span in (early, late)]


def learn(learner: LocalLearner, examples: Sequence[Example], row: int) -> dict[str, float]:
    batches = pack(examples, row)
    total = float(sum(batch.weights.sum() for batch in batches))
    for batch in batches:
        learner.forward_backward(batch, LossSettings(), total)
    return learner.optim_step(RATE)


def example_of(prompt: Sequence[int], output: Sequence[int], logprobs: Sequence[float]) -> Example:
    context = [0.0] * len(prompt)
    return Example(
        [*prompt, *output],
        [*context, *[1.0] * len(output)],
        "pg",
        advantages=[1.0 if len(output) % 2 else -1.0] * (len(prompt) + len(output)),
        sampler_logprobs=[*context, *logprobs],
    )


def seconds_of(do: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    do()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def digest_of(completions: Sequence[Completion]) -> str:
    said = json.dumps([(one.tokens, [x.hex() for x in one.logprobs or ()]) for one in completions])
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def bits_of(learner: LocalLearner) -> str:
    """A digest of all numbers of the optimizer's state, as sums of their bits."""
    sums: list[Tensor] = []
    for tensor in learner._optimizer.state().values():
        if tensor.is_floating_point():
            bits = tensor.detach().flatten().view(torch.int32).long()
            sums += [bits.sum(), (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()]
    said = json.dumps(torch.stack(sums).tolist())
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    made = give_back() if sys.argv[1] == "give_back" else long_outputs(float(sys.argv[2]))
    print(json.dumps({**made, "left_bytes": used_bytes("cuda")}), flush=True)
