"""Which level this machine has: the best whose jail holds what it promises when it is tried."""

from __future__ import annotations

import functools
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reasonmill.errors import ReasonmillError
from reasonmill.jail import programs
from reasonmill.jail.jail import Jail, JailFailed, Limits
from reasonmill.jail.level import ACCEPTED, INSIDE, Level, levels

_TRIAL = Limits(seconds=10, memory_mb=512)


class NoJail(ReasonmillError):
    """Model-written code can't be kept apart here."""

    exit_code = 10


def holes(level: Level) -> list[str]:
    """What a program can do in a jail of this level and must not: the canary tells. Empty for a good jail.

    Raises:
        JailFailed: the jail does not start.
    """
    jail = Jail(level)
    try:
        with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
            os.chmod(folder, 0o755)
            secret = Path(folder) / "secret"
            secret.write_text("secret", encoding="ascii")
            secret.chmod(0o666)
            told = (str(secret), os.getpid(), server.getsockname()[1], _TRIAL.memory_bytes)
            source = f"{(INSIDE / 'canary.py').read_text(encoding='utf-8')}\ntell{told!r}\n"
            ran = programs.run(jail, source, b"", _TRIAL)
            if ran.fault:
                raise JailFailed(f"the canary did not end: {ran.fault}")
            found: list[str] = json.loads(ran.output)
            if sorted(os.listdir(folder)) != ["secret"] or secret.read_text(encoding="ascii") != "secret":
                found.append("changing files")
            return found
    finally:
        jail.close()


@functools.cache
def found_level() -> Level:
    """The level of this machine; found once in a process, in a tenth of a second.

    Raises:
        NoJail: there is none, and nobody accepted to go without.
    """
    why = []
    for level in levels():
        name = level.name if level.bwrap is None else f"{level.name} ({level.bwrap})"
        try:
            open_ways = holes(level)
        except JailFailed as error:
            why.append(f"{name}: {error}")
            continue
        if not open_ways:
            return level
        why.append(f"{name} leaves open: {', '.join(open_ways)}")
    if os.environ.get(ACCEPTED) == "1":
        return Level("unisolated")
    raise NoJail(
        "model-written code can't be kept apart from this machine" + "".join(f"\n  {reason}" for reason in why),
        fix="pip install 'reasonmill[jail]' or install bubblewrap, on Linux with user namespaces or Landlock; or run "
        "it with your rights, files and network by --accept-unisolated-code",
    )


@dataclass(frozen=True)
class Jails:
    """The two jails of a process: one for programs, and one for the tests that call them."""

    level: Level
    program: Jail
    tests: Jail


_borrowing = threading.Lock()
_jails: dict[Level, Jails] = {}


@contextmanager
def borrowed(level: Level | None = None) -> Iterator[Jails]:
    """The jails of this process, for one program at a time.

    Args:
        level: the level to use; the one found here without it.

    Raises:
        NoJail: this machine has no jail.
    """
    chosen = level or found_level()
    with _borrowing:
        if chosen not in _jails:
            _jails[chosen] = Jails(chosen, Jail(chosen), Jail(chosen))
        yield _jails[chosen]


def close_jails() -> None:
    """Ends the jails of this process; they start again when they are borrowed."""
    with _borrowing:
        for jails in _jails.values():
            for jail in (jails.program, jails.tests):
                with suppress(JailFailed):
                    jail.close()
        _jails.clear()
