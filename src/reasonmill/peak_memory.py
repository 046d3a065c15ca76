"""The most memory that was in use on a device, and how much there is. On a CPU, it is that which the process has."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from dataclasses import dataclass
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_FORGET_PEAK = "5"  # what proc(5) says to write


@dataclass
class _Beside:
    """Bytes of the GPU that were taken beside torch, and the most that was in use before that last changed."""

    held: int = 0
    peak: int = 0


_beside = _Beside()


def count_beside(size: int) -> None:
    """Counts bytes of the GPU that were taken from its driver beside torch; less than 0 were given back."""
    import torch

    _beside.peak = peak_bytes("cuda") or 0
    torch.cuda.reset_peak_memory_stats()
    _beside.held += size


def begin_peak(device: str) -> None:
    """Makes `peak_bytes` speak of what is in use from now on, where the system lets it."""
    if device == "cuda":
        import torch

        _beside.peak = 0
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _CLEAR.write_text(_FORGET_PEAK)
    except OSError:
        return


def peak_bytes(device: str) -> int | None:
    """The most bytes in use since `begin_peak`; None where the system does not say."""
    if device == "cuda":
        import torch

        return max(_beside.peak, torch.cuda.max_memory_allocated() + _beside.held)
    return _resident("VmHWM")


def used_bytes(device: str) -> int | None:
    """Bytes in use now; None where the system does not say."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated() + _beside.held
    return _resident("VmRSS")


def give_back(device: str) -> None:
    """Gives back to the device what nothing uses any more, and on a GPU what is only held by what refers to itself.

    glibc keeps the memory of a model and what was learned with it, in pieces of some MB, for what asks for it next: of
    SmolLM2 2.7 GB, which look as if they were in use. Other libraries have no such call.
    """
    if device == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_of(device: str) -> tuple[int, int]:
    """(bytes that nobody uses, those that torch keeps for later among them; all bytes) of the device."""
    if device == "cuda":
        import torch

        free, whole = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated(), whole
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _read(_MEMINFO, "MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"), whole


def _resident(what: str) -> int | None:
    return _read(_STATUS, what)


def _read(file: Path, what: str) -> int | None:
    """A line of one of the kernel's tables, which are in KiB; None where there is none."""
    try:
        found = re.search(rf"^{what}:\s+(\d+) kB$", file.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
