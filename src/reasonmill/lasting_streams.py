"""The standard streams of a run, which continues when nobody reads them any more, or when there never were any."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, Literal, TextIO, cast

# A pipe or a socket whose reader has ended, a terminal that is closed, and a descriptor that can't be written to.
_NOBODY_READS = frozenset({errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.EBADF})


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
        except UnicodeEncodeError:  # where the system's locale has no such characters
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
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


def open_closed_streams() -> None:
    """Lets each standard stream that is closed, as services and `>&-` leave them, lead nowhere.

    To be called before any file is opened: the file would get the stream's descriptor, and what others write there.
    """
    names = ("stdin", "stdout", "stderr")
    for descriptor in range(len(names)):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            os.set_inheritable(descriptor, True)  # so that the processes that this one starts have it, too
    for name in names:
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for as long as the process


def lasting_stream(stream: TextIO) -> TextIO:
    """The same stream, but that writing to it never fails."""
    return cast(TextIO, _LastingStream(stream))


@contextmanager
def lasting(name: Literal["stdout", "stderr"]) -> Iterator[None]:
    """In the block, writing to this stream of the process never fails."""
    redirect = {"stdout": redirect_stdout, "stderr": redirect_stderr}[name]
    with redirect(lasting_stream(getattr(sys, name))):
        yield
