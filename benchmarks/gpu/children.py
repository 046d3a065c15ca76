"""Processes of both sides of a comparison, and the lines of JSON that they print."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any


def lines_of(command: Sequence[str], *, own_path: bool = False) -> list[dict[str, Any]]:
    """The lines of JSON among what a command prints; what it says on standard error is passed on.

    Args:
        own_path: whether its interpreter finds its packages by itself. Else it gets them from where this one does.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    # Nothing is fetched, and nobody is told.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if own_path:
        environment.pop("PYTHONPATH", None)
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith('{"')]
