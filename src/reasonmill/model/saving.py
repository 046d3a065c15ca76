"""Networks to Hugging Face directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from reasonmill.errors import UnsupportedModel
from reasonmill.model.tokenizer import COMPANIONS, model_tokenizer


def save_network(network: PreTrainedModel, target: Path, *, companions: Path | None) -> None:
    """Writes config and weights as safetensors, and copies the files that go with them.

    Where the chat template ends turns with a token that neither the tokenizer's settings nor the generation's name,
    the latter get it: the model learned to end with it, and others who run it would not stop there.

    Args:
        target: an existing directory.
        companions: the model directory whose tokenizer and generation settings the model keeps; None for a model
            without them.

    Raises:
        UnsupportedModel: `companions` holds no tokenizer to go with the model.
    """
    if companions is not None:
        for pattern in COMPANIONS:
            for file in companions.glob(pattern):
                shutil.copyfile(file, target / file.name)
        if not any(target.glob("tokenizer*")):
            raise UnsupportedModel("the model directory has no tokenizer", where=str(companions))
    network.save_pretrained(target)
    if companions is not None:
        _stop_as_taught(target, companions)


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
