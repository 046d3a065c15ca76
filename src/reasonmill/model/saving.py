"""Networks to Hugging Face directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from reasonmill.errors import TrainingDiverged, UnsupportedModel
from reasonmill.model.decoder import is_finite, load_network
from reasonmill.model.directory import CONFIG, beside_weights, content, kept_in, listed
from reasonmill.model.lora import Adapter
from reasonmill.model.tokenizer import model_tokenizer

# Where a trained adapter lies in the directory of the model that has it.
_APART = "adapter"


def save_network(
    network: PreTrainedModel, target: Path, *, companions: Path | None, adapter: Adapter | None = None
) -> None:
    """Writes config and weights as safetensors, and copies the files that go with them as they are.

    Weights are written in the type that the companions' are kept in, whatever the network computes in. Where the chat
    template ends turns with a token that neither the tokenizer's settings nor the generation's name, the latter get it:
    the model learned to end with it, and others who run it would not stop there.

    Args:
        target: an existing directory.
        companions: the model directory whose tokenizer, generation settings and other files the model keeps; None for
            a model without them.
        adapter: what was added to the network. Written are weights that have it merged in, for every program that reads
            models, and beside them the adapter itself, for those that read PEFT's.

    Raises:
        UnsupportedModel: `companions` holds no tokenizer to go with the model.
    """
    state = None if adapter is None else adapter.merged_state()
    kept = None if companions is None else kept_in(companions)
    dtype = network.dtype if kept is None else getattr(torch, kept)
    if dtype != network.dtype:
        state = _cast(network.state_dict() if state is None else state, dtype)
    network.save_pretrained(target, state_dict=state)
    if dtype != network.dtype:
        table = {**content(target / CONFIG), "dtype": kept}
        (target / CONFIG).write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if adapter is not None:
        adapter.write(target / _APART)
    if companions is not None:
        _copy_beside_weights(companions, target)
        _stop_as_taught(target, companions)


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in another type; those that are one tensor stay one."""
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in state.values():
        if tensor.is_floating_point():
            cast.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
    return {name: cast.get((tensor.data_ptr(), tensor.shape), tensor) for name, tensor in state.items()}


def _copy_beside_weights(companions: Path, target: Path) -> None:
    """Copies all that belongs to a model apart from its config and weights."""
    for file in beside_weights(companions):
        copy = target / file.relative_to(companions)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    if not any(target.glob("tokenizer*")):
        raise UnsupportedModel("the model directory has no tokenizer", where=str(companions))


def _stop_as_taught(target: Path, companions: Path) -> None:
    tokenizer = model_tokenizer(companions)
    file = target / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    configured = settings.get("eos_token_id")
    stops = [configured] if isinstance(configured, int) else configured or []
    own = tokenizer.plain.eos_token_id
    if tokenizer.end_of_turn not in (own, *stops):
        named = {token for token in (own, *stops, tokenizer.end_of_turn) if token is not None}
        file.write_text(json.dumps({**settings, "eos_token_id": sorted(named)}, indent=2) + "\n", encoding="utf-8")


def refuse_unsound(directory: Path, kind: str) -> None:
    """Looks at a model that a stage has written, whatever wrote it, before it is committed.

    Args:
        kind: "model" or "reward-model".

    Raises:
        TrainingDiverged: weights are not finite.
        UnsupportedModel: weights are missing, unknown or can't be read.
    """
    broken: list[str] = []
    opened: Any = safe_open  # safetensors annotates none of its functions
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with opened(file, framework="pt") as weights:
                broken += [name for name in weights.keys() if not is_finite(weights.get_tensor(name))]  # noqa: SIM118
        except SafetensorError as error:
            raise UnsupportedModel(f"{file.name} can't be read: {error}", where=str(directory)) from error
    if broken:
        raise TrainingDiverged(
            f"{len(broken)} tensors of the trained model hold NaN or infinity: {listed(broken)}",
            fix="lower schedule.peak, or clip harder with optimizer.clip_norm; the model is not committed",
        )
    config = content(directory / CONFIG)
    # Code that comes with a model is not run for this.
    if config.get("model_type") in CONFIG_MAPPING and any(directory.glob("*.safetensors")):
        auto: Any = AutoModelForSequenceClassification if kind == "reward-model" else AutoModelForCausalLM
        load_network(auto, directory, torch.float32, meta=True).refuse_incomplete()


def has_same_weights(directory: Path, parent: Path) -> bool:
    """Whether a trained model has the weights of the one that it was before, and zeros where that had none."""
    opened: Any = safe_open
    before: dict[str, Path] = {}
    for file in sorted(parent.glob("*.safetensors")):
        with opened(file, framework="pt") as weights:
            before |= dict.fromkeys(weights.keys(), file)
    same = bool(before)
    for file in sorted(directory.glob("*.safetensors")):
        with opened(file, framework="pt") as weights:
            for name in weights.keys() if same else ():
                now = weights.get_tensor(name)
                if name not in before:
                    same = not bool(now.any())
                else:
                    with opened(before[name], framework="pt") as earlier:
                        same = torch.equal(earlier.get_tensor(name).to(now.dtype), now)
                if not same:
                    return False
    return same
