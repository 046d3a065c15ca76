"""Items are drawn in a process of their own, because several families draw from sets of texts.

The order of such a set is another one in each process, unless PYTHONHASHSEED is set before it starts. So the process
that trains asks one that started with it set, and the same item is the same in every run.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import reasonmill
from reasonmill.errors import ReasonmillError, RecipeError

_PACKAGE_FOLDER = Path(reasonmill.__file__).parents[1]
# Answers that are kept. The evaluations of a recipe ask the same held-out items; Countdown's take some 100 ms each,
# because few of those drawn are held out.
_KEPT = 1 << 16


class Drawing:
    """The process that draws; it starts with the first item, and ends with whoever asks it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._answer = lru_cache(_KEPT)(self._asked)

    def item(self, **asked: Any) -> Mapping[str, Any]:
        """What `families.draw_item` gives for these arguments.

        Raises:
            RecipeError: what it raises.
            ReasonmillError: the process ended.
        """
        said: Mapping[str, Any] = json.loads(self._answer(json.dumps(asked)))
        if "error" in said:
            raise RecipeError(said["error"], fix=said["fix"])
        return said

    def _asked(self, asked: str) -> str:
        """The process's answer to a request, both of them lines of JSON."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{asked}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self.end()
            raise ReasonmillError(
                f"the process that draws the items of reasoning-gym ended while it drew {asked}",
                fix="look at what it printed; if the family needs more memory than there is, make its items smaller",
            )
        return line

    def end(self) -> None:
        """Ends the process, if this one started it."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _running(self) -> subprocess.Popen[str]:
        # A fork must not talk into the pipe of its parent.
        if self._process is None or self._owner != os.getpid():
            search = os.pathsep.join([str(_PACKAGE_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-m", "reasonmill.gym.drawing"],
                env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": search},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            self._owner = os.getpid()
        return self._process


DRAWING = Drawing()
atexit.register(DRAWING.end)


def main() -> None:
    """Answers requests, one JSON object a line, until nobody asks any more."""
    from reasonmill.gym.families import draw_item

    # What a family prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with suppress(KeyboardInterrupt):  # Ctrl-C is for the process that asks, and reaches this one, too
        for line in sys.stdin:
            try:
                said = draw_item(**json.loads(line))
            except RecipeError as error:
                said = {"error": error.what, "fix": error.fix}
            answers.write(json.dumps(said) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
