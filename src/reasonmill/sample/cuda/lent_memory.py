"""Memory of a GPU that is lent: its addresses stay, and what lies behind them is there only while it is needed.

Graphs of the engine hold addresses, so that memory which they use can't be freed and made anew. By the driver's virtual
memory (CUDA driver API, "Virtual Memory Management") the addresses are reserved once; memory is mapped to them, and
given back to the card, as often as one likes.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reasonmill.errors import OutOfMemory, ReasonmillError
from reasonmill.peak_memory import count_beside

_LIBRARY = "libcuda.so.1"
# Of cuda.h: CUmemAllocationType, CUmemLocationType, CUmemAccess_flags, CUmemAllocationGranularity_flags, CUresult.
_PINNED, _ON_DEVICE, _READ_AND_WRITE, _MINIMUM, _OUT_OF_MEMORY = 1, 1, 3, 0, 2


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class LentMemory:
    """At least so many bytes of a GPU, which are there at first. After they were given back and taken again, they lie
    where they lay, and nobody knows what is in them.

    What is given back is not counted by torch, neither before nor after: `peak_memory` counts it.

    Attributes:
        size: in bytes, whole pages of the driver.
        is_there: whether the addresses may be read and written now.

    Args:
        library: the driver's, for tests.

    Raises:
        OutOfMemory: the card has no room for them.
        ReasonmillError: the driver has no virtual memory.
    """

    def __init__(self, size: int, device: torch.device, library: Any = None) -> None:
        self._device = device
        self._mapped = _Mapped(_driver() if library is None else library, _number_of(device), size)
        self.size = self._mapped.size
        # With the last tensor over it. Not at the end of the process, when the driver may be gone before.
        weakref.finalize(self, _forget, self._mapped, device).atexit = False
        self.take()

    @property
    def is_there(self) -> bool:
        return self._mapped.handle is not None

    def take(self) -> None:
        """Makes memory lie at the addresses, if there is none; what torch keeps for later is freed if it is in the way.

        Raises:
            OutOfMemory: the card has no room for it.
        """
        if self.is_there:
            return
        if torch.cuda.mem_get_info(self._device)[0] < self.size:
            torch.cuda.empty_cache()
        if not self._mapped.map():
            free, whole = torch.cuda.mem_get_info(self._device)
            raise OutOfMemory(
                f"the GPU's memory is full: keys and values take {_mib(self.size)}, and of its {_mib(whole)} "
                f"{_mib(free)} are free",
                fix="end other programs on the GPU, or lower sampling.max_tokens; what is committed stays, and the "
                "same command goes on from there",
            )

    def give_back(self) -> None:
        """Gives the memory back to the card, if it is there, when all that was asked of the card is done."""
        if self.is_there:
            torch.cuda.synchronize(self._device)
            self._mapped.unmap()

    def tensor(self) -> Tensor:
        """All of it as bytes [size]. It is made while the memory is there, and used only then."""
        made = torch.as_tensor(self, device=self._device)
        if made.data_ptr() != self._mapped.address:
            raise RuntimeError("torch has copied memory that it was to take as it lies")
        return made

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """As numba describes it, version 2; the tensor that is made of it holds this object."""
        return {"shape": (self.size,), "typestr": "|u1", "data": (self._mapped.address, False), "version": 2}


class _Mapped:
    """Addresses, and what lies behind them; `handle` is None where nothing does."""

    def __init__(self, library: Any, number: int, size: int) -> None:
        self._library = library
        location = _Location(_ON_DEVICE, number)
        self._properties = _Properties(type=_PINNED, location=location)
        self._access = _Access(location, _READ_AND_WRITE)
        self.size = size
        page = ctypes.c_size_t()
        self._call("cuMemGetAllocationGranularity", ctypes.byref(page), ctypes.byref(self._properties), _MINIMUM)
        self.size = -(-size // page.value) * page.value
        self.handle: int | None = None
        address = ctypes.c_uint64()
        none, flags = ctypes.c_uint64(0), ctypes.c_uint64(0)
        self._call("cuMemAddressReserve", ctypes.byref(address), self._bytes, ctypes.c_size_t(0), none, flags)
        self.address = address.value

    @property
    def _bytes(self) -> ctypes.c_size_t:
        return ctypes.c_size_t(self.size)

    @property
    def _at(self) -> ctypes.c_uint64:
        return ctypes.c_uint64(self.address)

    def map(self) -> bool:
        """False where the card has no room for it."""
        handle, flags = ctypes.c_uint64(), ctypes.c_uint64(0)
        code = self._library.cuMemCreate(ctypes.byref(handle), self._bytes, ctypes.byref(self._properties), flags)
        if code == _OUT_OF_MEMORY:
            return False
        self._check("cuMemCreate", code)
        try:
            self._call("cuMemMap", self._at, self._bytes, ctypes.c_size_t(0), handle, flags)
        except ReasonmillError:
            self._call("cuMemRelease", handle)
            raise
        self.handle = handle.value
        count_beside(self.size)
        self._call("cuMemSetAccess", self._at, self._bytes, ctypes.byref(self._access), ctypes.c_size_t(1))
        return True

    def unmap(self) -> None:
        """Nothing, where nothing is there."""
        if self.handle is None:
            return
        handle, self.handle = ctypes.c_uint64(self.handle), None
        count_beside(-self.size)
        self._call("cuMemUnmap", self._at, self._bytes)
        self._call("cuMemRelease", handle)

    def free(self) -> None:
        """Gives the addresses back."""
        self._call("cuMemAddressFree", self._at, self._bytes)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        said = (text.value or b"an error that it has no words for").decode(errors="replace")
        raise ReasonmillError(
            f"the GPU's driver refused {name} for {_mib(self.size)}: {said} ({code})",
            fix="the engine needs a driver with virtual memory management, as those of Linux have: update it",
        )


def _forget(mapped: _Mapped, device: torch.device) -> None:
    torch.cuda.synchronize(device)  # what was asked of the card may still use it
    mapped.unmap()
    mapped.free()


@cache
def _driver() -> Any:
    return ctypes.CDLL(_LIBRARY)


def _number_of(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"
