"""Settings that are changed from the command line: `stage.key=value`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from reasonmill.errors import RecipeError
from reasonmill.plugins.plugin import Group
from reasonmill.recipe.graph import no_stage
from reasonmill.recipe.origin import KeyPath, Origins

# Tables in which a recipe brings its own data and code; those of parts stand before those that name them.
TABLES: tuple[Group, ...] = ("data", "environments", "rewards", "tasks", "stages")
_BARE_WORD = re.compile(r"[^\s\"'\[\]{},=#]+")


def override(table: dict[str, Any], origins: Origins, text: str) -> None:
    """Changes the table of a recipe as `--set` asks.

    Raises:
        RecipeError: it can't be read, or there is no such stage or table.
    """
    keys, value = _parse_override(text)
    path: KeyPath = tuple(keys)
    names = stage_names(table)
    if len(keys) > 1 and keys[0] in names:
        path = ("stage", names.index(keys[0]), *keys[1:])
    elif len(keys) > 1 and keys[0] not in ("cycle", "models", "watchdog", *TABLES):
        raise no_stage(keys[0], names)
    inner: Any = table
    for key in path[:-1]:
        inner = inner[key] if isinstance(key, int) else inner.setdefault(key, {})
        if not isinstance(inner, dict) and inner is not table.get("stage"):
            raise RecipeError(f"{key!r} is no table, so it has no key {path[-1]!r}")
    inner[path[-1]] = value
    origins.override(path, value, f"--set {text}")


def _parse_override(text: str) -> tuple[list[str], Any]:
    """The dotted keys and the value of `stage.key=value`."""
    left, equals, right = text.partition("=")
    right = right.strip()
    try:
        target: Any = tomllib.loads(f"{left} = 0") if equals and "\n" not in left else {}
    except tomllib.TOMLDecodeError:
        target = {}
    keys = []
    while isinstance(target, dict) and target:
        ((key, target),) = target.items()
        keys.append(key)
    if not keys or not right:
        raise RecipeError("the override can't be read", fix="write it as stage.key=value or seed=value")
    try:
        parsed = tomllib.loads(f"value = {right}")
        if len(parsed) == 1:
            return keys, parsed["value"]
    except tomllib.TOMLDecodeError:
        if _BARE_WORD.fullmatch(right):
            return keys, right
    raise RecipeError(
        f"{right!r} is neither a TOML value nor one word",
        fix="quote a text for TOML and for the shell: --set 'stage.key=\"some text\"'",
    )


def stage_names(table: Mapping[str, Any]) -> list[str]:
    """The names of the stages as they are written; empty where one is missing or no text."""
    entries = table.get("stage")
    listed = entries if isinstance(entries, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in listed]
    return [name if isinstance(name, str) else "" for name in names]
