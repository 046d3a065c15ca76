"""What is asked of workers, and what comes back."""

from __future__ import annotations

from typing import Any, Protocol


class Call(Protocol):
    """What a worker does with the object of a plug-in. It is pickled, and gives what JSON can hold."""

    @property
    def seed(self) -> str:
        """What the worker's generators of random numbers are seeded with: the content of the call."""

    def __call__(self, made: Any, /) -> Any:
        """The answer, computed with the object."""


class Failed(Exception):
    """A call has no answer: it hung, ended its process or raised an error. The text says why."""


class Answer(Protocol):
    """What will be the answer to a call."""

    def value(self) -> Any:
        """The answer, which is waited for.

        Raises:
            Failed: there is none.
            ReasonmillError: from the call: it tells the user what to do.
        """


def raised(error: BaseException) -> str:
    """What to say of an error that a grader or a reward raised."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:  # a user's error that can't be shown
        text = ""
    return f"it raised {name}: {text}" if text else f"it raised {name}"
