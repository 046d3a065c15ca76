"""Replies of a server that a stage paid for, kept as they arrive, until what is made of them is committed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

from reasonmill.servers.replies import Said
from reasonmill.servers.settings import ServerError
from reasonmill.store.home import Home

REPLIES_FILE = "replies.json"


class KeptReplies:
    """The replies of a stage, by the names of their requests.

    What arrived together is one object, under a step of a key of its own in the ledger, as verdicts have one.
    """

    def __init__(self, home: Home, key: str) -> None:
        """The replies of the stage with this key; those that are damaged are reported, and asked for again."""
        self._home = home
        self._beside = f"{key}/replies"

    @property
    def count(self) -> int:
        """How many there are. It is not the object's length: with none, the object would count as nothing at all."""
        return len(self._replies)

    def find(self, request: str) -> Said | None:
        """The reply to a request, if there is one."""
        return self._replies.get(request)

    def keep(self, said: Mapping[str, Said]) -> None:
        """Keeps replies; they are durable when this returns."""
        self._replies.update(said)
        digest = self._home.objects.put(partial(_write, said))
        self._home.ledger.commit_step(self._beside, self._next, digest)
        self._next += 1

    def drop(self) -> None:
        """Forgets all replies: what was made of them is committed."""
        steps = self._home.ledger.steps(self._beside)
        if not steps:
            return
        self._home.ledger.forget_steps(self._beside, 0)
        for digest in {digest for _, digest in steps if digest is not None}:
            if not self._home.ledger.refers_to(digest) and self._home.objects.exists(digest):
                self._home.objects.delete(digest)
        self._replies.clear()
        self._next = 0

    @cached_property
    def _replies(self) -> dict[str, Said]:
        self._next = 0
        found: dict[str, Said] = {}
        for step, digest in self._home.ledger.steps(self._beside):
            self._next = step + 1
            path = None
            if digest is not None:
                path = self._home.objects.sound_path(digest, instead="the server is asked for these replies again")
            if path is not None:
                kept = json.loads((path / REPLIES_FILE).read_text(encoding="utf-8"))
                found |= {name: Said(**said) for name, said in kept.items()}
            elif digest is not None:
                self._home.ledger.forget_groups(self._beside, step)
        return found


class BudgetSpent(ServerError):
    """A server was asked as often as it may be asked; what it said is kept."""


class Budgeted:
    """Kept replies of which there are not to be more than so many.

    Args:
        title: names whose budget it is, for messages.
    """

    def __init__(self, kept: KeptReplies, budget: int, title: str) -> None:
        self._kept = kept
        self._budget = budget
        self._title = title
        self._missing: set[str] = set()

    def find(self, request: str) -> Said | None:
        """The reply to a request, if there is one.

        Raises:
            BudgetSpent: there is none, and the budget does not allow to ask for it.
        """
        said = self._kept.find(request)
        if said is None:
            self._missing.add(request)
            if self._kept.count + len(self._missing) > self._budget:
                raise BudgetSpent(
                    f"{self._title} has {self._kept.count:,} replies and needs more than its budget of "
                    f"{self._budget:,}",
                    fix="raise its budget and run the same command again: what was answered is not asked again",
                )
        return said

    def keep(self, said: Mapping[str, Said]) -> None:
        """Keeps replies; they are durable when this returns."""
        self._kept.keep(said)
        self._missing -= said.keys()


def _write(said: Mapping[str, Said], target: Path) -> None:
    replies = {name: asdict(reply) for name, reply in said.items()}
    (target / REPLIES_FILE).write_text(json.dumps(replies, ensure_ascii=False), encoding="utf-8")
