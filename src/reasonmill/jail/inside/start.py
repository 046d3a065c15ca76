"""Starts a program that runs confined with all that it starts: workers whose graders evaluate what a model wrote."""

from __future__ import annotations

import json
import os
import sys

from . import filter as calls
from .confine import become, give_up, landlock_rules


def main(arguments: list[str]) -> None:
    """Becomes the program.

    Args:
        arguments: settings as JSON (the `user` to become, None for none; `readable` and `writable` paths), and the
            program with its arguments.
    """
    settings = json.loads(arguments[0])
    if settings["user"] is not None:
        become(settings["user"])
    give_up(landlock_rules(settings["readable"], settings["writable"]), calls.for_workers())
    os.execv(arguments[1], arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
