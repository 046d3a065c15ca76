"""Writes a model directory: Qwen2.5's shape with random weights, and a tokenizer in which each letter is a token.

It needs a GPU, on which the weights are drawn, and an interpreter with transformers.

    python benchmarks/gpu/random_model.py DIRECTORY --size 0.5b
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from shapes import LETTERS, SIZES, write_config
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

# At the numbers that Qwen2.5's config files name.
END_OF_TEXT, END_OF_TURN = (151643, "<|endoftext|>"), (151645, "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="must not exist")
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--device", default="cuda", help="that draws the weights")
    options = parser.parse_args()
    if options.directory.exists():
        parser.error(f"{options.directory} exists")
    write_config(options.directory, options.size)
    config = AutoConfig.from_pretrained(options.directory)
    torch.manual_seed(0)
    with torch.device(options.device):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(options.directory)
    pieces = {piece: number for number, piece in enumerate(LETTERS)}
    pieces |= {f"<{number}>": number for number in range(len(LETTERS), config.vocab_size)}
    for number, mark in (END_OF_TEXT, END_OF_TURN):
        del pieces[f"<{number}>"]
        pieces[mark] = number
    # Without merges, each letter is a token.
    tokenizer = Qwen2Tokenizer(vocab=pieces, merges=[], pad_token=END_OF_TEXT[1], eos_token=END_OF_TURN[1])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(options.directory)


if __name__ == "__main__":
    main()
