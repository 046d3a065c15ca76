"""Ctrl-C, SIGTERM and a terminal that is gone: a run is asked to stop where nothing is lost, and leaves with the code
of the signal."""

import signal
import time
from types import FrameType
from typing import Any, Self

from reasonmill.errors import Interrupted


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into a request to stop; a later SIGINT raises KeyboardInterrupt at once.

    A SIGHUP that is ignored, as below nohup, stays ignored.
    """

    # One Ctrl-C can arrive twice: at the process itself and at its group.
    SAME_REQUEST_S = 1.0

    def __init__(self) -> None:
        self._received: int | None = None
        self._received_at_s = 0.0
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        return self._received is not None

    def exit_code(self, error: Interrupted) -> int:
        """What a shell reports of a process that the signal ended."""
        return error.exit_code if self._received is None else 128 + self._received

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is None:
            self._received, self._received_at_s = number, now
        elif number == signal.SIGINT and now - self._received_at_s > self.SAME_REQUEST_S:
            raise KeyboardInterrupt
