"""GGUF files as models: what can be made of one is written as a directory in Hugging Face's format, once.

The header says all that a config needs. transformers has a loader of its own, which is not used: it does not know how
SmolLM splits text, passes over the factors of Llama 3's rotations and over tensors that it does not know, and says
nothing. The arithmetic of quantised weights is the package gguf's.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.model.directory import listed
from reasonmill.model.gguf_header import GgufHeader, GgufTensor
from reasonmill.model.gguf_tokenizer import ends_of_turns, refuse_tokenizer, write_tokenizer

# Architectures by their names in ggml, which for these are transformers' too. A name of settings that is not known
# might change what is computed.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
_SETTINGS = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "attention.causal"),
        *("rope.scaling.type", "expert_count", "expert_used_count"),
    }
)
_NEEDED = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
    "attention.layer_norm_rms_epsilon",
)
# The factors by which Llama 3.1 and later slow their rotations down, as ggml has them in place of four numbers; three
# of these are the same in all models that were published.
_ROTATIONS = "rope_freqs.weight"
_ORIGINAL, _SLOWEST, _FASTEST = 8192, 1.0, 4.0


def the_package() -> ModuleType:
    """The package gguf.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise RecipeError(
            "a model in a GGUF file needs the package gguf, which is not installed",
            fix="pip install 'reasonmill[gguf]'",
        ) from error


def refuse_gguf(header: GgufHeader) -> None:
    """Refuses a file that no model can be made of, by its header alone.

    Raises:
        UnsupportedModel: its architecture, a setting of it, its tokenizer or a type of its weights is not known, or the
            file is cut off.
        RecipeError: the package gguf is not installed.
    """
    package = the_package()
    what = _obstacle(header) or _obstacle_of_weights(header, package)
    if what:
        raise UnsupportedModel(
            f"the GGUF file can't be used: {what}",
            fix="give the checkpoint that it was made from, as a directory",
            where=str(header.path),
        )
    refuse_tokenizer(header)


def config_of(header: GgufHeader) -> dict[str, Any]:
    """The settings of transformers' config, with "model_type"."""
    heads, width = header.of_model("attention.head_count"), header.of_model("embedding_length")
    held = {tensor.name: tensor for tensor in header.tensors}
    rotation: dict[str, Any] = {"rope_type": "default", "rope_theta": _number(header.of_model("rope.freq_base", 1e4))}
    if _ROTATIONS in held:
        rotation |= {
            "rope_type": "llama3",
            "factor": _number(float(_values(header, held[_ROTATIONS], the_package()).max())),
            "original_max_position_embeddings": _ORIGINAL,
            "low_freq_factor": _SLOWEST,
            "high_freq_factor": _FASTEST,
        }
    config = {
        "model_type": header.architecture,
        "vocab_size": held["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": header.of_model("feed_forward_length"),
        "num_hidden_layers": header.of_model("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.of_model("attention.head_count_kv", heads),
        "head_dim": _head_dim(header),
        "max_position_embeddings": header.of_model("context_length"),
        "rms_norm_eps": _number(header.of_model("attention.layer_norm_rms_epsilon")),
        "rope_parameters": rotation,
        "tie_word_embeddings": "output.weight" not in held,
        **{f"{role}_token_id": header.of_tokenizer(of) for role, of in _TOKENS.items()},
    }
    if header.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in held
    return config


def write_model(header: GgufHeader, target: Path) -> None:
    """Writes the model of a file that was not refused: config, weights, tokenizer and chat template.

    Weights have the type that the file has its matrices in; quantised ones are computed in fp32 and rounded to bf16,
    which is what models are published in and finer than what they were quantised to.

    Args:
        target: an empty directory.

    Raises:
        UnsupportedModel: weights are missing, there are others, or they have other shapes.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from reasonmill.model.decoder import config_from

    package = the_package()
    settings = config_of(header)
    dtype = getattr(torch, _dtype(header, package))
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(config_from(settings.pop("model_type"), settings), dtype=dtype)
    names = package.get_tensor_name_map(_architecture(package, header), header.of_model("block_count"))
    held = {tensor.name: tensor for tensor in header.tensors if tensor.name != _ROTATIONS}
    state, missing = {}, []
    for name, parameter in network.state_dict().items():
        of = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if of not in held:
            if name != "lm_head.weight" or not settings["tie_word_embeddings"]:
                missing.append(name)
            continue
        values = _unpermuted(header, name)(_values(header, held.pop(of), package))
        if values.shape != tuple(parameter.shape):
            missing.append(f"{name} of the shape {tuple(parameter.shape)}")
        state[name] = torch.from_numpy(values).to(dtype)
    if missing or held:
        lacks = [f"it lacks {listed(missing)}"] if missing else []
        knows = [f"it has {listed(held)}, which are not known"] if held else []
        raise UnsupportedModel(
            f"the weights of the GGUF file are not those of a {type(network).__name__}: {'; '.join([*lacks, *knows])}",
            fix="give the checkpoint that it was made from, as a directory",
            where=str(header.path),
        )
    network.load_state_dict(state, strict=False, assign=True)
    network.tie_weights()
    ends = ends_of_turns(header)
    tokens = {f"{role}_token_id": header.of_tokenizer(of) for role, of in _TOKENS.items()}
    network.generation_config = GenerationConfig(**{**tokens, "eos_token_id": ends if len(ends) > 1 else ends[0]})
    network.save_pretrained(target)
    write_tokenizer(header, target, settings["max_position_embeddings"])


_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}


def _obstacle(header: GgufHeader) -> str:
    """What of the settings stands against the file; empty if nothing does."""
    of = header.architecture
    if of not in ARCHITECTURES:
        return f"its architecture is {of or 'not named'!r}, and {', '.join(ARCHITECTURES)} are read"
    missing = [name for name in _NEEDED if header.of_model(name) is None]
    if missing:
        return f"it lacks {listed(f'{of}.{name}' for name in missing)}"
    ours = (name.removeprefix(f"{of}.") for name in header.settings if name.startswith(f"{of}."))
    strange = [name for name in ours if name not in _SETTINGS]
    if strange:
        return f"it sets {listed(f'{of}.{name}' for name in strange)}, which are not known"
    if header.of_model("expert_count"):
        return "it is a mixture of experts"
    if header.of_model("rope.scaling.type", "none") != "none":
        return f"its positions are scaled ({header.of_model('rope.scaling.type')})"
    uneven = [name for name in _SETTINGS if isinstance(header.of_model(name), list)]
    if uneven:
        return f"its layers differ in {listed(uneven)}"
    widths = {header.of_model(name, _head_dim(header)) for name in ("attention.value_length", "rope.dimension_count")}
    if widths != {_head_dim(header)}:
        return "its values are of another width than its keys, or only a part of its heads is rotated"
    return ""


def _obstacle_of_weights(header: GgufHeader, package: ModuleType) -> str:
    """What of the tensors stands against the file; empty if nothing does."""
    unread = {tensor.kind for tensor in header.tensors if not _is_read(tensor.kind, package)}
    if unread:
        known = {int(kind): kind.name for kind in package.GGMLQuantizationType}
        named = listed(known.get(kind, f"number {kind}") for kind in unread)
        return f"its weights are of types that are not read: {named}"
    size = header.path.stat().st_size
    beyond = [tensor.name for tensor in header.tensors if tensor.start + _num_bytes(tensor, package) > size]
    if beyond:
        return f"the file is cut off: it ends before {listed(beyond)}"
    held = {tensor.name: tensor for tensor in header.tensors}
    if "token_embd.weight" not in held:
        return "it has no embedding (token_embd.weight)"
    if len(header.of_tokenizer("tokens") or ()) > held["token_embd.weight"].shape[0]:
        return "its tokenizer has more tokens than its embedding has rows"
    if _ROTATIONS in held:
        factors = _values(header, held[_ROTATIONS], package)
        told = _slowed(header, float(factors.max()))
        if factors.shape != told.shape or not np.allclose(factors, told, rtol=1e-3):
            return f"its factors of rotations ({_ROTATIONS}) are not Llama 3's"
    return ""


def _is_read(kind: int, package: ModuleType) -> bool:
    """Whether the package computes weights of a type."""
    try:
        of = package.GGMLQuantizationType(kind)
        _, num_bytes = package.GGML_QUANT_SIZES[of]
        package.dequantize(np.zeros((1, num_bytes), np.uint8), of)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


def _num_bytes(tensor: GgufTensor, package: ModuleType) -> int:
    per_block, num_bytes = package.GGML_QUANT_SIZES[package.GGMLQuantizationType(tensor.kind)]
    return math.prod(tensor.shape) // int(per_block) * int(num_bytes)


def _values(header: GgufHeader, tensor: GgufTensor, package: ModuleType) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor's weights in fp32."""
    kind = package.GGMLQuantizationType(tensor.kind)
    held = np.fromfile(header.path, np.uint8, _num_bytes(tensor, package), offset=tensor.start)
    rows = held.reshape(math.prod(tensor.shape[:-1]), -1)
    values: np.ndarray[Any, np.dtype[np.float32]] = package.dequantize(rows, kind)
    return np.ascontiguousarray(values.reshape(tensor.shape), np.float32)


def _dtype(header: GgufHeader, package: ModuleType) -> str:
    """torch's name of the type that the written weights have."""
    kinds = {package.GGMLQuantizationType(tensor.kind).name for tensor in header.tensors if len(tensor.shape) > 1}
    return {frozenset({"F32"}): "float32", frozenset({"F16"}): "float16"}.get(frozenset(kinds), "bfloat16")


def _architecture(package: ModuleType, header: GgufHeader) -> Any:
    return next(of for of, name in package.MODEL_ARCH_NAMES.items() if name == header.architecture)


def _head_dim(header: GgufHeader) -> int:
    shared = header.of_model("embedding_length") // header.of_model("attention.head_count")
    return int(header.of_model("attention.key_length", shared))


def _unpermuted(header: GgufHeader, name: str) -> Callable[[Any], Any]:
    """Undoes the order in which ggml keeps the rows of Llama's queries and keys.

    It rotates neighbours, where transformers rotates the two halves of a head.
    """
    heads: Mapping[str, int] = {
        ".q_proj.": header.of_model("attention.head_count"),
        ".k_proj.": header.of_model("attention.head_count_kv", header.of_model("attention.head_count")),
    }
    count = next((number for part, number in heads.items() if part in name), None)
    if header.architecture != "llama" or count is None:
        return lambda values: values
    return lambda values: np.ascontiguousarray(
        values.reshape(count, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


def _slowed(header: GgufHeader, factor: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What each of Llama 3's rotations is slowed down by: short waves not at all, long ones by the factor."""
    width = _head_dim(header)
    waves = 2 * math.pi * float(header.of_model("rope.freq_base", 1e4)) ** (np.arange(0, width, 2) / width)
    share = np.clip((_ORIGINAL / waves - _SLOWEST) / (_FASTEST - _SLOWEST), 0, 1)
    return 1 / ((1 - share) / factor + share)


def _number(value: float) -> float:
    """The shortest number that is this one in fp32, as files have them."""
    return float(str(np.float32(value)))
