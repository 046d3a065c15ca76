"""What reward functions give back: numbers, None, tables and tensors, read into what they say of each attempt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from reasonmill.protocols import Measured

# Where tables and objects keep the number.
_SCORES = ("reward", "rewards", "score", "scores")


def measured(given: Any, key: str | None = None) -> Measured:
    """What a function says of one attempt.

    Args:
        key: where a table has the number; None for the usual names.

    Raises:
        TypeError, ValueError: it is nothing that can be read as a number, or a number that is not finite.
    """
    if given is None:
        return Measured(None)
    if isinstance(given, Mapping):
        named = _score_of(given, key)
        return Measured(_number(given[named]), parts=_numbers({n: v for n, v in given.items() if n != named}))
    held = next((getattr(given, name) for name in _SCORES if _has_number(given, name)), given)
    return Measured(_number(held))


def all_measured(given: Any, count: int, key: str | None = None) -> list[Measured]:
    """What a function says of `count` attempts that it was asked about together.

    Args:
        key: as of `measured`.

    Raises:
        TypeError, ValueError: it is no list or tensor of so many, and no table of such.
    """
    if not isinstance(given, Mapping):
        return [measured(each, key) for each in _listed(given, count)]
    named = _score_of(given, key)
    others = {name: value for name, value in given.items() if name != named}
    nested = {name: value for outer in others.values() if isinstance(outer, Mapping) for name, value in outer.items()}
    columns = {name: _as_list(value) for name, value in {**others, **nested}.items()}
    rows = [
        _numbers({name: values[place] for name, values in columns.items() if values and len(values) == count})
        for place in range(count)
    ]
    scores = [measured(each) for each in _listed(given[named], count)]
    return [Measured(score.value, parts={**score.parts, **row}) for score, row in zip(scores, rows, strict=True)]


def numbers_of(values: Sequence[Any] | Any, count: int) -> list[float | None]:
    """A logged column as numbers, None where it has none; empty where it is no column of so many."""
    listed = _as_list(values)
    if listed is None or len(listed) != count:
        return []
    return [next(iter(_numbers({"": value}).values()), None) for value in listed]


def _score_of(table: Mapping[str, Any], key: str | None) -> str:
    names = (key,) if key is not None else _SCORES
    for name in names:
        if name in table:
            return name
    raise ValueError(f"it gave a table without {' or '.join(names)}: {', '.join(map(str, table)) or 'an empty one'}")


def _has_number(given: Any, name: str) -> bool:
    # Tensors and numbers have many attributes, and none of these names.
    return hasattr(given, name) and not callable(getattr(given, name))


def _number(given: Any) -> float | None:
    if given is None:
        return None
    plain = given.tolist() if hasattr(given, "tolist") else given
    while isinstance(plain, list) and len(plain) == 1:
        plain = plain[0]
    if not isinstance(plain, Real):
        raise TypeError(f"it gave {_shown(given)}, which is no number")
    if not math.isfinite(plain):
        raise ValueError(f"it gave {plain}, which is not finite")
    return float(plain)


def _numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    found = {}
    for name, value in table.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(plain, Real) and math.isfinite(plain):
            found[str(name)] = float(plain)
    return found


def _as_list(given: Any) -> list[Any] | None:
    plain = given.tolist() if hasattr(given, "tolist") else given
    return list(plain) if isinstance(plain, Sequence) and not isinstance(plain, str | bytes) else None


def _listed(given: Any, count: int) -> list[Any]:
    listed = _as_list(given)
    if listed is None:
        raise TypeError(f"it gave {_shown(given)} for {count} completions, and no list")
    if len(listed) != count:
        raise ValueError(f"it gave {len(listed)} values for {count} completions")
    return listed


def _shown(given: Any) -> str:
    text = repr(given)
    return f"{type(given).__name__} {text if len(text) <= 60 else f'{text[:60]}...'}"
