"""Whether a model can be run, by its config and its tokenizer: no weights are read, and they may not be there."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from reasonmill.errors import UnsupportedModel
from reasonmill.model.attention import NAME
from reasonmill.model.decoder import Decoder, first_line
from reasonmill.model.directory import (
    CONFIG,
    INDICES,
    WHOLE,
    content,
    refuse_described,
    refuse_directory,
    refuse_foreign_code,
)
from reasonmill.model.tokenizer import model_tokenizer

# One of them is there where there is a tokenizer.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json")


def refuse_unrunnable(model_dir: Path, *, trust_remote_code: bool, has_weights: bool = True) -> None:
    """Refuses a model that the native engine can't run, or that has no tokenizer that can be used.

    Args:
        has_weights: whether they have to be there by now.

    A config that names no architecture is left to whoever loads it, and so is code that comes with a model and is
    trusted: none of it runs for this.

    Raises:
        UnsupportedModel: with what stands against it.
    """
    (refuse_directory if has_weights else refuse_described)(model_dir)
    named = content(model_dir / CONFIG).get("model_type")
    if named is None:
        return
    if named in CONFIG_MAPPING:
        _refuse_network(model_dir)
    elif "auto_map" in content(model_dir / CONFIG):
        refuse_foreign_code(model_dir, CONFIG, trust=trust_remote_code)
    else:
        raise UnsupportedModel(
            f"its architecture {named!r} is not one that transformers {transformers.__version__} has",
            fix="update transformers, or use another model",
            where=str(model_dir),
        )
    if has_weights and not any((model_dir / name).is_file() for name in (*INDICES, *WHOLE)):
        raise UnsupportedModel(
            f"the model has no weights: none of {', '.join((*WHOLE, *INDICES))} is there",
            fix="copy or download all files of the model again",
            where=str(model_dir),
        )
    if not any((model_dir / name).is_file() for name in _TOKENIZERS):
        raise UnsupportedModel(
            f"the model has no tokenizer: none of {', '.join(_TOKENIZERS)} is there",
            fix="put the tokenizer's files beside the model",
            where=str(model_dir),
        )
    model_tokenizer(model_dir, trust_remote_code=trust_remote_code)


def _refuse_network(model_dir: Path) -> None:
    try:
        config = AutoConfig.from_pretrained(model_dir)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    except Exception as error:  # whatever the code of an architecture raises
        raise UnsupportedModel(
            f"no causal language model has its config: {first_line(error)}",
            fix="give a directory that AutoModelForCausalLM.from_pretrained loads",
            where=str(model_dir),
        ) from error
    Decoder(network)
