"""What is where, on a disk that may not answer: "no" means that it is not there, and an error that this isn't known.

`os.path` answers "no" to every error, and `pathlib` to some, in later versions of Python to all. What can't be reached
for a moment would then be taken for gone, and be forgotten, replaced or rebuilt.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

Found = TypeVar("Found")

_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def exists(path: Path) -> bool:
    """Whether something has this name, be it a link that leads nowhere."""
    return _status(path, os.lstat) is not None


def is_file(path: Path) -> bool:
    """Whether this is a plain file, or a link to one."""
    status = _status(path, os.stat)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_directory(path: Path) -> bool:
    """Whether this is a directory, or a link to one."""
    status = _status(path, os.stat)
    return status is not None and stat.S_ISDIR(status.st_mode)


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    status = _status(path, os.stat)
    return status.st_size if status is not None else 0


def size_below(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; links count as themselves. What goes meanwhile counts 0."""
    status = _status(path, os.lstat)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return status.st_size if status is not None else 0
    inside = unless_lost(lambda: os.listdir(path)) or []
    return sum(size_below(path / name) for name in inside)


def changed_ns(path: Path) -> int:
    """When a file or directory was last changed, in nanoseconds since the epoch; 0 where there is none."""
    status = _status(path, os.stat)
    return status.st_mtime_ns if status is not None else 0


def files_below(directory: Path) -> Iterator[str]:
    """The paths, below a directory, of all in it that is no directory; links are not followed."""
    for above, directories, files in os.walk(directory, onerror=_raise):
        links = [name for name in directories if os.path.islink(os.path.join(above, name))]
        yield from (Path(above, name).relative_to(directory).as_posix() for name in (*files, *links))


def is_lost(error: OSError) -> bool:
    """Whether an error in reading a file says that its content is gone.

    It is where there is no such file, or the disk can't read its sectors any more. Permissions, a network disk that is
    away and the like say nothing about the content.
    """
    return error.errno in _NOTHING_THERE | {errno.EISDIR, errno.EIO}


def unless_lost(look: Callable[[], Found]) -> Found | None:
    """What a look at a file finds; None where the file's content is lost.

    Raises:
        OSError: the disk does not say what the file holds.
    """
    try:
        return look()
    except OSError as error:
        if not is_lost(error):
            raise
        return None


def _status(path: Path, look: Callable[[Path], os.stat_result]) -> os.stat_result | None:
    try:
        return look(path)
    except OSError as error:
        if error.errno not in _NOTHING_THERE:
            raise
        return None


def _raise(error: OSError) -> NoReturn:
    raise error
