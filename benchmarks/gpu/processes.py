"""Parts of a benchmark that run in processes of their own, each until its time is over, and the figures they report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Line:
    """A figure; `met` is None where there is no bar."""

    part: str
    what: str
    value: Any
    bar: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        verdict = "" if self.met is None else f"   [{self.bar}: {'met' if self.met else 'MISSED'}]"
        return f"{self.part}: {self.what}: {self.value}{verdict}"


@dataclass
class Report:
    """Lines of all parts, printed as they come."""

    path: Path | None
    lines: list[Line] = field(default_factory=list)

    def add(self, part: str, what: str, value: Any, *, bar: str = "", met: bool | None = None) -> None:
        line = Line(part, what, value, bar, met)
        self.lines.append(line)
        print(line, flush=True)
        if self.path:
            self.path.write_text(json.dumps([asdict(one) for one in self.lines], indent=1) + "\n")


class Until:
    """Starts processes that end when the part's time is over."""

    def __init__(self, limit_s: float, directory: Path) -> None:
        self.end = time.monotonic() + limit_s
        self.directory = directory

    @property
    def left_s(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def start(self, *arguments: str, prefix: Sequence[str] = (), **more: str) -> Started:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]), **more}
        if given := os.environ.get("PYTHONPATH"):
            environment["PYTHONPATH"] += os.pathsep + given
        log = self.directory / f"{time.monotonic_ns()}.log"
        with log.open("w") as said:
            process = subprocess.Popen(
                [*prefix, sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=said,
                stderr=said,
                text=True,
                start_new_session=True,
            )
        return Started(process, log, self)

    def mill(self, *arguments: str, **more: Any) -> Started:
        return self.start("-m", "reasonmill", *arguments, **more)


@dataclass
class Started:
    """A process, and what it says."""

    process: subprocess.Popen[str]
    log: Path
    until: Until

    def wait(self) -> int | None:
        """Its exit code; None where its time was over and it was ended."""
        try:
            return self.process.wait(self.until.left_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def said(self, last: int = 1500) -> str:
        """The end of what it said, and where that was cut off the beginning of the error, which may be long."""
        text = self.log.read_text(errors="replace")
        raised = text.rfind("\nTraceback")
        cause = re.search(r"\n\w*(Error|Exception)\b.*", text[raised:]) if raised >= 0 else None
        return text[-last:] if cause is None else cause[0][:last] + text[-last:]
