"""What a stage's user is told when the memory of a GPU does not suffice: how much was asked for, and what lowers it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reasonmill.errors import OutOfMemory
from reasonmill.peak_memory import used_bytes

_ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+)")


@contextmanager
def told_out_of_memory(settings: Any) -> Iterator[None]:
    """In the block, a GPU's full memory is an error that names the settings of the stage which need less of it.

    Raises:
        OutOfMemory: the memory is full, or would be.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(_what(error), fix=_fix(settings), where=f"stage {settings.name!r}") from error
    except OutOfMemory as error:
        error.where = error.where or f"stage {settings.name!r}"
        raise


def _what(error: torch.OutOfMemoryError) -> str:
    asked = _ASKED.search(str(error))
    more = f"{asked[1]} more are needed" if asked else "more is needed"
    free, whole = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
    held = used_bytes("cuda") or 0 if torch.cuda.is_available() else 0
    return (
        f"the GPU's memory is full: {more}, of its {whole / 1e9:.1f} GB this stage holds {held / 1e9:.1f} GB, and "
        f"{free / 1e9:.1f} GB are free"
    )


def _fix(settings: Any) -> str:
    """Settings of the stage that need less, what costs least first."""
    found = []
    if getattr(settings, "precision", None) == "fp32":
        found.append('precision = "bf16"')
    if getattr(settings, "recompute", None) is False:
        found.append("recompute = true")
    if tokens := getattr(settings, "tokens_per_batch", 0):
        found.append(f"a tokens_per_batch below {tokens}")
    sampling = getattr(settings, "sampling", None)
    if sampling is not None:
        found += [f"a sampling.slots below {sampling.slots}"] if hasattr(sampling, "slots") else []
        found.append(f"a sampling.max_tokens below {sampling.max_tokens}")
    if getattr(settings, "lora", settings) is None:
        found.append("lora, which trains an adapter in place of the weights")
    found.append("a smaller model")
    return f"set {', or '.join(found)}; what is committed stays, and the same command goes on from there"
