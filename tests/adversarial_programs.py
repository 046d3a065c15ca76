"""The programs of `data/adversarial_programs.txt`, which says what they are."""

from __future__ import annotations

import re
from pathlib import Path

_SECTION = re.compile(r"^#### (\w+): ?(.*)\n", re.MULTILINE)


def _sections() -> dict[str, dict[str, str]]:
    text = (Path(__file__).parent / "data" / "adversarial_programs.txt").read_text(encoding="utf-8")
    _, *parts = _SECTION.split(text)
    found: dict[str, dict[str, str]] = {}
    for kind, name, source in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        found.setdefault(kind, {})[name] = source
    return found


_found = _sections()
HEAD = _found["head"][""]
# Ended at once, by their own or by the jail's doing.
QUICK = _found["quick"]
# Ended by their limits of time.
SLOW = _found["slow"]
