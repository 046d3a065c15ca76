"""A transformers decoder as the sampler and the learner see it: tokens of a packed row in, hidden states out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from reasonmill.errors import UnsupportedModel
from reasonmill.model.adapter_config import ADDED
from reasonmill.model.attention import NAME, Layout
from reasonmill.model.directory import CONFIG, content, listed, refuse_directory, refuse_foreign_code
from reasonmill.model.joined import is_large, join_projections
from reasonmill.model.lora import merge_adapter

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

    def head(self, hidden: Tensor) -> Tensor:
        """Raw logits [N, V] of hidden states [N, H], as the head's module makes them: in the type of the weights."""
        logits: Tensor = self._head(hidden)
        return logits

    def hidden(self, inputs: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Final hidden states [N, H] of a row of token ids [N] at the given positions [N] of their sequences."""
        output = self.network.get_decoder()(
            input_ids=inputs[None], position_ids=positions[None], use_cache=False, layout=layout
        )
        states: Tensor = output.last_hidden_state
        return states[0]

    @torch.no_grad()
    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes new weights by name; those that are the network's own tensors already need no copy."""
        own = dict(self.network.named_parameters())
        for name, weight in weights:
            if weight.data_ptr() != own[name].data_ptr():
                own[name].copy_(weight)


def load_decoder(model_dir: Path, *, device: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Decoder:
    """Loads a Hugging Face model directory.

    Args:
        trust_remote_code: whether code that comes with the model may run, where transformers has none for it.

    Raises:
        UnsupportedModel: there is no model in the directory, it lacks weights or has others, some are not finite, or
            the native engine can't run it.
    """
    loaded = load_network(AutoModelForCausalLM, model_dir, dtype, trust_remote_code=trust_remote_code)
    network = loaded.network.to(device)
    loaded.refuse_incomplete()
    refuse_not_finite(network, model_dir)
    if network.device.type == "cuda" or is_large(network):
        join_projections(network)
    return Decoder(network)


@dataclass(frozen=True)
class Loaded:
    """A network as transformers loaded it, and what transformers had to say about its weights."""

    network: PreTrainedModel
    model_dir: Path
    missing: Collection[str]
    extra: Collection[str]
    misshapen: Collection[str]

    def refuse_incomplete(self) -> None:
        """Refuses weights that were made up because the directory does not have them, and those that nothing reads.

        transformers leaves out of its report what is tied to other weights, and buffers that it can compute.

        Raises:
            UnsupportedModel: with the names.
        """
        faults = {
            "lacks": self.missing,
            "does not know": self.extra,
            "has other shapes of": self.misshapen,
        }
        said = [f"{what} {listed(names)}" for what, names in faults.items() if names]
        if said:
            raise UnsupportedModel(
                f"the weights are not those of a {type(self.network).__name__}: it {'; it '.join(said)}",
                fix="save the model again as transformers names its weights; a prefix such as _orig_mod. or module. is "
                "of the wrapper that it was trained in",
                where=str(self.model_dir),
            )


def load_network(
    auto: Any, model_dir: Path, dtype: torch.dtype, *, trust_remote_code: bool = False, meta: bool = False
) -> Loaded:
    """Loads the network of a directory through one of transformers' Auto classes.

    Args:
        meta: reads no weights but their names.

    Raises:
        UnsupportedModel: transformers can't load it.
    """
    refuse_directory(model_dir, _KINDS[auto])
    is_native = str(content(model_dir / CONFIG).get("model_type")) in CONFIG_MAPPING
    if not is_native:
        refuse_foreign_code(model_dir, CONFIG, trust=trust_remote_code)
    try:
        network, report = auto.from_pretrained(
            model_dir,
            dtype=dtype,
            attn_implementation=NAME,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, by name
            trust_remote_code=trust_remote_code and not is_native,
            **({"device_map": "meta"} if meta else {}),
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever transformers and the code of an architecture raise
        raise UnsupportedModel(
            f"no {_KINDS[auto]} can be loaded: {first_line(error)}",
            fix=f"give a directory that {auto.__name__}.from_pretrained loads",
            where=str(model_dir),
        ) from error
    if (model_dir / ADDED).is_dir():
        merge_adapter(network, model_dir / ADDED)
    misshapen = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    return Loaded(network, model_dir, report["missing_keys"], report["unexpected_keys"], misshapen)


_KINDS: Mapping[Any, str] = {
    AutoModelForCausalLM: "causal language model",
    AutoModelForSequenceClassification: "reward model",
}


def refuse_not_finite(network: PreTrainedModel, model_dir: Path | None = None) -> None:
    """Refuses weights, or what is computed from the config, that hold NaN or infinity.

    Args:
        model_dir: where they are from; None for a new network.

    Raises:
        UnsupportedModel: with the names.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise UnsupportedModel(
            f"{len(broken)} of {len(tensors)} tensors hold NaN or infinity: {listed(broken)}",
            fix="give a checkpoint from before its training diverged, or copy the files again"
            if model_dir
            else "correct the config's numbers",
            where=str(model_dir or ""),
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are; True of integers."""
    # Without the copies of the tensor's size that isfinite makes.
    return (
        not tensor.is_floating_point()
        or not tensor.numel()
        or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())
    )


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
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the code of an architecture raises
            raise UnsupportedModel(f"no causal language model has this config: {first_line(error)}") from error
    refuse_not_finite(network)
    return Decoder(network.to(device))


def config_from(model_type: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """A transformers config by its model type.

    Raises:
        UnsupportedModel: transformers has no such type, or refuses a setting.
    """
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # whatever the code of an architecture raises
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
    said = str(error).strip().split("\n", 1)[0]
    return said if isinstance(error, OSError | ValueError) and said else f"{type(error).__name__}: {said}"


def refuse_beyond(network: PreTrainedModel, tokens: Tensor | Sequence[int], longest: int = 0) -> None:
    """Refuses sequences that the network has no rows or no positions for.

    Args:
        tokens: ids of all of them, on the CPU.
        longest: tokens of the longest one; 0 looks at the ids alone.

    Raises:
        UnsupportedModel: with the token or the length.
    """
    highest = int(max(tokens, default=0) if not isinstance(tokens, Tensor) else tokens.max())
    rows = cast(nn.Embedding, network.get_input_embeddings()).num_embeddings
    if highest >= rows:
        raise UnsupportedModel(
            f"the tokenizer gives token {highest}, and the model's embedding has {rows} rows, so none for it",
            fix="resize the embedding to the tokenizer (resize_token_embeddings) and save both, or take the tokenizer "
            "that belongs to the model",
            where=network.name_or_path,
        )
    limit: int | None = getattr(network.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise UnsupportedModel(
            f"a sequence of {longest} tokens does not fit into the model's {limit} positions",
            fix="lower max_tokens, so that longer ones are left out and counted",
            where=network.name_or_path,
        )
