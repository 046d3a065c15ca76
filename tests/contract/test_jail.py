"""The jail against programs that mean harm: none is right, gets out, outlives its limit or leaves something behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import reasonmill
from adversarial_programs import HEAD, QUICK, SLOW
from reasonmill.grading.code import CodeGrader
from reasonmill.jail.found import close_jails, holes
from reasonmill.jail.level import Level, levels
from reasonmill.types import Message, Problem

LEVELS = {level.name: level for level in reversed(levels())}
SOURCE = str(Path(reasonmill.__file__).parents[1])
# Sleeping programs are ended after a little more than a second; those that compute, after a second, which is the least
# that the kernel counts.
SECONDS = 0.2
# One of each kind; the others are drawn by `make check`.
OF_EACH_KIND = (
    *("exit 0", "exit at once in the function", "equals everything", "an int that equals everything", "own math"),
    *("patch json", "forge the verdict on every descriptor", "forge answers", "walk up the frames", "print a verdict"),
    *("a value in itself", "a pickle", "fork", "daemon", "exec", "thread bomb", "kill the grader", "ptrace the parent"),
    *("read a secret", "write beside", "a symbolic link", "connect in C", "memory bomb", "no Python"),
)
FUNCTION = {"test_list": ["assert f(3) == 1729003", "assert abs(f(4) - 1729004) < 1e-6", "assert f([1]) == [1, 729]"]}
PRINTED = {"inputs": ["3"], "outputs": ["1729003"]}


@dataclass(frozen=True)
class Outside:
    """What a program must not touch."""

    folder: Path
    secret: Path
    server: socket.socket

    def head(self) -> str:
        port = self.server.getsockname()[1]
        told = {"WITNESS": str(self.folder), "SECRET": str(self.secret), "ASKER": os.getpid(), "PORT": port}
        return HEAD + "".join(f"{name} = {value!r}\n" for name, value in told.items())

    def restore(self) -> None:
        """Puts things back for the next program."""
        for path in self.folder.iterdir():
            path.unlink()
        self.secret.write_text("1729003")
        self.secret.chmod(0o666)

    def state(self) -> object:
        """All that programs could have changed: files, their bytes and rights, who called, and which processes run."""
        files = sorted((str(path), path.read_bytes(), path.stat().st_mode) for path in self.folder.iterdir())
        try:
            called: object = self.server.accept()
        except BlockingIOError:
            called = None
        return files, called, descendants(os.getpid())


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("witness")
    for path in (folder.parent, folder):
        path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        made = Outside(folder, folder / "secret", server)
        made.restore()
        yield made
    close_jails()


def descendants(pid: int) -> set[int]:
    """The processes that this one started, and those that they started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def judge(level: Level, meta: dict[str, object], source: str, seconds: float = SECONDS) -> tuple[str, str]:
    problem = Problem("code", (Message("user", "?"),), "", meta)
    verdict = CodeGrader(seconds, memory_mb=256, level=level).judge(problem, f"```python\n{source}\n```")
    return verdict.outcome, verdict.reason


@cache
def require_that_good_programs_pass(level: Level) -> None:
    """Without this, a jail where nothing works would pass all tests."""
    good = "def f(x): return {3: 1729003, 4: 1729004}.get(x) if x != [1] else [1, 729]"
    assert judge(level, FUNCTION, good)[0] == "right"
    assert judge(level, PRINTED, "print(1729000 + int(input()))")[0] == "right"


def attack(level: Level, outside: Outside, name: str, source: str) -> None:
    require_that_good_programs_pass(level)
    before = outside.state()
    for meta in (FUNCTION, PRINTED):
        begun = time.monotonic()
        outcome, reason = judge(level, meta, f"{outside.head()}\n{source}")
        took = time.monotonic() - begun
        assert outcome == "wrong", (name, meta, reason)
        # Its limit, and what an honest machine needs besides; a hang would take the 1,000 seconds that they sleep.
        assert took < 200, (name, meta)
    assert outside.state() == before, name


@pytest.mark.skipif(not LEVELS, reason="this machine has no jail")
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_no_program_passes_or_escapes(outside: Outside, name: str) -> None:
    attack(list(LEVELS.values())[-1], outside, name, QUICK[name])


@pytest.mark.check
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("level", LEVELS)
def test_no_program_passes_or_escapes_at_any_level(outside: Outside, level: str, name: str) -> None:
    attack(LEVELS[level], outside, name, QUICK[name])


@pytest.mark.check
@pytest.mark.skipif(not LEVELS, reason="this machine has no jail")
@pytest.mark.parametrize("name", SLOW)
def test_no_program_outlives_its_limit(outside: Outside, name: str) -> None:
    """At one level each, in turn: that time is over is seen outside of the jail."""
    attack(list(LEVELS.values())[list(SLOW).index(name) % len(LEVELS)], outside, name, SLOW[name])


@pytest.mark.parametrize(
    "source",
    [
        "open(WITNESS + '/beside', 'w')",
        "os.rename(SECRET, SECRET + '2')",
        "os.symlink(SECRET, WITNESS + '/link')",
        "socket.create_connection(('127.0.0.1', PORT))",
        "print(open(SECRET).read())",
    ],
)
def test_without_a_jail_all_of_this_is_seen(outside: Outside, source: str) -> None:
    """The control: these harmless ones do what others only try, and the tests above would notice."""
    before = outside.state()
    outcome, _ = judge(Level("unisolated"), PRINTED, f"{outside.head()}\n{source}")
    after = outside.state()
    assert after != before or outcome == "right"
    outside.restore()


@pytest.mark.skipif(not LEVELS, reason="this machine has no jail")
def test_what_the_canary_finds_refuses_a_level() -> None:
    assert {name: holes(level) for name, level in LEVELS.items()} == {name: [] for name in LEVELS}
    assert {"reading files", "starting processes", "starting programs", "the network"} <= set(
        holes(Level("unisolated"))
    )


@pytest.mark.skipif(not LEVELS, reason="this machine has no jail")
def test_a_killed_grader_leaves_nothing() -> None:
    """Killed in the middle of a program that sleeps: the jail notices that nobody wants it any more."""
    program = (
        "from reasonmill.jail.found import borrowed; from reasonmill.jail.programs import run\n"
        "from reasonmill.jail.jail import Limits\n"
        "with borrowed() as jails:\n"
        "    run(jails.program, '', b'', Limits(20)); print('begun', flush=True)\n"
        "    run(jails.program, 'import time; time.sleep(1000)', b'', Limits(100))\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env={"PYTHONPATH": SOURCE})
    assert asker.stdout is not None
    asker.stdout.readline()
    left: set[int] = set()
    while len(left) < 2:  # the jail, and the program in it
        left = descendants(asker.pid)
    asker.kill()
    asker.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.02)
