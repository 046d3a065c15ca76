"""Digests of what lies on a disk: the names and the contents of files, and never where they are."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from reasonmill.activity import beat

# Of a file that is longer, pieces of so many bytes are hashed side by side.
PIECE = 1 << 26
_READ = 1 << 20


def path_digest(path: Path) -> str:
    """Hex digest (256 bits) of a file's content, or of the names and the contents of all files of a directory.

    Raises:
        OSError: it can't be read.
    """
    return directory_digest(path) if path.is_dir() else file_digest(path)


def file_digest(path: Path) -> str:
    """Hex digest of a file's content; of one in several pieces, that of the digests of its pieces."""
    pieces = range(0, max(1, path.stat().st_size), PIECE)
    if len(pieces) == 1:
        return _piece_digest(path, 0).hex()
    with ThreadPoolExecutor(min(len(pieces), os.cpu_count() or 1)) as threads:
        digests = threads.map(partial(_piece_digest, path), pieces)
        return hashlib.blake2b(b"".join(digests), digest_size=32).hexdigest()


def _piece_digest(path: Path, start: int) -> bytes:
    hasher = hashlib.blake2b(digest_size=32)
    left = PIECE
    with path.open("rb") as file:
        file.seek(start)
        while left and (read := file.read(min(left, _READ))):
            hasher.update(read)
            left -= len(read)
    beat()
    return hasher.digest()


def directory_digest(directory: Path) -> str:
    """Hex digest of the names and the contents of all files of a directory."""
    hasher = hashlib.blake2b(digest_size=32)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        hasher.update(f"{path.relative_to(directory).as_posix()}\n{file_digest(path)}\n".encode())
    return hasher.hexdigest()
