"""Standard output and standard error of a run, which continues when nobody reads them any more."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, Literal, TextIO, cast

# A pipe whose reader has ended, and a terminal that is closed.
_NOBODY_READS = frozenset({errno.EPIPE, errno.EIO})


class _LastingStream:
    """A stream that takes whatever is written to it: what it can't show is no reason for a run to end.

    Once nobody reads it, its descriptor leads nowhere, also for threads, libraries and the interpreter's own end. On a
    full disk, it keeps what it has room for in memory until there is space again.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._go_on(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._go_on(error)

    def _go_on(self, error: OSError) -> None:
        if error.errno in _NOBODY_READS:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lasting_stream(stream: TextIO) -> TextIO:
    """The same stream, but that writing to it never fails."""
    return cast(TextIO, _LastingStream(stream))


@contextmanager
def lasting(name: Literal["stdout", "stderr"]) -> Iterator[None]:
    """In the block, writing to this stream of the process never fails."""
    redirect = {"stdout": redirect_stdout, "stderr": redirect_stderr}[name]
    with redirect(lasting_stream(getattr(sys, name))):
        yield
