"""Qwen2.5's shapes, as its config files have them: what the benchmarks of one GPU give random weights to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# What prompts are written in, where they are texts: a token each.
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COMMON: dict[str, Any] = {
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}
SIZES: dict[str, dict[str, Any]] = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    # None of Qwen's: to try a script without a GPU.
    "trial": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 4096,
    },
}


def write_config(directory: Path, size: str) -> None:
    """Writes config.json of a Qwen2 decoder, as transformers and vLLM read it, into a new directory."""
    directory.mkdir()
    settings = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        **COMMON,
        **SIZES[size],
    }
    (directory / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
