"""Other programs that compute, beside what is measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager


def compute() -> None:
    """Keeps a processor busy."""
    while True:
        pass


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute, in the block."""
    others = [multiprocessing.Process(target=compute, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()
