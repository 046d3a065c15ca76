"""A grader that hangs on some of the rollouts: the run goes on without them, and ends in the same bits when it is
killed while they are graded."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from forked import fork_server

# Which responses it hangs at depends on them alone. The first of each step says that it hangs, by a file.
GRADER = """
import hashlib, os, re, signal, subprocess, sys, time
from pathlib import Path
from reasonmill.types import Grade, Message, Problem
from reasonmill.world.arithmetic import Arithmetic

def sleeps(): time.sleep(1000)
def ignores(): signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)
def loops():
    while True: pass
def loops_in_c(): re.match("(a+)+$", "a" * 40 + "b")
def exits(): os._exit(0)
def leaves(): sys.exit()
def eats(): bytearray(1 << 36)
def forks(): subprocess.Popen(["sleep", "1000"]); time.sleep(1000)
def closes(): os.closerange(0, 1000)
WAYS = (sleeps, ignores, loops, loops_in_c, exits, leaves, eats, forks, closes)

class Hanging:
    domain = "reasoning"

    def __init__(self, one_in: int = 20) -> None:
        self.one_in = one_in

    def problem(self, split, seed, index):
        return Arithmetic().problem(split, seed, index)

    def problems(self, split, seed):
        return Arithmetic().problems(split, seed)

    def grade(self, problem, completions):
        return [self.of(problem, completion.text) for completion in completions]

    def of(self, problem, text):
        digest = hashlib.blake2b(f"{problem.id} {text}".encode()).digest()
        number = int.from_bytes(digest[:6], "big")
        if number % self.one_in == 0:
            Path(os.environ["HANGS"]).touch()
            print("a grader hangs", flush=True)
            WAYS[number // self.one_in % len(WAYS)]()
        accuracy = float(len(text) % 2)
        return Grade(accuracy, {"accuracy": accuracy})
"""
RECIPE = """
name = "hanging"
[tasks.hanging]
use = "./grader.py:Hanging"
limits = { seconds = 1.5 }
[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base-weak"
steps = 3
state_every = 2
problems_per_step = 16
group_size = 8
max_ungraded = 0.2
tasks = { hanging = 1.0 }
schedule = { peak = 1e-4 }
sampling = { max_tokens = 12 }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANGS", str(tmp_path / "hangs"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "grader.py").write_text(GRADER)
    (tmp_path / "hanging.toml").write_text(RECIPE)
    return tmp_path / "hanging.toml"


def made(home: Path) -> tuple[dict[str, Any], bytes]:
    """(metrics of the stage, bytes of its weights)."""
    (stage,) = json.loads((home / "runs" / "hanging" / "summary.json").read_text())["stages"]
    (weights,) = (home / "runs" / "hanging").rglob("model.safetensors")
    return stage, b"".join(array.tobytes() for _, array in sorted(load_file(weights).items()))


def begun_below(folder: Path) -> list[int]:
    """The processes whose temporary folder is in a folder, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if f"TMPDIR={folder}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


PROGRAM = "from reasonmill.cli import main; main()"


@pytest.mark.check
def test_a_run_killed_while_its_graders_hang_ends_in_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = fork_server().run(PROGRAM, "run", recipe, "--home", whole, "--workers", 3)
    assert said.returncode == 0, said.stderr
    stage, weights = made(whole)
    assert any("could not be graded" in finding and "took longer" in finding for finding in stage["findings"])

    hangs, before = tmp_path / "hangs", begun_below(tmp_path)  # the server that forks for tests
    for _ in range(2):
        hangs.unlink(missing_ok=True)
        running = fork_server().start(PROGRAM, "run", recipe, "--home", killed, "--workers", 1)
        while not hangs.exists() and running.is_running():
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        for _ in range(400):
            if begun_below(tmp_path) == before:
                break
            time.sleep(0.05)
        assert begun_below(tmp_path) == before
        assert list(tmp_path.glob("reasonmill-workers-*")) == []
    said = fork_server().run(PROGRAM, "run", recipe, "--home", killed, "--workers", 2)
    assert said.returncode == 0, said.stderr
    again, same = made(killed)
    assert same == weights
    assert again["findings"] == stage["findings"]
