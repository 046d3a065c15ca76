"""Which files a plug-in reads: those beside it must be declared, so that their content counts for keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# None while nobody looks. The interpreter keeps a hook for ever, so that there is one, added when it is first needed.
_opened: list[str] | None = None
_is_hooked = False


@contextmanager
def files_read() -> Iterator[list[str]]:
    """Collects the paths of the files that are opened for reading in the block."""
    global _opened, _is_hooked
    if not _is_hooked:
        sys.addaudithook(_note)
        _is_hooked = True
    outer, _opened = _opened, []
    try:
        yield _opened
    finally:
        _opened = outer


def undeclared(opened: list[str], own: Path, recipe: Path, declared: list[Path]) -> list[Path]:
    """The files that were opened and are not declared, neither themselves nor a folder of theirs.

    Sources do not count: they are part of the code. Nor do files of libraries.

    Args:
        own: the folder or the file that the code is in.
        recipe: the recipe's folder; where Python's environment lies in it, that belongs to libraries.
    """
    found = dict.fromkeys(Path(path).resolve() for path in opened)
    known = [path.resolve() for path in declared]
    return [
        path
        for path in found
        if path.suffix not in (".py", ".pyc", ".so")
        and (path.is_relative_to(own) or (path.is_relative_to(recipe) and not path.is_relative_to(sys.prefix)))
        and not any(path.is_relative_to(each) for each in known)
        and path.is_file()
    ]


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        path, _, flags = arguments
        if isinstance(path, str | os.PathLike) and flags & os.O_ACCMODE != os.O_WRONLY:
            _opened.append(os.fspath(path))
