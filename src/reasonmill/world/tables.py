"""The tables of the tiny world: what its modules say, in TOML files beside them that bear their names."""

import tomllib
from pathlib import Path
from typing import Any


def table(module: str) -> dict[str, Any]:
    """The table that belongs to a module of this package, by the module's `__name__`; lists come as tuples."""
    path = Path(__file__).with_name(f"{module.rpartition('.')[2]}.toml")
    read: dict[str, Any] = _with_tuples(tomllib.loads(path.read_text(encoding="utf-8")))
    return read


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
