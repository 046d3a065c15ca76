"""What facts about a machine mean: whether it can do a thing, with less, or not; and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reasonmill.doctor.facts import Facts

Verdict = Literal["good", "works with less", "missing"]
# What the quickstart takes: a run of r1-zero-tiny had 1.3 GB of memory in use and a home of 60 MB; 200 MB stay free.
QUICKSTART_MEMORY, QUICKSTART_DISK = 2.0e9, 0.5e9
# Where a model of 1.5B is trained in full, its state alone takes so much.
_AMPLE_DISK = 100e9
_FEW_FILES = 1024
_BEHIND_S = 60.0
_FIRST_WITH_BF16 = (8, 0)


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        for_quickstart: whether the quickstart can't run where this is missing.
    """

    what: str
    found: str
    verdict: Verdict
    fix: str = ""
    for_quickstart: bool = False


def judge(facts: Facts) -> list[Finding]:
    """One finding for each thing that was looked at."""
    return [
        *_software(facts),
        *_devices(facts),
        *_host(facts),
        *_disk(facts),
        _jail(facts),
        *_extras(facts),
        *_surroundings(facts),
    ]


def is_ready(findings: list[Finding]) -> bool:
    """Whether the quickstart can run."""
    return not any(finding.for_quickstart and finding.verdict == "missing" for finding in findings)


def _software(facts: Facts) -> Iterator[Finding]:
    if facts.python_fits:
        yield Finding("Python", facts.python, "good")
    else:
        fix = "install a Python that fits (3.11 or newer), and make the environment again with it"
        yield Finding("Python", facts.python, "missing", fix, for_quickstart=True)
    if facts.torch:
        yield Finding("torch", facts.torch, "good")
    else:
        yield Finding("torch", facts.torch_error, "missing", "pip install torch", for_quickstart=True)


def _devices(facts: Facts) -> Iterator[Finding]:
    if not facts.gpus:
        if facts.has_driver:
            fix = "install the torch that PyTorch's install page names for the driver: this one can't use the GPU"
            yield Finding("GPU", "a driver, and none that torch can use", "works with less", fix)
        else:
            fix = "none is needed for tiny models; real ones take days without"
            yield Finding("GPU", "none", "works with less", fix)
        return
    for gpu in facts.gpus:
        major, minor = gpu.capability
        told = f"{gpu.name}, compute capability {major}.{minor}, {_gb(gpu.free_bytes)} of {_gb(gpu.memory_bytes)} free"
        if gpu.free_bytes < gpu.memory_bytes / 2:
            yield Finding("GPU", told, "works with less", "end what else uses it: `nvidia-smi` lists that")
        else:
            yield Finding("GPU", told, "good")
        if gpu.bf16:
            yield Finding("bf16", "yes", "good")
        else:
            needed = ".".join(map(str, _FIRST_WITH_BF16))
            fix = f'set precision = "fp32" in each stage, or take a GPU of compute capability {needed} or more'
            yield Finding("bf16", "no", "works with less", fix)
    if len(facts.gpus) > 1:
        yield Finding("several GPUs", f"{len(facts.gpus)}", "works with less", "one is used, and the others are idle")
    if facts.has_triton:
        yield Finding("triton", "installed", "good")
    else:
        yield Finding("triton", "not installed", "works with less", "pip install triton")


def _host(facts: Facts) -> Iterator[Finding]:
    told = f"{facts.cores}, load {facts.load:.1f}, {facts.threads} threads of torch"
    if facts.threads > facts.cores:
        yield Finding(
            "cores", told, "works with less", f"set OMP_NUM_THREADS={facts.cores}: more threads wait for each other"
        )
    elif facts.load > facts.cores:
        fix = "end what else computes, or set OMP_NUM_THREADS=1: threads that wait for busy cores cost time"
        yield Finding("cores", told, "works with less", fix)
    elif facts.cores < 2:
        yield Finding("cores", told, "works with less", "two are advised: the quickstart takes twice as long")
    else:
        yield Finding("cores", told, "good")
    told = f"{_gb(facts.free_memory)} of {_gb(facts.memory)} free"
    if facts.free_memory < QUICKSTART_MEMORY:
        fix = f"free some: the quickstart needs {_gb(QUICKSTART_MEMORY)}"
        yield Finding("memory", told, "missing", fix, for_quickstart=True)
    else:
        yield Finding("memory", told, "good")


def _disk(facts: Facts) -> Iterator[Finding]:
    told = f"{_gb(facts.free_disk)} free for {facts.home}"
    if facts.free_disk < QUICKSTART_DISK:
        fix = f"free some, or use a home on another disk (--home): the quickstart needs {_gb(QUICKSTART_DISK)}"
        yield Finding("disk", told, "missing", fix, for_quickstart=True)
    elif facts.free_disk < _AMPLE_DISK:
        fix = "enough for tiny models; `reasonmill plan RECIPE` says what a real one writes"
        yield Finding("disk", told, "works with less", fix)
    else:
        yield Finding("disk", told, "good")
    if facts.home_error:
        fix = "use a home on a local disk that you can write to (--home)"
        yield Finding("file system", facts.home_error, "missing", fix, for_quickstart=True)
    else:
        yield Finding("file system", "a home was made, written to, and read again", "good")


def _jail(facts: Facts) -> Finding:
    install = "pip install 'reasonmill[jail]' or install bubblewrap"
    if facts.jail == "bubblewrap":
        return Finding("jail", "bubblewrap; a canary found no way out", "good")
    if facts.jail == "landlock":
        return Finding("jail", "Landlock; a canary found no way out", "works with less", install)
    if facts.jail:
        fix = f"{install}; programs that a model wrote run with your rights now, as you accepted"
        return Finding("jail", "none", "works with less", fix)
    fix = f"{install}, on Linux with user namespaces or Landlock: without, the task `code` grades nothing"
    return Finding("jail", " ".join(facts.jail_error.split()), "missing", fix)


def _extras(facts: Facts) -> Iterator[Finding]:
    for extra, absent in facts.extras.items():
        if absent:
            found = f"without {', '.join(absent)}"
            yield Finding(f"extra {extra}", found, "works with less", f"pip install 'reasonmill[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "installed", "good")


def _surroundings(facts: Facts) -> Iterator[Finding]:
    if facts.hub_error is not None:
        if facts.hub_error:
            fix = "put models into the hub's cache beforehand, or name directories; the shipped base needs no network"
            yield Finding("hub", facts.hub_error, "works with less", fix)
        else:
            yield Finding("hub", "reached", "good")
    files = "any number of open files" if facts.open_files is None else f"{facts.open_files} open files"
    told = ", ".join([files, *(f"{name} {limit}" for name, limit in facts.bounded.items())])
    if facts.open_files is not None and facts.open_files < _FEW_FILES:
        yield Finding("limits", told, "works with less", f"ulimit -n {_FEW_FILES}")
    elif facts.bounded:
        yield Finding(
            "limits", told, "works with less", "raise them (`ulimit -a` lists them): a long run may end by one"
        )
    else:
        yield Finding("limits", told, "good")
    if facts.clock_behind_s > _BEHIND_S:
        fix = "set the clock: the order of what was made is told by it"
        yield Finding("clock", f"behind by {facts.clock_behind_s:.0f} s at least", "works with less", fix)
    else:
        yield Finding("clock", "not behind the package's files", "good")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
