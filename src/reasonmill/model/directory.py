"""What a directory that is given as a model is, by its files alone: what can't be run is told apart by name.

Nothing is imported that takes long, so that a recipe is refused before anything is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reasonmill.errors import UnsupportedModel

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
# Weights in the order in which transformers looks for them: one file, or an index of several.
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Names of files with weights, of whatever program.
WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.ckpt",
)
# What a home adds to the files of what it keeps: their list, which is that of no other model.
_MANIFEST = "manifest.json"
# Templates beside the one that is used when nobody names one, as Hugging Face keeps them.
_TEMPLATES = "additional_chat_templates"
# What weights are made of where nobody has quantised them.
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Files of quantisers that wrote no `quantization_config`, and what they are called.
_QUANTISERS = {"quantize_config.json": "gptq", "quant_config.json": "awq", "quantization_config.json": "quantised"}
_NO_CODE = "set trust_remote_code = true at the head of the recipe if you have read that code and trust it"


def refuse_directory(path: Path, kind: str = "model") -> None:
    """Refuses a directory that is no model whose weights can be read and trained.

    Args:
        kind: of model that is wanted, for the message.

    Raises:
        UnsupportedModel: it holds an adapter, a GGUF file, quantised weights, a config that can't be read, or only some
            of its weights.
    """
    refuse_described(path, kind)
    for index in INDICES:
        missing = [name for name in shards(path, index) if not (path / name).is_file()]
        if missing:
            raise UnsupportedModel(
                f"its index names files that are not there: {listed(missing)}",
                fix="copy or download all files of the model again",
                where=str(path / index),
            )


def refuse_described(path: Path, kind: str = "model") -> None:
    """The same, where the weights may still be elsewhere."""
    if (path / ADAPTER).is_file():
        raise _adapter(path)
    if not (path / CONFIG).is_file():
        raise _without_config(path, kind)
    method = _quantised(path)
    if method is not None:
        raise UnsupportedModel(
            f"its weights are quantised ({method}), which are neither trained nor sampled here",
            fix="give the checkpoint that it was made from, in bf16 or fp32",
            where=str(path),
        )


def refuse_foreign_code(path: Path, file: str, *, trust: bool) -> None:
    """Refuses a model or a tokenizer that brings code of its own, unless that is trusted.

    Args:
        file: the one that names the code.

    Raises:
        UnsupportedModel: it does, and is not.
    """
    if trust or not (named := content(path / file).get("auto_map")):
        return
    modules = {str(name).split("--")[-1].rpartition(".")[0] for name in _texts(named)}
    raise UnsupportedModel(
        f"it runs code that comes with it: {listed(f'{module}.py' for module in modules)}",
        fix=_NO_CODE,
        where=str(path / file),
    )


def beside_weights(path: Path) -> list[Path]:
    """The files of a model that are neither its config nor weights, whoever wrote them: tokenizer, templates, how it
    generates, a licence, a description. Hidden ones are left out, other directories, and the list of its files that a
    home adds to what it keeps."""
    files = [*path.iterdir(), *(path / _TEMPLATES).glob("*")]
    return sorted(file for file in files if file.is_file() and _is_beside_weights(file.name))


def _is_beside_weights(name: str) -> bool:
    return name not in (CONFIG, ADAPTER, _MANIFEST) and not any(
        fnmatch(name, pattern) for pattern in (".*", *INDICES, *WEIGHTS)
    )


def kept_in(path: Path) -> str | None:
    """The type that a directory's weights are kept in, by torch's name: that of most files' numbers; None where its
    files do not say."""
    counts: dict[str, int] = {}
    for kind, numbers in _tensors(path):
        counts[kind] = counts.get(kind, 0) + numbers
    if counts:
        return _FLOATS.get(max(counts, key=lambda kind: counts[kind]))
    config = content(path / CONFIG)
    named = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return named if named in _FLOATS.values() else None


def content(path: Path) -> dict[str, Any]:
    """A JSON file's table; empty where there is no such file.

    Raises:
        UnsupportedModel: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path.name} is not valid JSON: {error}", fix="restore it", where=str(path)) from error
    if not isinstance(found, dict):
        raise UnsupportedModel(f"{path.name} holds no table", fix="restore it", where=str(path))
    return found


def listed(names: Any, shown: int = 5) -> str:
    """Some of the names, in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + more


def _adapter(path: Path) -> UnsupportedModel:
    base = content(path / ADAPTER).get("base_model_name_or_path") or "its base model"
    beside = " beside a model" if (path / CONFIG).is_file() else ""
    return UnsupportedModel(
        f"the directory holds an adapter{beside} ({ADAPTER}): changes to {base}",
        fix="name it as the path of a recipe's [models.NAME], which merges it with its base; or merge it and give the "
        "merged model: peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)"
        + (f"; or remove {ADAPTER}, if the model itself is meant" if beside else ""),
        where=str(path),
    )


def _without_config(path: Path, kind: str) -> UnsupportedModel:
    ggufs = [file.name for file in path.glob("*.gguf")] if path.is_dir() else []
    if ggufs:
        return UnsupportedModel(
            f"the directory holds a model as GGUF ({listed(ggufs)})",
            fix="name the file itself as the path of a recipe's [models.NAME], which makes a directory of it",
            where=str(path),
        )
    return UnsupportedModel(
        f"no {kind} can be loaded: the directory holds no {CONFIG}",
        fix=f"name a directory in Hugging Face's format ({CONFIG}, weights, tokenizer)",
        where=str(path),
    )


def _quantised(path: Path) -> str | None:
    """What the weights are quantised by; None if they are not."""
    config = content(path / CONFIG)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        found = part.get("quantization_config")
        if found:
            return str(found.get("quant_method", "unknown method") if isinstance(found, dict) else found)
    named = next((name for file, name in _QUANTISERS.items() if (path / file).is_file()), None)
    return named or next((f"tensors of {kind}" for kind, _ in _tensors(path) if kind not in _FLOATS), None)


def _tensors(path: Path) -> Iterator[tuple[str, int]]:
    """What the tensors of the directory are made of, as safetensors calls it, and how many numbers each has; a file
    that is broken is left to whoever reads the weights."""
    for file in sorted(path.glob("*.safetensors")):
        with suppress(SafetensorError), safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                tensor = opened.get_slice(name)
                yield tensor.get_dtype(), math.prod(tensor.get_shape())


def shards(path: Path, index: str) -> list[str]:
    """The files that an index of a directory names; none where it has no such index."""
    return sorted({str(file) for file in _texts(content(path / index).get("weight_map", {}))})


def _texts(value: Any) -> list[Any]:
    """All that a table holds, and what its lists hold."""
    values = value.values() if isinstance(value, dict) else [value]
    return [text for each in values for text in (each if isinstance(each, list) else [each]) if text is not None]
