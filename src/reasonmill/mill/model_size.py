"""How large models are, as far as estimates of time and memory need it. No weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from reasonmill.errors import UnsupportedModel
from reasonmill.learn.settings import LoraSettings
from reasonmill.mill.models import found_directory
from reasonmill.model.decoder import config_from
from reasonmill.model.directory import kept_in
from reasonmill.model.gguf import config_of
from reasonmill.model.gguf_header import read_header
from reasonmill.model.lora import linears_for_adapters
from reasonmill.recipe.graph import Node
from reasonmill.recipe.models import RecipeModel
from reasonmill.recipe.reference import DirectorySource, ModelSource, Source, StageSource
from reasonmill.store.home import Home


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model; None where one is not known.

    Attributes:
        active: the parameters that a token meets; fewer than all in a mixture of experts.
        cached_values: numbers that a token leaves in the cache of all layers, as the native sampler keeps them.
        context: tokens that a sequence may have.
        kept_bytes: of one weight in its files, and in those of what is made from it.
        linears: the inputs and outputs together of each linear layer that can have an adapter, by its name.
    """

    parameters: float
    active: float
    layers: int | None = None
    hidden_size: int | None = None
    cached_values: int | None = None
    context: int | None = field(default=None, compare=False)
    kept_bytes: int | None = field(default=None, compare=False)
    linears: tuple[tuple[str, int], ...] | None = field(default=None, compare=False, repr=False)

    def adapter_parameters(self, lora: LoraSettings) -> float:
        """How many an adapter has; where the layers are not known, no more than the model."""
        if self.linears is None:
            return self.parameters
        chosen = (
            sizes
            for name, sizes in self.linears
            if not lora.targets or any(name == t or name.endswith(f".{t}") for t in lora.targets)
        )
        return float(lora.rank * sum(chosen))


def sizes_by_stage(nodes: tuple[Node, ...], home: Home | None = None) -> dict[str, dict[str, ModelSize | None]]:
    """The models that each stage reads, by the key of its settings, and under "" the one that it makes.

    Args:
        home: where models may be that were made of GGUF files.
    """
    sources = {source for node in nodes for source in node.sources.values()}
    sizes: dict[Source, ModelSize | None]
    outside = [source for source in sources if isinstance(source, DirectorySource | ModelSource)]
    sizes = {source: _size_outside(source, home) for source in outside}
    found: dict[str, dict[str, ModelSize | None]] = {}
    for node in nodes:
        read = {
            key: found.get(source.stage, {}).get("") if isinstance(source, StageSource) else sizes.get(source)
            for key, source in node.sources.items()
        }
        found[node.settings.name] = {**read, "": _size_made(node.settings, read)}
    return found


def size_of(config: PreTrainedConfig) -> ModelSize:
    """The sizes of a causal language model with this config; its parameters are made without memory.

    Raises:
        ValueError: the config is not of a causal language model.
    """
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    parameters = sum(p.numel() for p in network.parameters())
    routed = sum(p.numel() for name, p in network.named_parameters() if ".experts." in name)
    used, experts = (_first(config, names) for names in (_USED_EXPERTS, _EXPERTS))
    idle = routed * (1 - used / experts) if used and experts else 0
    text = config.get_text_config()
    layers, hidden, heads = text.num_hidden_layers, text.hidden_size, text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):
        # Latent attention goes through transformers' attention interface with its keys and values unfolded.
        per_layer = heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim)
    else:
        head_dim = getattr(text, "head_dim", None) or hidden // heads
        per_layer = 2 * (getattr(text, "num_key_value_heads", None) or heads) * head_dim
    linears = tuple((name, one.in_features + one.out_features) for name, one in linears_for_adapters(network).items())
    context = getattr(config, "max_position_embeddings", None)
    return ModelSize(parameters, parameters - idle, layers, hidden, layers * per_layer, context, linears=linears)


_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")
_USED_EXPERTS = ("num_experts_per_tok", "moe_topk")


def _size_outside(source: DirectorySource | ModelSource, home: Home | None) -> ModelSize | None:
    if isinstance(source, DirectorySource):
        return _size_in(source.path)
    model = source.model
    directory = found_directory(model, home)
    if directory is None and model.gguf is not None:
        settings = config_of(read_header(model.gguf))
        return size_of(config_from(settings.pop("model_type"), settings))
    return (None if directory is None else _size_in(directory)) or _declared(model)


def _size_in(directory: Path) -> ModelSize | None:
    """The size of a model directory; None where its config says too little."""
    try:
        # Never code of the model's own, and no question whether it may run.
        size = size_of(AutoConfig.from_pretrained(directory, trust_remote_code=False))
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    kept = kept_in(directory)
    return size if kept is None else replace(size, kept_bytes=getattr(torch, kept).itemsize)


def _declared(model: RecipeModel) -> ModelSize | None:
    """What the recipe says of a model that is not on disk; None where it says nothing."""
    if model.parameters is None:
        return None
    cached = None
    if model.layers is not None and model.kv_heads is not None and model.head_dim is not None:
        cached = model.layers * 2 * model.kv_heads * model.head_dim
    active = model.active_parameters or model.parameters
    return ModelSize(model.parameters, active, model.layers, model.hidden_size, cached)


def _size_made(settings: Any, read: Mapping[str, ModelSize | None]) -> ModelSize | None:
    """The size of what a stage makes: that of the model which it starts from, or which its gate promotes."""
    if settings.kind == "pretrain":
        try:
            vocabulary = {"vocab_size": settings.tokenizer.vocab_size}
            return size_of(config_from(settings.model_type, {**settings.model, **vocabulary}))
        except (ValueError, UnsupportedModel):
            return None
    return read.get("candidate" if settings.kind == "gate" else "from")


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
