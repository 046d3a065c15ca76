"""Where each key of a recipe was written, so that a mistake can be shown with its place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

KeyPath = tuple[str | int, ...]  # ("stage", 0, "tasks", "countdown"): keys of tables, and places in arrays


def key_path(key: str) -> KeyPath:
    """`data[0]` as ("data", 0), `judges.safety` as ("judges", "safety")."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key))


class Origins:
    """The place of every key: a line of the file, or the override that set it."""

    def __init__(self, text: str, file: str) -> None:
        """`text` must be valid TOML; `file` names it in messages."""
        self._file = file
        self._places: dict[KeyPath, str] = {}
        self._last: dict[KeyPath, int] = {}  # of each array of tables, the place of its last table
        table: KeyPath = ()
        for line, statement in _statements(text):
            place = f"{file}:{line}"
            if statement.lstrip().startswith("["):
                table = self._record_header(tomllib.loads(statement), place)
            else:
                self._record(table, tomllib.loads(statement), place)

    def place(self, path: KeyPath) -> str:
        """The place of a key, or of the innermost table around it that was written down."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._places:
                return self._places[path[:length]]
        return self._file

    def override(self, path: KeyPath, value: Any, place: str) -> None:
        """The key was set again, from `place`."""
        for known in [known for known in self._places if known[: len(path)] == path]:
            del self._places[known]
        self._places[path] = place
        self._record(path, value, place)

    def copy(self, path: KeyPath, target: KeyPath) -> None:
        """The keys at `target` are repeated from those at `path`, and so have their places."""
        places = {known: place for known, place in self._places.items() if known[: len(path)] == path}
        self._places.update({(*target, *known[len(path) :]): place for known, place in places.items()})

    def _record(self, path: KeyPath, value: Any, place: str) -> None:
        """Records all keys in a value that `path` leads to; places that are known already stay."""
        if not isinstance(value, dict | list):
            return
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            self._places.setdefault((*path, key), place)
            self._record((*path, key), inner, place)

    def _record_header(self, header: Any, place: str) -> KeyPath:
        """Records `[a.b]` or `[[a.b]]`, given as the nested tables that it means, and returns where it leads."""
        path: KeyPath = ()
        while header:
            ((key, header),) = header.items()
            path = (*path, key)
            self._places.setdefault(path, place)
            if isinstance(header, list):
                self._last[path] = self._last.get(path, -1) + 1
                header = header[0]
            if path in self._last:
                path = (*path, self._last[path])
                self._places.setdefault(path, place)
        return path


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The headers and the assignments of a TOML text, each with the line it begins on; some span several lines."""
    begin, statement = 1, ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not statement:
            begin = number
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:  # it goes on in the next line
            continue
        if parsed:
            yield begin, statement
        statement = ""
