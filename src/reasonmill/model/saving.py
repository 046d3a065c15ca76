"""Networks to Hugging Face directories."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from reasonmill.errors import UnsupportedModel

# What belongs to a model apart from its config and weights: its tokenizer and how it generates.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "*.model",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
)


def save_network(network: PreTrainedModel, target: Path, *, companions: Path | None) -> None:
    """Writes config and weights as safetensors, and copies the files that go with them.

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
