"""Decoders to Hugging Face directories."""

from __future__ import annotations

import shutil
from pathlib import Path

from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import Decoder

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def save_decoder(decoder: Decoder, target: Path, *, companions: Path) -> None:
    """Writes config and weights as safetensors, and copies the files that go with them.

    Args:
        target: an existing directory.
        companions: the model directory whose tokenizer and generation settings the model keeps.

    Raises:
        UnsupportedModel: `companions` holds no tokenizer to go with the model.
    """
    for file in sorted(companions.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name not in ("config.json", "manifest.json"):
            shutil.copyfile(file, target / file.name)
    if not any(target.glob("tokenizer*")):
        raise UnsupportedModel("the model directory has no tokenizer", where=str(companions))
    decoder.network.save_pretrained(target)
