"""The tasks by name."""

from reasonmill.errors import RecipeError
from reasonmill.protocols import Task
from reasonmill.tasks.arithmetic import Arithmetic
from reasonmill.tasks.countdown import Countdown
from reasonmill.tasks.general import facts, harmful_requests, harmless_requests, small_talk

_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Countdown("countdown", counts=(3, 4)),
        Countdown("countdown-3", counts=(3,)),
        Countdown("countdown-4", counts=(4,)),
        Arithmetic(),
        facts(),
        small_talk(),
        harmful_requests(),
        harmless_requests(),
    )
}


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
