"""A learner's state on disk: a file of the safetensors format, written and read one tensor at a time.

safetensors' own function first gathers all tensors in the memory of the host, and a state is several times as large as
the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

STATE_FILE = "state.safetensors"

# Names of the format. The widest numbers come first, so that each tensor lies on a multiple of its numbers' size.
_DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_WIDEST_FIRST = list(_DTYPES)


def write_state(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors of any device; the same ones give the same bytes. None is copied on its device."""
    names = sorted(tensors, key=lambda name: (_WIDEST_FIRST.index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with (directory / STATE_FILE).open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            file.write(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class StateFile(Mapping[str, Tensor]):
    """The tensors of a directory's state by name; each is read when it is asked for.

    Raises:
        KeyError: there is no tensor of the name.
    """

    def __init__(self, directory: Path) -> None:
        opened: Any = safe_open  # safetensors annotates none of its functions
        self._file = opened(directory / STATE_FILE, framework="pt")
        self._names = frozenset(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
