"""Runs the modules that fork and lay out homes in processes without torch, whose children are cheap."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import reasonmill

SOURCE = Path(reasonmill.__file__).parents[1]
TESTS = Path(__file__).parents[1]


def answers(module: str, *options: str, jobs: int = 1) -> list[dict[str, Any]]:
    """What the module prints, from as many processes as there are jobs, each with a part of the work."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(TESTS)])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *options, "--part", f"{job + 1}/{jobs}"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for job in range(jobs)
    ]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * jobs
    return [json.loads(text) for text in printed]
