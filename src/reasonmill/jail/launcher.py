"""Workers in the jail: the command of a process, and the command that runs it there with all that it starts."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from reasonmill.jail.inside import confine
from reasonmill.jail.level import INSIDE, Level, bubblewrap, nobodys_user, readable

# What workers may know of the environment, and what is set for them: one thread for each, nothing on the GPU, and sets
# in the same order every time.
_KEPT = ("LANG", "LC_ALL", "TZ")
_SET = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": "/nowhere",
    "PATH": "/usr/bin:/bin",
}
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside import start; start.main(sys.argv[1:])"
# The version of Landlock that keeps signals within the jail.
_SIGNALS_STAY = 6
# What workers may keep in files.
_FILES_BYTES = 1 << 30


def jailed(level: Level, read: Iterable[Path] = ()) -> Callable[[Sequence[str]], list[str]]:
    """What makes of a command the one that runs it in the jail: with its standard input, files of the interpreter and
    its packages to read, temporary files, and processes of its own; without network, home and environment.

    Args:
        level: how it is kept apart.
        read: further files and folders that it may read, such as those of a user's graders; but no home as a whole.

    Raises:
        OSError: at the level of Landlock, there is no folder for temporary files, or the kernel's version can't keep
            signals within the jail.
    """
    user = nobodys_user() if os.getuid() == 0 else None
    paths = _outermost([*readable(), *_shown([*_interpreter(), *(path.resolve() for path in read)])])

    def around(command: Sequence[str]) -> list[str]:
        folder = "/tmp" if level.bwrap is not None else _folder(user)
        settings = {"user": user, "readable": [*paths, "/proc", "/dev/urandom"], "writable": [folder]}
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ} | _SET | {"TMPDIR": folder}
        inner = [
            *(os.path.realpath(sys.executable), "-S", "-s", "-P", "-B"),
            *("-c", _START, str(INSIDE.parent), json.dumps(settings), *command),
        ]
        # The first process in the jail keeps the environment that it was started with, for others to see.
        clean = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in kept.items())]
        if level.name == "unisolated":
            return [*clean, *command]
        return [*clean, *_bubblewrap(level, paths), *inner] if level.bwrap is not None else [*clean, *inner]

    if level.name == "landlock" and confine.landlock_version() < _SIGNALS_STAY:
        raise OSError("the kernel's Landlock can't keep signals within the jail, which needs Linux 6.12")
    return around


def _bubblewrap(level: Level, paths: Sequence[str]) -> Iterator[str]:
    # The interpreter may lie in the folder for temporary files.
    temporary = ("--perms", "1777", "--size", str(_FILES_BYTES), "--tmpfs", "/tmp")
    yield from bubblewrap(level, paths, temporary)
    yield from ("--die-with-parent", "--proc", "/proc", "--dev-bind", "/dev/urandom", "/dev/urandom")
    yield from ("--remount-ro", "/")


def _folder(user: int | None) -> str:
    """A folder for temporary files, which goes with this process."""
    folder = tempfile.mkdtemp(prefix="reasonmill-jail-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if user is not None:
        os.chown(folder, user, user)
    return folder


def _interpreter() -> list[Path]:
    """Where the interpreter is and what it imports."""
    # The interpreter of a virtual environment is a link to one of the programs beside the true one.
    return [Path(sys.prefix), Path(sys.base_prefix) / "bin", *(Path(entry) for entry in sys.path if entry)]


def _shown(places: Iterable[Path]) -> list[str]:
    """The places that there are; never a home as a whole."""
    home = {Path.home().resolve(), Path("/")}
    return [str(place) for place in places if place.exists() and place.resolve() not in home]


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without what lies within another one."""
    every = sorted({Path(path) for path in paths})
    return [str(path) for path in every if not any(other in path.parents for other in every)]
