"""The lab of docs/extending.md: users' own code in a folder of its own, taken out of the page."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
_PLACED = re.compile(r"In `(\S+)`:\n\n```(?:python|toml)\n(.*?)```", re.DOTALL)
FILES = dict(_PLACED.findall(PAGE.read_text(encoding="utf-8")))


def put_lab(folder: Path) -> Path:
    """Puts the page's files into a folder; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / "lab.toml"
