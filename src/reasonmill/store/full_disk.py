"""What happens when the home's disk is full: a write waits for room, if the run can wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from reasonmill.errors import OutOfSpace

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WhenFull(Protocol):
    """What waits for room."""

    def __call__(self, error: OutOfSpace) -> None:
        """Called for a write that found no room; returns when it is to be tried again, or raises."""

    def goes_on(self) -> None:
        """Called when a write which had to wait has worked."""


def waits_for_room(
    write: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """A method that is called again whenever its object's `when_full` returns; where that is None, it just fails.

    The method must leave nothing behind when it raises OutOfSpace.
    """

    @wraps(write)
    def wait(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        waited = False
        while True:
            try:
                result = write(self, *args, **kwargs)
            except OutOfSpace as error:
                if self.when_full is None:
                    raise
                self.when_full(error)
                waited = True
            else:
                if waited:
                    self.when_full.goes_on()
                return result

    return wait
