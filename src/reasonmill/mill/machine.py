"""What the bits of a run depend on besides its recipe: the class of the machine, and the number of threads.

Sums of floating-point numbers depend on the order in which they are added, which the kernels of torch choose by the
processor's instructions and the number of threads.
"""

import platform
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def machine_class(device: str) -> str:
    """The machine in words, for example "Linux x86_64, AMD EPYC 7B13, AVX2, torch 2.13.0, 2 threads".

    A run is the same to the bit where these words are the same.

    Args:
        device: "cpu" or "cuda"; the accelerator and its CUDA belong to the class.
    """
    parts = [describe(device), f"torch {torch.__version__}"]
    if device.startswith("cuda"):
        parts.append(f"CUDA {torch.version.cuda}")
    threads = torch.get_num_threads()
    return ", ".join([*parts, f"{threads} thread{'s' if threads > 1 else ''}"])


def describe(device: str) -> str:
    """System, processor, instructions that torch uses on it, and the accelerator if `device` is one."""
    parts = [f"{platform.system()} {platform.machine()}", _processor(), torch.backends.cpu.get_cpu_capability()]
    if device.startswith("cuda"):
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    """The processor's name; "" where the system does not say."""
    if not _CPUINFO.is_file():
        return platform.processor()
    names = (line.partition(":")[2] for line in _CPUINFO.read_text().splitlines() if line.startswith("model name"))
    return " ".join(next(names, "").split())
