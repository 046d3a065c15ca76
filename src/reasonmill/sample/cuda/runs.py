"""Runs of one long memory: which of its tokens are free."""

from __future__ import annotations

from bisect import bisect, insort

from reasonmill.placement import SEQUENCE_REST

# Runs are odd multiples of so many tokens: where sequences begin at multiples of a large power of two, what reads many
# of them at a time meets the same few channels of the card's memory (measured: 139 µs against 119).
UNIT = 32


def run_length(tokens: int) -> int:
    """How long a run is that holds so many tokens; none is needed for none."""
    units = -(-tokens // UNIT)
    return (units | 1) * UNIT if tokens else 0


def sequence_tokens(length: int) -> int:
    """Tokens of memory that a sequence of so many takes at most, with its prompt for itself."""
    return length + SEQUENCE_REST  # it has two runs, each of which may be two units longer than its tokens


class Runs:
    """Which tokens of the memory are free: the first run that is long enough is taken."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = [(0, size)]  # (start, length), in order, never two that touch

    def take(self, length: int) -> int | None:
        """The start of a run that was free; None where none is long enough."""
        for place, (start, size) in enumerate(self._free):
            if size >= length:
                if size == length:
                    del self._free[place]
                else:
                    self._free[place] = (start + length, size - length)
                return start
        return None

    def give(self, start: int, length: int) -> None:
        """Takes a run back."""
        place = bisect(self._free, (start,))
        if place < len(self._free) and self._free[place][0] == start + length:
            length += self._free.pop(place)[1]
        if place and sum(self._free[place - 1]) == start:
            start, before = self._free.pop(place - 1)
            length += before
        insort(self._free, (start, length))
