"""What the manager knows of the processes that it manages, and when a call is slow."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from reasonmill.workers import system
from reasonmill.workers.wire import Frames

# A call that takes so many times as long as is usual is slow: it no longer counts as one of those that run at the same
# time, and is stopped while others wait, if it computes. So calls that hang hang beside each other and hold up nobody;
# what is slow and answers goes on when the others have. Seconds are the least of that.
SLOW, SLOW_S = 2.5, 0.005
# After so many times it takes long: once there is room for it, it still lets the others go first, with a lower
# priority, more so each time that it has taken twice as long, so that those that hang let those go first that are slow.
# Its worker is not used again, since nobody can take that back. Seconds are the least and the most of that; where that
# much is usual, twice as long as is usual is the most.
LONG = 10
LONG_S = (0.02, 1.0)
FIRST_NICE, MORE_NICE, MOST_NICE = 8, 2, 19
# What is usual is what the middle one of so many calls took. One that is slow counts at once, as if it took long in the
# end: where half of them are slow, that is usual. The first calls of workers, in which modules are imported and memory
# is copied, are compared with each other. Seconds are what is usual before there is any: of first calls, of others.
_CALLS, _USUAL_S = 15, (0.1, 0.02)
# What a worker may answer to a call, in bytes.
ANSWER_LIMIT = 16 << 20


@dataclass
class Call:
    """What a worker is asked, pickled, and the number under which it is answered."""

    number: int
    body: bytes


@dataclass(eq=False)
class Template:
    """A process with the object of a plug-in.

    Attributes:
        size: how many calls may run at the same time, those that are slow left out.
        seconds: the limit of a call.
        took: seconds that the latest calls took which were a worker's first, and those that were not.
        unmade: why there is no object.
    """

    key: int
    pid: int
    socket: socket.socket
    size: int
    seconds: float
    took: tuple[deque[float], ...] = field(default_factory=lambda: tuple(deque([s], _CALLS) for s in _USUAL_S))
    is_made: bool = False
    has_spoken: bool = False
    unmade: str = ""
    waiting: deque[Call] = field(default_factory=deque)
    idle: list[Worker] = field(default_factory=list)

    def reached_s(self, level: int, took: deque[float]) -> float:
        """After how many seconds a call has reached a level: 1 if it is slow, 2 if it takes long, one more each time
        that it has taken twice as long.

        Args:
            took: what others of its kind took.
        """
        usual = sorted(took)[(len(took) - 1) // 2]
        long_s = min(max(LONG * usual, LONG_S[0]), max(LONG_S[1], 2 * usual), self.seconds / 2)
        return min(max(SLOW * usual, SLOW_S), long_s) if level == 1 else long_s * 2.0 ** (level - 2)


@dataclass(eq=False)
class Worker:
    """A process that answers calls.

    Attributes:
        call: what it is asked; None while it is idle.
        began: when.
        level: how slow its call is: 0 if not, 1 if it is, 2 and more if it takes long.
        looked_at: when it is to be seen whether its call has reached the next level.
        computes: whether it did when it was last looked at.
        spent: what it had used and waited for when its call began.
        stopped: since when it is stopped; None while it is not.
        stopped_s: for how long its call was stopped before that.
        spared_s: how long its call has waited while others went first, which does not count.
        closed: when its connection ended.
    """

    pid: int
    socket: socket.socket
    template: Template
    folder: Path
    call: Call | None = None
    began: float = 0.0
    level: int = 0
    looked_at: float = math.inf
    computes: bool = False
    spent: system.Spent = system.NOTHING
    stopped: float | None = None
    stopped_s: float = 0.0
    spared_s: float = 0.0
    closed: float | None = None
    calls: int = 0
    frames: Frames = field(default_factory=lambda: Frames(ANSWER_LIMIT))

    @property
    def is_long(self) -> bool:
        """Whether its call takes long."""
        return self.level > 1

    @property
    def took(self) -> deque[float]:
        """What calls of the same kind took."""
        return self.template.took[self.calls > 1]

    @property
    def nice(self) -> int:
        """How far it lets others go first."""
        return min(FIRST_NICE + MORE_NICE * (self.level - 2), MOST_NICE) if self.is_long else 0

    @property
    def ends(self) -> float:
        """When the time of its call is over."""
        return self.began + self.spared_s + self.template.seconds if self.stopped is None else math.inf

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to its process and all that it started and did not move away."""
        for send in (os.kill, os.killpg):
            with suppress(ProcessLookupError, PermissionError):  # it may have moved away itself
                send(self.pid, number)

    def begin(self, call: Call) -> None:
        """Counts the time of a call from now on."""
        self.call = call
        self.calls += 1
        self.began = time.monotonic()
        self.level, self.stopped_s, self.spared_s = 0, 0.0, 0.0
        self.looked_at = self.began + self.template.reached_s(1, self.took)
        self.spent = system.spent_by(self.pid)

    def age_s(self) -> float:
        """For how long its call has computed, slept or waited for something; not for a core, which others have."""
        if self.call is not None and system.computes(self.pid):
            # It may wait for a core right now, which is counted only when it has got it.
            return self.computed_s()
        spent = system.spent_by(self.pid)
        return time.monotonic() - self.began - self.stopped_s - (spent.waited_s - self.spent.waited_s)

    def computed_s(self) -> float:
        """For how long its call has computed, in all threads together."""
        return system.spent_by(self.pid).computed_s - self.spent.computed_s

    def look(self) -> None:
        """Sees whether its call has reached the next level; where it takes long, others go first, more so each time."""
        age_s = self.age_s()
        missing_s = self.template.reached_s(self.level + 1, self.took) - age_s
        if missing_s <= 0 and not self.has_answered():
            if self.level == 0:
                self.took.append(LONG * age_s)
            self.level += 1
            # Also by threads beside one that sleeps.
            self.computes = system.computes(self.pid) or self.computed_s() > age_s / 2
            if self.is_long:
                with suppress(ProcessLookupError, PermissionError):  # it may have moved away itself
                    os.setpriority(os.PRIO_PGRP, self.pid, self.nice)
        is_least = self.nice == MOST_NICE
        # Who gets little of a core is not looked at all the time.
        self.looked_at = math.inf if is_least else time.monotonic() + max(missing_s, SLOW_S, age_s / 8)

    def has_answered(self) -> bool:
        """Whether there is an answer that the manager, who may have waited for a core himself, has not read yet."""
        looking = select.poll()
        looking.register(self.socket, select.POLLIN)
        return bool(looking.poll(0))

    def stop(self) -> None:
        """Stops it; the time until it goes on does not count."""
        self.stopped = time.monotonic()
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it go on after a stop."""
        now = time.monotonic()
        stopped_s = now - (self.stopped or now)
        self.stopped_s += stopped_s
        self.spared_s += stopped_s
        self.stopped = None
        self.send(signal.SIGCONT)

    def spare(self) -> None:
        """Does not count the time that its call has waited for a core until now."""
        self.spared_s = self.stopped_s + system.spent_by(self.pid).waited_s - self.spent.waited_s
