"""Modules that stand for users' code, and what is refused of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reasonmill.errors import RecipeError


def write(folder: Path, **modules: str) -> None:
    """Writes modules into a folder, each under its name."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def refused(ask: Callable[[], object]) -> RecipeError:
    """The error that is raised where this is asked for."""
    with pytest.raises(RecipeError) as caught:
        ask()
    return caught.value
