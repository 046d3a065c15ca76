"""The settings of an adapter in PEFT's format: what stands in `adapter_config.json`, and what of it is understood.

Nothing is imported that takes long, so that a recipe is refused before anything is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasonmill.errors import UnsupportedModel
from reasonmill.model.directory import ADAPTER, CONFIG, content, listed

WEIGHTS = "adapter_model.safetensors"
# The folder of a model directory with an adapter that is added to its weights when they are loaded. It is not PEFT's
# place for one beside a model, where transformers would look for it, too.
ADDED = "added_adapter"

# What changes more than a product of two matrices that is added to that of a linear layer, or something else.
_OTHERWISE = (
    *("use_dora", "lora_bias", "modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices"),
    *("alora_invocation_tokens", "arrow_config", "fan_in_fan_out", "kasa_config", "monteclora_config", "use_bdlora"),
    *("megatron_config", "use_qalora", "velora_config"),
)
# Ways of beginning that leave the base as it is; others subtract from its weights what the adapter begins with.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """How the matrices of an adapter are scaled.

    Attributes:
        base: the model that it changes, as whoever made it called that; empty if nobody did.
        ranks, alphas: those of modules that have others, by PEFT's patterns of their names.
        rooted: whether the scale is alpha by the rank's root (rsLoRA, arXiv 2312.03732), and not by the rank.
    """

    base: str
    rank: int
    alpha: float
    rooted: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def scale(self, module: str) -> float:
        """What the product of a module's matrices is multiplied by."""
        rank, alpha = _of(module, self.ranks, self.rank), _of(module, self.alphas, self.alpha)
        return float(alpha / (math.sqrt(rank) if self.rooted else rank))


def _of(module: str, patterns: Mapping[str, Any], otherwise: Any) -> Any:
    found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(found, otherwise)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, and no model."""
    return (directory / ADAPTER).is_file() and not (directory / CONFIG).is_file()


def read_adapter_config(directory: Path) -> AdapterConfig:
    """What a directory's adapter says of itself.

    Raises:
        UnsupportedModel: it is of a kind that is not understood, its settings are none, or its weights are not there.
    """
    path = directory / ADAPTER
    table = content(path)
    refused = [name for name in _OTHERWISE if table.get(name)]
    if table.get("peft_type") != "LORA":
        refused = [f"peft_type {table.get('peft_type')!r}"]
    if table.get("bias", "none") != "none":
        refused.append(f"bias {table['bias']!r}")
    beginning = table.get("init_lora_weights", True)
    if beginning not in _BEGINNINGS:
        refused.append(f"init_lora_weights {beginning!r}")
    if refused:
        raise UnsupportedModel(
            f"the adapter has {listed(refused)}, and only plain LoRA on linear layers is read",
            fix="merge it with PEFT (merge_and_unload) and give the merged model",
            where=str(path),
        )
    if not (directory / WEIGHTS).is_file():
        raise UnsupportedModel(
            f"the adapter has no {WEIGHTS}", fix="save it again with PEFT, as safetensors", where=str(directory)
        )
    try:
        return AdapterConfig(
            base=str(table.get("base_model_name_or_path") or ""),
            rank=int(table["r"]),
            alpha=float(table["lora_alpha"]),
            rooted=bool(table.get("use_rslora")),
            ranks={str(name): int(rank) for name, rank in (table.get("rank_pattern") or {}).items()},
            alphas={str(name): float(alpha) for name, alpha in (table.get("alpha_pattern") or {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedModel(
            f"the adapter's settings can't be read: {type(error).__name__}: {error}", fix="restore it", where=str(path)
        ) from error


def written_config(rank: int, alpha: float, targets: Collection[str]) -> dict[str, Any]:
    """The table of an adapter, as PEFT reads it. Its base is not named: a path would be one of this machine's."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }
