"""Readers beside a writer: `status`, `eval`, `verify` and a look at rollouts work while it commits, collects garbage
and replaces a damaged ledger."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import reasonmill
from reasonmill.cli import main
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.store.verification import verify_home

SOURCE = Path(reasonmill.__file__).parents[1]

# Each session of the writer finishes a stage, leaves garbage and collects it. In between it changes a byte of the
# ledger that SQLite does not look at, so that the next session puts a backup in its place.
WRITE = """
    import shutil, sys
    from itertools import count
    from pathlib import Path
    from reasonmill.recipe.reference import shipped_bases
    from reasonmill.store.garbage import collect_garbage
    from reasonmill.store.groups import write_groups
    from reasonmill.store.home import Home
    from reasonmill.types import Artifact, Completion, Grade, Group, Message, Problem, Rollout

    path = Path(sys.argv[1])

    def groups(step):
        completion = Completion((1, step), (-0.5, -0.25), (True, True), "8 * 3", "stop", step)
        problem = Problem("countdown-3", (Message("user", "make 24"),), "24")
        return [Group(problem, (Rollout((5,), completion, Grade(1.0, {"accuracy": 1.0})),))]

    for session in count():
        stages = [("base", "rl", "base"), *((f"s{i}", "rl", f"k{i}") for i in range(session + 1))]
        with Home.open(path) as home:
            home.ledger.begin_run("r", {"stage": [{"name": name, "kind": "rl"} for name, _, _ in stages]}, stages)
            def finish(name, key, write):
                artifact = Artifact(home.objects.put(write), "model", name, (), "")
                home.ledger.commit_stage(
                    key=key, run="r", name=name, kind="rl", artifact=artifact, seconds=1.0, tokens=1)
                home.back_up_ledger()
            if session == 0:
                base = shipped_bases()["tiny-base-weak"]
                finish("base", "base", lambda target: shutil.copytree(base, target, dirs_exist_ok=True))
            for step in range(4):
                digest = home.objects.put(lambda target: write_groups(target / "groups.parquet", groups(step)))
                home.ledger.commit_step(f"k{session}", step, digest)
                home.ledger.record_metrics(f"k{session}", step, {"reward/mean": 1.0})
                home.objects.put(lambda target: (target / "text").write_text(f"garbage {session} {step}"))
            finish(f"s{session}", f"k{session}", lambda target: (target / "text").write_text(f"{session}"))
        removed = len(collect_garbage(path).objects)
        with (path / "ledger.sqlite").open("r+b") as ledger:
            ledger.seek(80)
            ledger.write(bytes([session % 255 + 1]))
        print(session, removed, flush=True)
        sys.stdin.readline()
"""


def read_all(home: Path) -> int:
    """What a page about the home reads: each run, its stages and the rollouts of their steps; returns their number."""
    num_rollouts = 0
    with Home.open(home, write=False) as reader:
        for run in reader.ledger.runs():
            for stage in run.stages:
                record = reader.ledger.stage(stage.key)
                if record is not None:
                    reader.objects.path(record.artifact.digest)
                for _, digest in reader.ledger.steps(stage.key):
                    assert digest is not None
                    groups = read_groups(reader.objects.path(digest) / GROUPS_FILE)
                    num_rollouts += sum(len(group.rollouts) for group in groups)
    return num_rollouts


@pytest.mark.parametrize("sessions", [2, pytest.param(4, marks=pytest.mark.check)])
def test_readers_beside_a_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str], sessions: int) -> None:
    home = tmp_path / "home"
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE), str(home)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        assert not caught.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    looking = ("fitness", "r/base", "--task", "countdown-3", "--problems", 2, "--samples", 2, "--max-tokens", 4)
    try:
        assert writer.stdout.readline() == "0 4\n"
        for session in range(1, sessions + 1):
            # The writer goes on with the next session, however far the readers are.
            writer.stdin.write("\n")
            writer.stdin.flush()
            for _ in range(2):
                assert read_all(home) >= 4 * session
                assert "finished in 1.0 s" in call("status", "--home", home)
                # The changed byte is real damage, which goes when the writer puts a backup in its place.
                assert {finding.file for finding in verify_home(home).problems} <= {"ledger.sqlite"}
            if session % 2:
                assert json.loads(call(*looking, "--home", home, "--device", "cpu", "--json"))["model"] == "r/base"
            assert writer.stdout.readline() == f"{session} 4\n"
    finally:
        writer.kill()
        writer.communicate(timeout=60)
    with Home.open(home) as opened:
        files = [incident.file for incident in opened.ledger.incidents()]
    assert files.count("ledger.sqlite") == 1 + sessions
