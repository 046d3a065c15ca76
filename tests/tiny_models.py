"""Random decoders of many architectures, small enough to run in milliseconds, and a renderer for their tokens."""

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from reasonmill.learn.state_file import StateFile
from reasonmill.model.decoder import Decoder, config_from, new_decoder
from reasonmill.protocols import Renderer, Trained
from reasonmill.sample.engine import NativeEngine
from reasonmill.sample.sampler import EngineSampler
from reasonmill.types import Message

# Threads cost networks this small more than they give, fifty times more where other processes want the cores.
torch.set_num_threads(1)

VOCABULARY = 61
STOP_TOKEN = 1
# Shorter than the sequences of the tests, so that it cuts off what they see.
WINDOW = 5

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # With the usual 0.02 the predictions of a tiny network hardly differ from one token to the next.
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": STOP_TOKEN,
    "pad_token_id": None,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": WINDOW, "head_dim": 8}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": WINDOW,
            "head_dim": 8,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": WINDOW, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "head_dim": 8}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "moe_intermediate_size": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "q_lora_rank": 12,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
        },
    ),
}


def tiny_config(model_type: str, **settings: Any) -> Any:
    """A config of the model type with the tiny sizes, which `settings` override."""
    return config_from(model_type, {**_COMMON, **settings})


def tiny_decoder(architecture: str = "qwen2", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    """A random decoder on the CPU; the same arguments give the same weights."""
    model_type, settings = ARCHITECTURES[architecture]
    return new_decoder(tiny_config(model_type, **settings), seed=seed, device="cpu", dtype=dtype)


def plain_network(decoder: Decoder) -> PreTrainedModel:
    """A copy of the decoder's network with transformers' own attention, for comparison."""
    config = copy.deepcopy(decoder.config)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=decoder.dtype)
    network.load_state_dict(decoder.network.state_dict())
    return network.eval()


def learner_state(learner: Trained) -> dict[str, Tensor]:
    """What a learner saves, by name."""
    with TemporaryDirectory() as directory:
        learner.save(Path(directory))
        return {name: tensor.clone() for name, tensor in StateFile(Path(directory)).items()}


class NumberRenderer:
    """Tokens as text: their numbers, each followed by a space. The conversation's text is read the same way."""

    stop_tokens = frozenset({STOP_TOKEN})
    stop_strings = ()
    opening = ""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(int(word) for message in messages for word in message.content.split())

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        return [self.render(messages) for messages in conversations]

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return (2, *self.render(messages), 3)

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(f"{token} " for token in tokens if token not in self.stop_tokens)

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def native_sampler(decoder: Decoder, renderer: Renderer, **settings: int) -> EngineSampler:
    """A sampler over a native engine of its own; the settings are the engine's."""
    return EngineSampler(NativeEngine(decoder, renderer, **settings))
