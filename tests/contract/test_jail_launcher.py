"""Workers in the jail: what a process that was started there, and those that it starts, can do and can't."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import reasonmill
from reasonmill.jail.inside import canary, confine
from reasonmill.jail.launcher import jailed
from reasonmill.jail.level import Level, levels

# Landlock keeps signals within the jail since its version 6.
LEVELS = {level.name: level for level in levels() if level.bwrap is not None or confine.landlock_version() >= 6}
SOURCE = Path(reasonmill.__file__).parents[1]
PROGRAM = """
import json, os, socket, subprocess, sys, tempfile
connection = socket.socket(fileno=os.dup(0))
told = json.loads(connection.recv(100000))
sys.path.insert(0, told["source"])
import reasonmill.types
exec(told["canary"])
child = os.fork()
if child == 0:
    os._exit(7)
with tempfile.TemporaryFile() as file:
    file.write(b"kept")
found = {
    "works": what_works(*told["arguments"]),
    "child": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
    "program": subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout.decode(),
    "environment": sorted(os.environ),
    "user": os.getuid(),
}
connection.sendall(json.dumps(found).encode())
"""


def run_in(level: Level, secret: Path) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server, ours:
        command = jailed(level)([sys.executable, "-c", PROGRAM])
        with theirs:
            process = subprocess.Popen(command, stdin=theirs, env={**os.environ, "TOKEN": "secret"})
        told = {
            "source": str(SOURCE),
            "canary": Path(canary.__file__).read_text(encoding="utf-8"),
            "arguments": [str(secret), os.getpid(), server.getsockname()[1], 1 << 60],
        }
        ours.sendall(json.dumps(told).encode())
        ours.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as answer:
            said = answer.read()
        assert process.wait(30) == 0
        found: dict[str, Any] = json.loads(said)
        return found


@pytest.mark.parametrize("level", LEVELS)
def test_a_worker_works_and_gets_nowhere(level: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    found = run_in(LEVELS[level], secret)
    # Processes are what workers are for; they may write temporary files, and see which processes there are.
    allowed = {"starting processes", "starting programs", "writing temporary files", "the environment"}
    # Which processes there are; and the first process in the jail, which waits for the others.
    allowed |= {"reading other processes"} if level == "landlock" else {"signals to the parent"}
    assert set(found["works"]) - allowed == set()
    assert (found["child"], found["program"]) == (7, "1\n")
    assert "TOKEN" not in found["environment"]
    assert found["user"] != 0
