"""The tasks by name: every module of this package that defines `TASKS` adds the tasks in it."""

import importlib

from reasonmill.errors import RecipeError
from reasonmill.protocols import Task


def _found() -> dict[str, Task]:
    """The tasks of all modules.

    Raises:
        TypeError: two of them have the same name.
    """
    found: dict[str, Task] = {}
    for name in ("arithmetic", "countdown", "general"):
        module = importlib.import_module(f"reasonmill.world.{name}")
        for task in getattr(module, "TASKS", ()):
            if task.name in found:
                raise TypeError(f"{module.__name__} defines the task {task.name!r}, which there is already")
            found[task.name] = task
    return found


_TASKS = _found()


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    return tuple(_TASKS)


def get(name: str) -> Task:
    """The task of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in _TASKS:
        raise RecipeError(f"unknown task {name!r}", fix=f"use one of {', '.join(_TASKS)}")
    return _TASKS[name]
