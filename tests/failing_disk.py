"""A disk that can't be read: permissions stop no test that root runs, and no sector is bad when it is needed."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Errors that say nothing about what a file holds.
UNREACHABLE = (errno.EACCES, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)


def fail_reading(monkeypatch: pytest.MonkeyPatch, number: int, path: Path) -> None:
    """Has a file fail with this error when it is read, or a directory, and all below it when it is looked for."""
    for module, name in ((io, "open"), (os, "scandir"), (os, "listdir")):
        monkeypatch.setattr(module, name, _failing(getattr(module, name), number, lambda found: path in found))
    for name in ("lstat", "stat"):
        monkeypatch.setattr(os, name, _failing(getattr(os, name), number, lambda found: path in found[1:]))


def _failing(call: Callable[..., Any], number: int, fails: Callable[[list[Path]], bool]) -> Callable[..., Any]:
    """Fails for some of the paths, of each of which `fails` is given all that it is in, beginning with itself."""

    def fail(name: Any = ".", *arguments: Any, **options: Any) -> Any:
        if isinstance(name, str | Path) and fails([Path(name), *Path(name).parents]):
            raise OSError(number, os.strerror(number), str(name))
        return call(name, *arguments, **options)

    return fail
