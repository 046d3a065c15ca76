"""vLLM's side of `against_vllm.py`: the same requests through its offline engine, in a process of its own.

It needs an interpreter that has vLLM, and nothing of reasonmill. What it is to do is a JSON text, its only argument;
what came out is a line of JSON for each load.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What brings a call at full width to its speed: every request's prompt, and so many tokens of it.
WARMING = 32


def main(order: dict[str, Any]) -> None:
    """Runs the loads of an order.

    Args:
        order: "model", a directory with a config; "requests", a file with prompts and lengths of each load; "loads",
            their names; "settings" of the engine; "calls" that are timed.
    """
    import torch
    import vllm

    began = time.perf_counter()
    engine = vllm.LLM(
        order["model"], load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=0, **order["settings"]
    )
    made_s = time.perf_counter() - began
    cache = engine.llm_engine.vllm_config.cache_config
    loads = json.loads(Path(order["requests"]).read_text(encoding="utf-8"))
    for name in order["loads"]:
        prompts = [{"prompt_token_ids": tokens} for tokens in loads[name]["prompts"]]
        lengths = loads[name]["lengths"]
        _, first_s = _run(engine, prompts, [min(WARMING, length) for length in lengths], with_logprobs=True)
        first_end = time.time()
        result = {"load": name, "vllm": vllm.__version__, "made_s": round(made_s, 1), "first_call_s": round(first_s, 2)}
        result["first_end"] = first_end
        for key, with_logprobs in (("with_logprobs", True), ("without_logprobs", False)):
            rates = []
            for _ in range(order["calls"]):
                tokens, seconds = _run(engine, prompts, lengths, with_logprobs=with_logprobs)
                rates.append(round(tokens / seconds))
            result[key] = rates
        free, whole = torch.cuda.mem_get_info()
        result["used_gib"] = round((whole - free) / 2**30, 1)
        result["memory_tokens"] = cache.num_gpu_blocks * cache.block_size
        print(json.dumps(result), flush=True)


def _run(
    engine: Any, prompts: Sequence[dict[str, Any]], lengths: Sequence[int], *, with_logprobs: bool
) -> tuple[int, float]:
    """Tokens and seconds of a call, whose prompts nobody has read before."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=length,
            ignore_eos=True,
            detokenize=False,
            logprobs=0 if with_logprobs else None,  # 0: of the token that was sampled, and of no others
            flat_logprobs=True,  # in lists, without an object for each
        )
        for length in lengths
    ]
    engine.reset_prefix_cache()
    began = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    completions = [output.outputs[0] for output in outputs]
    for completion, length in zip(completions, lengths, strict=True):
        if len(completion.token_ids) != length:
            raise RuntimeError(f"vLLM sampled {len(completion.token_ids)} tokens where {length} were asked for")
        if with_logprobs and len(completion.logprobs) != length:
            raise RuntimeError(f"vLLM gave {len(completion.logprobs)} log-probs of {length} tokens")
    return sum(lengths), seconds


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
