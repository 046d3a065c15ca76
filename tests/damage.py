"""Damage as a disk does it."""

from pathlib import Path


def flip(path: Path, at: int = -1) -> None:
    """Changes a bit of a file, in its last byte or another one."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
