"""What there is on this machine: asked, tried and not judged."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from reasonmill.errors import ReasonmillError
from reasonmill.jail.found import NoJail, found_level
from reasonmill.peak_memory import memory_of
from reasonmill.store.home import Home

_PACKAGE = "reasonmill"
# Extras of those who work on the package itself.
_OWN_EXTRAS = frozenset({"bench", "dev"})
_NVIDIA = Path("/dev/nvidiactl")
_HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Gpu:
    """An accelerator that torch can use."""

    name: str
    free_bytes: float
    memory_bytes: float
    capability: tuple[int, int]
    bf16: bool


@dataclass(frozen=True)
class Facts:
    """A machine.

    Attributes:
        python, python_fits: the version, and whether it is one that the package allows.
        torch, torch_error: its version, "" where it can't be imported, and why not then.
        gpus, has_driver: what torch can use; and whether the system has an NVIDIA driver at all.
        cores, threads, load: processors of this process, threads that torch computes with, and what runs now.
        free_memory, memory: of the host.
        home, free_disk: where the home is or would be, and the bytes that are free there.
        home_error: why a home there can't keep what it has to; empty where one was made and read.
        jail, jail_error: the level of isolation; and what was tried where there is none.
        extras: of each extra of the package, what it would add.
        has_triton: whether kernels can be written for a GPU.
        hub_error: why the hub can't be reached; empty where it can, None where nobody asked.
        open_files: how many a process may have open; None for any number.
        bounded: further limits of the process, by name.
        clock_behind_s: by how much the clock is behind the newest file of the package.
    """

    python: str
    python_fits: bool
    torch: str
    torch_error: str
    gpus: tuple[Gpu, ...]
    has_driver: bool
    cores: int
    threads: int
    load: float
    free_memory: float
    memory: float
    home: Path
    free_disk: float
    home_error: str
    jail: str
    jail_error: str
    extras: Mapping[str, tuple[str, ...]]
    has_triton: bool
    hub_error: str | None
    open_files: int | None
    bounded: Mapping[str, int] = field(default_factory=dict)
    clock_behind_s: float = 0.0


def look(home: Path, *, ask_hub: bool) -> Facts:
    """Looks at this machine. Nothing that it tries is left behind.

    Args:
        home: where the home is, or would be made.
        ask_hub: whether the Hugging Face hub is asked whether it is there.
    """
    version, error, gpus, threads = _torch()
    free, whole = memory_of("cpu")
    disk = _existing(home)
    jail, jail_error = _jail()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = importlib.metadata.metadata(_PACKAGE)["Requires-Python"] or ""
    python = ".".join(map(str, sys.version_info[:3]))
    return Facts(
        python=python,
        python_fits=python in SpecifierSet(wanted),
        torch=version,
        torch_error=error,
        gpus=gpus,
        has_driver=_NVIDIA.exists(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=threads,
        load=os.getloadavg()[0],
        free_memory=free,
        memory=whole,
        home=home,
        free_disk=shutil.disk_usage(disk).free,
        home_error=_try_home(disk),
        jail=jail,
        jail_error=jail_error,
        extras=missing_extras(),
        has_triton=importlib.util.find_spec("triton") is not None,
        hub_error=_ask_hub() if ask_hub else None,
        open_files=None if soft == resource.RLIM_INFINITY else soft,
        bounded=_bounded(),
        clock_behind_s=max(0.0, _newest_file() - time.time()),
    )


def missing_extras() -> dict[str, tuple[str, ...]]:
    """The package's extras, each with those of its packages that are not here, or not in a version that fits."""
    told = importlib.metadata.metadata(_PACKAGE)
    needed = [Requirement(text) for text in told.get_all("Requires-Dist") or ()]
    return {
        extra: tuple(
            each.name
            for each in needed
            if each.marker is not None
            and each.marker.evaluate({"extra": extra})
            and not each.marker.evaluate({"extra": ""})
            and not _is_installed(each)
        )
        for extra in told.get_all("Provides-Extra") or ()
        if extra not in _OWN_EXTRAS
    }


def _is_installed(needed: Requirement) -> bool:
    try:
        return needed.specifier.contains(importlib.metadata.version(needed.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _torch() -> tuple[str, str, tuple[Gpu, ...], int]:
    """(version, why it can't be imported, what it can use, its threads)."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of the system that it lacks
        return "", str(error).split("\n", 1)[0], (), 0
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        told = torch.cuda.get_device_properties(number)
        free, whole = torch.cuda.mem_get_info(number)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append(Gpu(told.name, free, whole, (told.major, told.minor), bf16))
    return str(torch.__version__), "", tuple(found), torch.get_num_threads()


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that there is."""
    absolute = path.absolute()
    return next(each for each in (absolute, *absolute.parents) if each.is_dir())


def _try_home(disk: Path) -> str:
    """What goes wrong when a home is made on this disk, written to and read again; empty where nothing does.

    That takes all that a home asks of a file system: locks, a log of SQLite's, durable files and names, renames.
    """
    try:
        with TemporaryDirectory(dir=disk, prefix=".reasonmill-doctor-") as folder:
            where = Path(folder) / "home"
            with Home.open(where) as home:
                digest = home.objects.put(lambda directory: _write(directory / "tried"))
                home.ledger.record_metrics("doctor", 0, {"tried": 1.0})
            with Home.open(where, write=False) as home:
                home.objects.path(digest)
                if [row["tried"] for row in home.ledger.metrics("doctor")] != [1.0]:
                    return "what was written to a ledger was not read again"
    except (ReasonmillError, OSError) as error:
        return error.what if isinstance(error, ReasonmillError) else str(error)
    return ""


def _write(path: Path) -> None:
    path.write_text("tried\n", encoding="ascii")


def _jail() -> tuple[str, str]:
    """(level of isolation, what was tried where there is none)."""
    try:
        return found_level().name, ""
    except NoJail as error:
        return "", error.what


def _ask_hub() -> str:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # the client lets through what its transport raises
        return f"{type(error).__name__}: {str(error).split(chr(10), 1)[0]}"
    return ""


def _bounded() -> dict[str, int]:
    """Limits of the process that it could run into."""
    names = {"memory": resource.RLIMIT_AS, "size of a file": resource.RLIMIT_FSIZE, "seconds": resource.RLIMIT_CPU}
    soft = {name: resource.getrlimit(limit)[0] for name, limit in names.items()}
    return {name: limit for name, limit in soft.items() if limit != resource.RLIM_INFINITY}


def _newest_file() -> float:
    """When the newest of the package's own files was written, in seconds since 1970."""
    return max(file.stat().st_mtime for file in Path(__file__).parents[1].glob("*.py"))
