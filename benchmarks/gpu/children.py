"""Processes of both sides of a comparison, and the lines of JSON that they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def lines_of(command: Sequence[str], *, own_path: bool = False) -> list[dict[str, Any]]:
    """The lines of JSON among what a command prints. All that it says is passed on to standard error as it comes.

    Args:
        own_path: whether its interpreter finds its packages by itself. Else it gets them from where this one does.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    # Nothing is fetched, and nobody is told.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if own_path:
        environment.pop("PYTHONPATH", None)
    lines = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith('{"'):
                lines.append(json.loads(line))
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return lines
