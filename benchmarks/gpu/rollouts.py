"""Tokens a second of rollouts on one GPU; `logprobs.py` says how exact they are.

Random weights of the shapes of Qwen2.5, or of another architecture with its sizes, through the sampler that `rl` uses.
Nothing is fetched. Two loads, each in groups of 8 behind prompts of 128 tokens: `fixed`, 512 requests of 512 tokens,
and `ragged`, 1,024 requests of 1 to 1,024 tokens, each as likely as any other.

    PYTHONPATH=src python benchmarks/gpu/rollouts.py --size 0.5b --load fixed ragged
    PYTHONPATH=src python benchmarks/gpu/rollouts.py --size 0.5b --architecture gemma2 --load fixed
    PYTHONPATH=src python benchmarks/gpu/rollouts.py --size 0.5b --architecture qwen3 --layers transformers --load fixed
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from shapes import COMMON, SIZES
from transformers import AutoModelForCausalLM

from reasonmill.model.attention import NAME
from reasonmill.model.decoder import Decoder, config_from
from reasonmill.model.joined import join_projections
from reasonmill.peak_memory import peak_bytes
from reasonmill.randomness import generator, key
from reasonmill.sample.cuda.engine import CudaEngine
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Completion, Message, Request, SamplingParams

GROUP, PROMPT = 8, 128
TOKENS: dict[str, Any] = {"bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": None}
# What others need beside these sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 256},
    "gemma2": {"query_pre_attn_scalar": 64, "sliding_window": 256},
    "gemma3_text": {"query_pre_attn_scalar": 64, "sliding_window": 256, "rope_parameters": None},
    "qwen3_moe": {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 1216},
    "deepseek_v3": {
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1216,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 14,
        "q_lora_rank": 448,
        "kv_lora_rank": 256,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
        "head_dim": 32,
    },
}


class Words:
    """A renderer whose text is a word of two letters a token, for the price of a dictionary's look-up."""

    stop_tokens = frozenset({151643, 151645})
    stop_strings: tuple[str, ...] = ()
    opening = ""
    _words = tuple(chr(97 + n // 26) + chr(97 + n % 26) for n in range(676))

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        raise NotImplementedError

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        raise NotImplementedError

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        raise NotImplementedError

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join([self._words[token % 676] for token in tokens])

    def response(self, text: str) -> tuple[int, ...]:
        raise NotImplementedError

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def decoder_of(
    size: str,
    architecture: str = "qwen2",
    *,
    by_kernels: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    context: int = COMMON["max_position_embeddings"],
) -> Decoder:
    """Random weights; `by_kernels` lets the sampler's own layers run where it has them for the architecture."""
    settings = {**COMMON, **TOKENS, **SIZES[size], **ARCHITECTURES[architecture], "max_position_embeddings": context}
    settings.setdefault("head_dim", settings["hidden_size"] // settings["num_attention_heads"])
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = config_from(architecture, settings)
        network = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype)
    if by_kernels:
        join_projections(network)
    return Decoder(network)


def requests_of(load: str, *, stop: tuple[str, ...] = (), top_p: float = 1.0) -> list[Request]:
    numbers = generator("rollouts", load)
    count = 512 if load == "fixed" else 1024
    prompts = [tuple(numbers.randrange(150000) for _ in range(PROMPT)) for _ in range(count // GROUP)]
    return [
        Request(
            prompts[index // GROUP],
            SamplingParams(max_tokens=512 if load == "fixed" else numbers.randint(1, 1024), stop=stop, top_p=top_p),
            key("rollouts", load, index),
        )
        for index in range(count)
    ]


def run(engine: CudaEngine, requests: Sequence[Request]) -> tuple[list[Completion], float]:
    """Completions in the requests' order, and seconds."""
    began = time.perf_counter()
    done = dict(EngineSampler(engine).generate(requests))
    return [done[index] for index in range(len(requests))], time.perf_counter() - began


def rate(engine: CudaEngine, requests: Sequence[Request], times: int = 3) -> dict[str, Any]:
    """Tokens a second: the first call with all that is made and captured in it, then warm ones."""
    _, first_s = run(engine, requests)
    first_end, rates = time.time(), []
    for _ in range(times):
        completions, seconds = run(engine, requests)
        rates.append(sum(len(one.tokens) for one in completions) / seconds)
    return {
        "tokens_per_s": [round(one) for one in rates],
        "first_call_s": round(first_s, 2),
        "first_end": first_end,
        "memory_gib": round((peak_bytes("cuda") or 0) / 2**30, 1),
        "used_gib": round(used_gib(), 1),
        "memory_tokens": engine.memory_tokens,
    }


def used_gib() -> float:
    """What is taken of the card's memory, by whichever process."""
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2")
    parser.add_argument(
        "--layers", choices=("kernels", "transformers"), default="kernels", help="the sampler's, where it has some"
    )
    parser.add_argument("--load", choices=("fixed", "ragged"), nargs="+", default=["fixed", "ragged"])
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--stop", action="append", default=[], help="a stop string")
    parser.add_argument("--write", type=Path, metavar="FILE", help="prompts, and lengths of what was sampled, as JSON")
    args = parser.parse_args()
    written = {}
    began = time.perf_counter()
    decoder = decoder_of(args.size, args.architecture, by_kernels=args.layers == "kernels")
    loaded_s = time.perf_counter() - began
    for load in args.load:
        requests = requests_of(load, stop=tuple(args.stop), top_p=args.top_p)
        engine = CudaEngine(decoder, Words(), num_slots=len(requests))
        result = {"size": args.size, "architecture": args.architecture, "layers": args.layers, "load": load}
        result["weights_s"] = round(loaded_s, 1)
        result |= rate(engine, requests)
        once, _ = run(engine, requests)
        again, _ = run(engine, requests)
        result["same_again"] = [one.tokens for one in once] == [one.tokens for one in again]
        written[load] = {
            "prompts": [request.prompt_tokens for request in requests],
            "lengths": [len(completion.tokens) for completion in once],
        }
        print(json.dumps(result), flush=True)
        del engine
    if args.write:
        args.write.write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main()
