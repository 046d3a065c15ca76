"""What processes of `together.py` do: roll out and digest, keep the card busy, make a model.

python together_child.py digest [after]
python together_child.py busy
python together_child.py make SIZE DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from rollouts import Words, decoder_of, requests_of, run
from shapes import COMMON, SIZES
from transformers import AutoModelForCausalLM

from reasonmill.model.decoder import config_from
from reasonmill.sample.cuda.engine import CudaEngine

BASE = Path(__file__).parents[2] / "src" / "reasonmill" / "world" / "bases" / "tiny-base"


def print_digests(*, after: bool) -> None:
    """Two digests of rollouts of 0.5B: plain draws, and top-p with a stop string.

    Args:
        after: whether other requests are asked before.
    """
    engine = CudaEngine(decoder_of("0.5b"), Words(), num_slots=256)
    if after:
        run(engine, requests_of("fixed")[:100])
    for top_p, stop in ((1.0, ()), (0.95, ("abc",))):
        completions, _ = run(engine, requests_of("ragged", top_p=top_p, stop=stop)[:600])
        said = json.dumps([(one.tokens, [x.hex() for x in one.logprobs or ()]) for one in completions])
        print("digest", hashlib.blake2b(said.encode(), digest_size=8).hexdigest(), flush=True)


def keep_busy() -> None:
    """Products without end, with pauses, beside which others are slower and at other times."""
    left = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    while True:
        for _ in range(20):
            left @ left
        torch.cuda.synchronize()
        time.sleep(0.003)


def make_model(size: str, target: Path) -> None:
    """Random weights of Qwen2.5's shapes, with the tokenizer of the base that ships."""
    ids = json.loads((BASE / "config.json").read_text())
    shape = {**COMMON, **SIZES[size], **{name: ids[name] for name in ("eos_token_id", "pad_token_id", "bos_token_id")}}
    torch.manual_seed(0)
    with torch.device("cuda"):
        network = AutoModelForCausalLM.from_config(config_from("qwen2", shape), dtype=torch.bfloat16)
    network.save_pretrained(target)
    for file in BASE.iterdir():
        if file.name not in ("config.json", "model.safetensors", "origin.json"):
            shutil.copy(file, target)


if __name__ == "__main__":
    if sys.argv[1] == "digest":
        print_digests(after="after" in sys.argv)
    elif sys.argv[1] == "busy":
        keep_busy()
    else:
        make_model(sys.argv[2], Path(sys.argv[3]))
