"""Writes a model directory: Qwen2.5's shape with random weights, and a tokenizer.

Without `--tokenizer`, each letter is a token, and nothing else is known. With it, the tokenizer of that directory is
taken, and numbers that it lacks get a piece of their own. It needs an interpreter with transformers, and the device
that draws the weights.

    python benchmarks/gpu/random_model.py DIRECTORY --size 0.5b
    python benchmarks/gpu/random_model.py DIRECTORY --size 1.5b --tokenizer src/reasonmill/world/bases/tiny-base
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from shapes import LETTERS, SIZES, write_config
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Tokenizer

# At the numbers that Qwen2.5's config files name.
END_OF_TEXT, END_OF_TURN = (151643, "<|endoftext|>"), (151645, "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
)
# Of a tokenizer, as transformers saves it.
VOCABULARY = "tokenizer.json"
TOKENIZER_FILES = (VOCABULARY, "tokenizer_config.json", "chat_template.jinja")
# One of so many pieces that are made up ends a sentence.
SENTENCE = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="must not exist")
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--device", default="cuda", help="that draws the weights")
    parser.add_argument("--tokenizer", type=Path, help="a directory with a byte-level BPE tokenizer")
    options = parser.parse_args()
    if options.directory.exists():
        parser.error(f"{options.directory} exists")
    write_config(options.directory, options.size)
    config = AutoConfig.from_pretrained(options.directory)
    torch.manual_seed(0)
    with torch.device(options.device):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if options.tokenizer is None:
        _write_letters(options.directory, config.vocab_size)
    else:
        _write_filled(options.tokenizer, options.directory, config.vocab_size)
        _name_marks(network, options.directory)
    network.save_pretrained(options.directory)


def _write_letters(directory: Path, size: int) -> None:
    """A tokenizer without merges: each letter is a token."""
    pieces = {piece: number for number, piece in enumerate(LETTERS)}
    pieces |= {f"<{number}>": number for number in range(len(LETTERS), size)}
    for number, mark in (END_OF_TEXT, END_OF_TURN):
        del pieces[f"<{number}>"]
        pieces[mark] = number
    tokenizer = Qwen2Tokenizer(vocab=pieces, merges=[], pad_token=END_OF_TEXT[1], eos_token=END_OF_TURN[1])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)


def _write_filled(source: Path, directory: Path, size: int) -> None:
    """That of a directory, in which each number below `size` has a piece. No text is cut into those made up."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    content = json.loads((source / VOCABULARY).read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in content["added_tokens"])}
    if max(taken) >= size:
        raise SystemExit(f"the tokenizer has {max(taken) + 1} tokens, and the shape only {size}")
    for number in range(size):
        if number not in taken:
            # The letter with which byte-level vocabularies write a blank, so that each is a word.
            vocabulary[f"Ġ{number}{'' if number % SENTENCE else '.'}"] = number
    (directory / VOCABULARY).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _name_marks(network: PreTrainedModel, directory: Path) -> None:
    """Names the tokenizer's marks in the settings."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for settings in (network.config, network.generation_config):
        settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id


if __name__ == "__main__":
    main()
