"""Digests of what lies on a disk: the names and the contents of files, and never where they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from reasonmill.activity import beat


def path_digest(path: Path) -> str:
    """Hex digest (256 bits) of a file's content, or of the names and the contents of all files of a directory.

    Raises:
        OSError: it can't be read.
    """
    return directory_digest(path) if path.is_dir() else file_digest(path)


def file_digest(path: Path) -> str:
    """Hex digest of a file's content."""
    beat()
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def directory_digest(directory: Path) -> str:
    """Hex digest of the names and the contents of all files of a directory."""
    hasher = hashlib.blake2b(digest_size=32)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        hasher.update(f"{path.relative_to(directory).as_posix()}\n{file_digest(path)}\n".encode())
    return hasher.hexdigest()
