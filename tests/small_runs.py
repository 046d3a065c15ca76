"""Runs of a small recipe whose stages are fakes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.mill.pipeline import RunResult, run_recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home

# Overrides and options of `run_once`, to what `run_and_listen` returns.
Runs = Callable[..., tuple[RunResult, list[str]]]


def run_once(
    recipe_file: Path,
    home_path: Path,
    *overrides: str,
    until: str | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    repair: bool = False,
    progress: KeptProgress | None = None,
) -> RunResult:
    """Runs a recipe with overrides in a newly opened home."""
    recipe, progress = load_recipe(str(recipe_file), overrides), progress or KeptProgress()
    with Home.open(home_path) as home:
        return run_recipe(
            recipe, home, progress, until=until, backend=BACKEND, stop_requested=stop_requested, repair=repair
        )


def run_and_listen(recipe_file: Path, home_path: Path, *overrides: str, **options: Any) -> tuple[RunResult, list[str]]:
    """What `run_once` makes, and what was told but for what is cached."""
    progress = KeptProgress()
    made = run_once(recipe_file, home_path, *overrides, progress=progress, **options)
    return made, [note for note in progress.notes if "cached" not in note]


def stop_after(looks: int) -> Callable[[], bool]:
    """A stop request that comes after so many looks at it."""
    answers = iter([False] * looks)
    return lambda: next(answers, True)
