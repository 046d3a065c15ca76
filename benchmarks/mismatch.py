"""How far the log-probs of sampler and learner lie from an fp32 forward and from each other, in bf16.

The sampler draws, and the learner scores what was drawn, with the same weights in bf16. Transformers scores it, too, in
bf16 and in fp32 (the same weights, exactly). Bars: neither is further from fp32 than transformers in bf16 is; they are
at most 1.5 times that far from each other; and GSPO's published clip cuts no sequence before any update where the
learner scored the sequences first. Exit code 1 if a bar is missed.

Without MODEL it makes a network of a shape with random weights, as transformers initialises them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from reasonmill.algo.logprobs import token_logprobs
from reasonmill.algo.packing import Batch, pack, unpack
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder, load_decoder, new_decoder
from reasonmill.model.packed import PackedLayout
from reasonmill.plugins.catalogue import installed
from reasonmill.randomness import generator, key
from reasonmill.render import renderer_for
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Completion, Example, Request, SamplingParams

T = TypeVar("T")

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "qwen2",
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
PROMPT_TOKENS = 64  # of a random network's prompts
FURTHER = 1.5  # how much further from each other than transformers is from fp32
MINI_BATCHES = 4
GSPO_CLIP = (3e-4, 4e-4)  # arXiv 2507.18071: of the geometric mean of a sequence's ratios


class NumbersOnly:
    """The renderer of a network without a tokenizer: it ends no text."""

    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    opening = ""

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


@dataclass(frozen=True)
class Drawn:
    """What was sampled: prompt and completion of each sequence."""

    prompts: list[tuple[int, ...]]
    completions: list[Completion]

    @property
    def sampler(self) -> list[list[float]]:
        return [list(completion.logprobs or ()) for completion in self.completions]

    @cached_property
    def examples(self) -> list[Example]:
        """The sequences as the learner reads them, with a weight on all that was sampled."""
        return [
            Example(prompt + c.tokens, [0.0] * len(prompt) + [1.0] * len(c.tokens), "ce")
            for prompt, c in zip(self.prompts, self.completions, strict=True)
        ]


def main() -> int:
    options = _parser().parse_args()
    device = options.device
    made = _decoder(options)
    say(f"{sum(p.numel() for p in made.network.parameters()):,} weights in bf16 on {device}, seed {options.seed}")
    drawn = timed("sampled", lambda: _draw(made, options))
    scored = timed("scored by the learner", lambda: _learner_scores(made, drawn, options))
    scored["sampler"] = drawn.sampler
    plain = _plain(made)
    scored["transformers"] = timed("scored by transformers in bf16", lambda: _scores(plain, drawn, options))
    plain.float()
    exact = timed("scored in fp32", lambda: _scores(plain, drawn, options))

    distances = {
        "transformers in bf16, from fp32": _distance(scored["transformers"], exact),
        "sampler, from fp32": _distance(scored["sampler"], exact),
        "learner, from fp32": _distance(scored["learner"], exact),
        "sampler, from the learner": _distance(scored["sampler"], scored["learner"]),
        "learner in other batches, from the learner": _distance(scored["other batches"], scored["learner"]),
    }
    low, high = GSPO_CLIP
    cut = {
        "against the sampler's log-probs": _cut(scored["learner"], scored["sampler"], low, high),
        "against the learner's, scored first": _cut(scored["with gradients"], scored["learner"], low, high),
        "the same, scored in other batches": _cut(scored["with gradients"], scored["other batches"], low, high),
    }
    of_transformers, sampler, learner, apart, _ = (figures["mean"] for figures in distances.values())
    bars = {
        "sampler no further from fp32 than transformers": sampler <= of_transformers,
        "learner no further from fp32 than transformers": learner <= of_transformers,
        f"sampler and learner at most {FURTHER} times that apart": apart <= FURTHER * of_transformers,
        "GSPO's clip cuts nothing before any update": cut["against the learner's, scored first"] == 0,
    }
    of = {
        "model": str(options.model or options.shape),
        "seed": options.seed,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "sequences": len(drawn.prompts),
        "tokens": sum(map(len, drawn.sampler)),
    }
    if options.json:
        print(json.dumps({**of, "nats": distances, "gspo_cut": cut, "bars": bars}, indent=2))
    else:
        _print(of, distances, cut, bars)
    return 0 if all(bars.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a Hugging Face directory; without it, see --shape")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b", help="of the network with random weights")
    parser.add_argument("--tokens", type=int, default=100_000, help="sampled tokens, at least")
    parser.add_argument("--max-tokens", type=int, default=512, help="length limit of a completion")
    parser.add_argument("--task", default="arithmetic", help="whose problems a model with a tokenizer is asked")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the prompts and the draws")
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="positions of the learner's forward passes")
    parser.add_argument("--rows", type=int, default=8, help="sequences of transformers' forward passes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _decoder(options: argparse.Namespace) -> Decoder:
    if options.model is not None:
        return load_decoder(options.model, device=options.device, dtype=torch.bfloat16)
    config = AutoConfig.for_model(**SHAPES[options.shape])
    return new_decoder(config, seed=options.seed, device=options.device, dtype=torch.bfloat16)


def _plain(decoder: Decoder) -> PreTrainedModel:
    """The same weights in a network with transformers' own attention."""
    network = AutoModelForCausalLM.from_config(decoder.config, attn_implementation="sdpa", dtype=decoder.dtype)
    network.load_state_dict(decoder.network.state_dict())
    moved: PreTrainedModel = network.to(decoder.device).eval()
    return moved


def _draw(decoder: Decoder, options: argparse.Namespace) -> Drawn:
    """Samples until there are enough tokens."""
    renderer: Any = NumbersOnly() if options.model is None else renderer_for(options.model)
    sampler = EngineSampler(NativeEngine(decoder, renderer))
    params = SamplingParams(max_tokens=options.max_tokens)
    asked = _prompts(decoder, renderer, options)
    drawn, tokens = Drawn([], []), 0
    while tokens < options.tokens:
        rest = -(-(options.tokens - tokens) // options.max_tokens)
        requests = [
            Request(next(asked), params, key("mismatch", options.seed, len(drawn.prompts) + i)) for i in range(rest)
        ]
        found = dict(sampler.generate(requests))
        for place, request in enumerate(requests):
            drawn.prompts.append(request.prompt_tokens)
            drawn.completions.append(found[place])
            tokens += len(found[place].tokens)
    return drawn


def _prompts(decoder: Decoder, renderer: Any, options: argparse.Namespace) -> Iterator[tuple[int, ...]]:
    numbers, number = generator("mismatch prompts", options.seed), 0
    task = installed().task(options.task)
    while True:
        if options.model is None:
            yield tuple(numbers.randrange(decoder.head_weight.shape[0]) for _ in range(PROMPT_TOKENS))
        else:
            yield renderer.render(task.problem("train", options.seed, number).messages)
        number += 1


def _learner_scores(decoder: Decoder, drawn: Drawn, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """The log-probs of what was sampled as the learner scores it: first, as an update's forward pass does, and in other
    batches, those of mini-batches that are drawn at random."""
    learner = LocalLearner(decoder, OptimizerSettings())
    order = generator("mismatch batches", options.seed).sample(range(len(drawn.prompts)), len(drawn.prompts))
    shares = [sorted(order[share::MINI_BATCHES]) for share in range(MINI_BATCHES)]
    others: list[list[float]] = [[] for _ in order]
    for share in shares:
        scores = _packed(learner.logprobs, [drawn.examples[place] for place in share], options)
        for place, row in zip(share, scores, strict=True):
            others[place] = row
    found = {
        "learner": _packed(learner.logprobs, drawn.examples, options),
        "with gradients": _packed(lambda batch: _with_gradients(decoder, batch), drawn.examples, options),
        "other batches": others,
    }
    return {
        name: [row[len(prompt) :] for row, prompt in zip(rows, drawn.prompts, strict=True)]
        for name, rows in found.items()
    }


def _packed(
    score: Callable[[Batch], Tensor], examples: Sequence[Example], options: argparse.Namespace
) -> list[list[float]]:
    batches = pack(examples, options.tokens_per_batch)
    return unpack(torch.cat([score(batch).cpu() for batch in batches]), batches, examples)


def _with_gradients(decoder: Decoder, batch: Batch) -> Tensor:
    """The forward pass of an update, which may run other kernels than one without gradients."""
    moved = batch.to(decoder.device)
    with deterministic(decoder.device):
        hidden = decoder.hidden(
            moved.inputs, moved.positions, PackedLayout(moved.lengths, decoder.device, moved.continued)
        )
        return token_logprobs(hidden, decoder.head_weight, moved.targets, softcap=decoder.softcap).detach()


@torch.inference_mode()
def _scores(network: PreTrainedModel, drawn: Drawn, options: argparse.Namespace) -> list[list[float]]:
    """The log-probs of what was sampled by transformers' own forward pass, padded on the right."""
    longest_first = sorted(range(len(drawn.prompts)), key=lambda place: -len(drawn.examples[place].tokens))
    texts = [torch.tensor(example.tokens) for example in drawn.examples]
    scores: list[list[float]] = [[] for _ in texts]
    for first in range(0, len(texts), options.rows):
        places = longest_first[first : first + options.rows]
        padded = torch.nn.utils.rnn.pad_sequence([texts[place] for place in places], batch_first=True)
        lengths = torch.tensor([len(texts[place]) for place in places])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        logits = network(
            input_ids=padded.to(network.device), attention_mask=mask.to(network.device), use_cache=False
        ).logits
        for row, place in enumerate(places):
            begin, end = len(drawn.prompts[place]), len(texts[place])
            logprobs = torch.log_softmax(logits[row, begin - 1 : end - 1].float(), -1)
            chosen = texts[place][begin:end, None].to(network.device)
            scores[place] = logprobs.gather(1, chosen).squeeze(1).tolist()
    return scores


def _distance(scores: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of the absolute differences: mean, its standard error (by sequence), the 99th percentile and the largest."""
    rows = [
        torch.tensor(one, dtype=torch.float64).sub(torch.tensor(other, dtype=torch.float64)).abs()
        for one, other in zip(scores, others, strict=True)
    ]
    every = torch.cat(rows)
    mean = float(every.mean())
    spread = math.fsum(float((row - mean).sum()) ** 2 for row in rows)
    return {
        "mean": mean,
        "error": math.sqrt(spread) / every.numel(),
        "p99": float(every.sort().values[int(0.99 * (every.numel() - 1))]),
        "largest": float(every.max()),
    }


def _cut(scores: Sequence[Sequence[float]], old: Sequence[Sequence[float]], low: float, high: float) -> float:
    """The share of sequences whose geometric mean of ratios lies outside of the clip."""
    ratios = [
        math.exp(math.fsum(a - b for a, b in zip(new, before, strict=True)) / len(new))
        for new, before in zip(scores, old, strict=True)
    ]
    return sum(not 1 - low <= ratio <= 1 + high for ratio in ratios) / len(ratios)


def _print(
    of: dict[str, Any], distances: dict[str, dict[str, float]], cut: dict[str, float], bars: dict[str, bool]
) -> None:
    print(", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in of.items()))
    print(f"{'|log-prob difference| in nats':<44}{'mean':>10}{'± s.e.':>10}{'99 %':>10}{'largest':>10}")
    for name, figures in distances.items():
        print(f"  {name:<42}" + "".join(f"{value:>10.5f}" for value in figures.values()))
    print("share of sequences outside of GSPO's published clip, before any update")
    for name, share in cut.items():
        print(f"  {name:<42}{share:>10.2%}")
    for name, met in bars.items():
        print(f"{'met   ' if met else 'MISSED'}  {name}")


def timed(what: str, work: Callable[[], T]) -> T:
    began = time.monotonic()
    done = work()
    say(f"{what} in {time.monotonic() - began:.0f} s")
    return done


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
