"""A transformers decoder as the sampler and the learner see it: tokens of a packed row in, hidden states out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from reasonmill.errors import UnsupportedModel
from reasonmill.model.attention import NAME, Layout

# Layer kinds whose state is a key and a value for each token; others (state space, linear attention) are refused.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
# Rotary embeddings whose frequencies follow the longest sequence of a batch, for all of its sequences.
_BATCH_WIDE_ROTATIONS = {"dynamic", "longrope"}
# Post-processing of logits that some architectures do outside their head.
_LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


class Decoder:
    """A causal language model whose attention runs on packed rows.

    Args:
        network: made with `attn_implementation="reasonmill"`.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        refuse_unsupported(network)
        self.network = network
        self.config: PreTrainedConfig = network.config
        self.softcap: float | None = getattr(network.config, "final_logit_softcapping", None)
        head: object = network.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise UnsupportedModel(f"{type(network).__name__} has no plain linear language-model head")
        self._head: nn.Linear = head
        # Dropout would make the sampler's log-probs and the learner's differ by noise; eval mode does not hinder
        # gradients.
        network.eval()

    @property
    def device(self) -> torch.device:
        return self._head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._head.weight.dtype

    @property
    def in_fp32(self) -> bool:
        """Whether all is computed in fp32, its products included."""
        return self.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"

    @property
    def context(self) -> int | None:
        """How many tokens a sequence may have; None where the model does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def head_weight(self) -> Tensor:
        """[V, H]"""
        return self._head.weight

    def hidden(self, inputs: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Final hidden states [N, H] of a row of token ids [N] at the given positions [N] of their sequences."""
        output = self.network.get_decoder()(
            input_ids=inputs[None], position_ids=positions[None], use_cache=False, layout=layout
        )
        states: Tensor = output.last_hidden_state
        return states[0]


def load_decoder(model_dir: Path, *, device: str, dtype: torch.dtype) -> Decoder:
    """Loads a Hugging Face model directory.

    Raises:
        UnsupportedModel: there is no model in the directory, or the native engine can't run it.
    """
    try:
        network = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation=NAME)
    except (OSError, ValueError, SafetensorError) as error:
        raise UnsupportedModel(
            f"no causal language model can be loaded: {first_line(error)}",
            fix="give a directory that AutoModelForCausalLM.from_pretrained loads",
            where=str(model_dir),
        ) from error
    return Decoder(network.to(device))


def working_dtype(precision: Literal["auto", "fp32", "bf16"], device: str) -> torch.dtype:
    """The type that a network computes in; "auto" is bf16 on CUDA and fp32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def new_decoder(config: PreTrainedConfig, *, seed: int, device: str, dtype: torch.dtype) -> Decoder:
    """A decoder with random weights that depend on the config and the seed only.

    Raises:
        UnsupportedModel: the config is not of a causal language model, or the native engine can't run it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype)
        except ValueError as error:
            raise UnsupportedModel(f"no causal language model has this config: {first_line(error)}") from error
    return Decoder(network.to(device))


def config_from(model_type: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """A transformers config by its model type.

    Raises:
        UnsupportedModel: transformers has no such type, or refuses a setting.
    """
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **settings)
    except (ValueError, TypeError) as error:
        raise UnsupportedModel(f"no config of type {model_type!r} with these settings: {error}") from error
    return config


def refuse_unsupported(network: PreTrainedModel) -> None:
    """Refuses by name what packed rows can't be run through.

    Raises:
        UnsupportedModel: with the part that can not be run.
    """
    name, config = type(network).__name__, network.config
    reason = ""
    if config.is_encoder_decoder:
        reason = "it is an encoder-decoder"
    elif not network._supports_attention_backend:
        reason = "its attention does not go through transformers' attention interface"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if others:
        reason = f"it has layers of kind {', '.join(others)}"
    rotations = sorted(_rotations(config) & _BATCH_WIDE_ROTATIONS)
    if rotations:
        reason = f"its rotary embedding ({', '.join(rotations)}) depends on the other sequences of a batch"
    scales = [scale for scale in _LOGIT_SCALES if getattr(config, scale, None) not in (None, 1, 1.0)]
    if scales:
        reason = f"it scales its logits by {', '.join(scales)}"
    if reason:
        raise UnsupportedModel(
            f"the native engine can't run {name}: {reason}", fix="use another sampler backend, or another model"
        )


def _rotations(config: PreTrainedConfig) -> set[str]:
    """Kinds of rotary embedding: one for all layers, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {part.get("rope_type", "default") for part in nested or [parameters]}


def first_line(error: Exception) -> str:
    """What an error of transformers says, without the list of everything that it would have taken."""
    return str(error).split("\n", 1)[0]
