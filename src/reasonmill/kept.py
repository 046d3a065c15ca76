"""What a stage has got and paid for, kept as it arrives, until what is made of it is committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Generic, TypeVar

from reasonmill.store.home import Home

T = TypeVar("T")


class Kept(Generic[T]):
    """Things by name. What is kept together is one object, under a step of a key of its own in the ledger.

    Args:
        beside: that key.
        write, read: of what is kept together, to and from a directory.
        instead: what is done without things that are damaged, which is reported, for the user.
    """

    def __init__(
        self,
        home: Home,
        beside: str,
        *,
        write: Callable[[Mapping[str, T], Path], None],
        read: Callable[[Path], dict[str, T]],
        instead: str,
    ) -> None:
        self._home = home
        self._beside = beside
        self._write = write
        self._read = read
        self._instead = instead

    @property
    def count(self) -> int:
        """How many there are. It is not the object's length: with none, the object would count as nothing at all."""
        return len(self._things)

    def find(self, name: str) -> T | None:
        """What has this name, if there is something."""
        return self._things.get(name)

    def keep(self, things: Mapping[str, T]) -> None:
        """Keeps things; they are durable when this returns."""
        self._things.update(things)
        digest = self._home.objects.put(partial(self._write, things))
        self._home.ledger.commit_step(self._beside, self._next, digest)
        self._next += 1

    def drop(self) -> None:
        """Forgets all of them: what was made of them is committed."""
        steps = self._home.ledger.steps(self._beside)
        if not steps:
            return
        self._home.ledger.forget_steps(self._beside, 0)
        for digest in {digest for _, digest in steps if digest is not None}:
            if not self._home.ledger.refers_to(digest) and self._home.objects.exists(digest):
                self._home.objects.delete(digest)
        self._things.clear()
        self._next = 0

    @cached_property
    def _things(self) -> dict[str, T]:
        self._next = 0
        found: dict[str, T] = {}
        for step, digest in self._home.ledger.steps(self._beside):
            self._next = step + 1
            path = None if digest is None else self._home.objects.sound_path(digest, instead=self._instead)
            if path is not None:
                found |= self._read(path)
            elif digest is not None:
                self._home.ledger.forget_groups(self._beside, step)
        return found
