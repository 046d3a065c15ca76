"""What happens when the home's disk is full: a write waits for room, if the run can wait."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar

from reasonmill.errors import OutOfSpace

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WhenFull(Protocol):
    """What waits for room."""

    def __call__(self, error: OutOfSpace) -> None:
        """Called for a write that found no room; returns when it is to be tried again, or raises."""

    def goes_on(self) -> None:
        """Called when a write which had to wait has worked."""


# Who waits, as long as a run is there to do so; without one, whatever finds no room just fails.
_waiter: ContextVar[WhenFull | None] = ContextVar("waiter", default=None)


@contextmanager
def waiting_when_full(when_full: WhenFull) -> Iterator[None]:
    """In the block, what is committed to a full disk waits for room instead of failing with OutOfSpace."""
    before = _waiter.set(when_full)
    try:
        yield
    finally:
        _waiter.reset(before)


def waits_for_room(write: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function or method that is called again after each wait for room.

    It must leave nothing behind when it raises OutOfSpace.
    """

    @wraps(write)
    def wait(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        waiter, has_waited = _waiter.get(), False
        while True:
            try:
                result = write(*args, **kwargs)
            except OutOfSpace as error:
                if waiter is None:
                    raise
                waiter(error)
                has_waited = True
            else:
                if waiter is not None and has_waited:
                    waiter.goes_on()
                return result

    return wait
