"""What one GPU can do at most: its rates, measured, and the shortest time in which a load could be decoded.

As a script it prints the rates as a line of JSON, so that they are measured in a process of their own:

    python benchmarks/gpu/card.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

MATRIX, PRODUCTS = 8192, 20
COPIED, COPIES = 1 << 32, 10  # bytes
BYTES = 2  # of a weight, a key or a value in bf16


@dataclass(frozen=True)
class Card:
    """A GPU: bytes a second of a large copy, read and written, and operations a second of a large bf16 product."""

    name: str
    torch: str
    bandwidth: float
    matrix_rate: float


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    device = torch.device("cuda")
    rates = copy_rate(device), matrix_rate(device)
    print(json.dumps(asdict(Card(torch.cuda.get_device_name(device), torch.__version__, *rates))))


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large product of random bf16 matrices."""
    left, right = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(device, lambda: [left @ right for _ in range(PRODUCTS)]) for _ in range(4)]
    return 2 * MATRIX**3 * PRODUCTS / statistics.median(times[1:])


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy within the device's memory."""
    source = torch.randint(256, (COPIED,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = [seconds(device, lambda: [target.copy_(source) for _ in range(COPIES)]) for _ in range(4)]
    return 2 * COPIED * COPIES / statistics.median(times[1:])


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """How long the device takes for what `work` starts."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floor_seconds(shape: Mapping[str, Any], lengths: Sequence[int], prompt: int, group: int, card: Card) -> float:
    """The time that the card needs at least to decode completions of these lengths, all of them from the beginning on.

    A step's products take what reading their weights or what their arithmetic takes, whichever is longer; then keys and
    values of all tokens are read once, those of a prompt once for its group. Prompts are read by arithmetic alone.

    Args:
        shape: sizes of a Qwen2 decoder, as `shapes` has them.
        lengths: tokens of each completion; those of a group stand together.
        prompt: tokens of each prompt.
    """
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    narrow = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    of_layers = layers * (2 * width * width + 2 * width * narrow + 3 * width * shape["intermediate_size"])
    products = of_layers + shape["vocab_size"] * width
    token_bytes = 2 * layers * narrow * BYTES
    groups = [max(lengths[start : start + group]) for start in range(0, len(lengths), group)]
    total: float = 2 * of_layers * prompt * len(groups) / card.matrix_rate
    for step in range(max(lengths)):
        running = sum(length > step for length in lengths)
        read = running * step + prompt * sum(length > step for length in groups)
        total += max(BYTES * products / card.bandwidth, 2 * products * running / card.matrix_rate)
        total += token_bytes * read / card.bandwidth
    return total


if __name__ == "__main__":
    main()
