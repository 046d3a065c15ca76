"""Replies of a server that a stage paid for, kept as they arrive, until what is made of them is committed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from reasonmill.kept import Kept
from reasonmill.servers.replies import Said
from reasonmill.servers.settings import ServerError
from reasonmill.store.home import Home

REPLIES_FILE = "replies.json"


class KeptReplies(Kept[Said]):
    """The replies of a stage, by the names of their requests."""

    def __init__(self, home: Home, key: str) -> None:
        """The replies of the stage with this key; those that are damaged are reported, and asked for again."""
        super().__init__(
            home, f"{key}/replies", write=_write, read=_read, instead="the server is asked for these replies again"
        )


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


def _read(directory: Path) -> dict[str, Said]:
    kept = json.loads((directory / REPLIES_FILE).read_text(encoding="utf-8"))
    return {name: Said(**said) for name, said in kept.items()}
