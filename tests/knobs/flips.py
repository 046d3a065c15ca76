"""What is done to a setting, and what has to come of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# What a run makes. All else that is seen of it says how that was got.
BITS = ("made", "groups", "kept", "asked", "figures")
# What a setting must move that decides something: figures alone may repeat what was set.
MADE = ("made", "groups", "kept", "asked")
# In place of a value: the setting is left out.
LEFT_OUT: Any = object()

Verdict = Literal["decides", "measures", "computes", "incidental", "bounds", "admits", "names", "refused"]


@dataclass(frozen=True)
class With:
    """A value that other settings go along with, by their paths."""

    value: Any
    beside: Mapping[str, Any]


@dataclass(frozen=True)
class Flip:
    """Two runs of a stage that differ in one setting.

    Attributes:
        values: in one run after the other; each is compared with the run that has none of them.
        verdict: what has to come of it.
            "decides": it moves what is made.
            "measures": it moves what is measured or kept on the way, and nothing else.
            "computes": it moves how it is computed, and bits may follow by a rounding.
            "incidental": it moves no bit, and how it is got.
            "bounds": no value moves a bit, and the last one decides whether the run ends; it is marked as incidental.
            "admits": the last value decides whether something is taken or refused.
            "names": it moves no bit, and what the stage is called.
            "refused": no other value is taken.
        seen: where that shows.
        given: settings that all runs have beside, by their paths.
        alike: values with which a choice is the same here, and why.
        scene: how samplers and servers behave.
        instead: settings that a value stands in place of, and that are left out where it is set.
    """

    values: tuple[Any, ...]
    verdict: Verdict = "decides"
    seen: tuple[str, ...] = MADE
    given: Mapping[str, Any] = field(default_factory=dict)
    alike: Mapping[Any, str] = field(default_factory=dict)
    scene: str = "plain"
    instead: tuple[str, ...] = ()

    @property
    def tried(self) -> tuple[Any, ...]:
        """The values by themselves."""
        return tuple(value.value if isinstance(value, With) else value for value in self.values)

    def on(self, **given: Any) -> Flip:
        """The same with more settings that all runs have; `__` stands for a point, `from_` for `from`."""
        paths = {path.replace("__", ".").removesuffix("_"): value for path, value in given.items()}
        return replace(self, given={**self.given, **paths})

    def at(self, scene: str) -> Flip:
        """The same where samplers or servers behave otherwise."""
        return replace(self, scene=scene)

    def in_place_of(self, *paths: str) -> Flip:
        """The same where a value is set in place of other settings."""
        return replace(self, instead=paths)


def decides(*values: Any, alike: Mapping[Any, str] | None = None, seen: str = "") -> Flip:
    return Flip(values, seen=(seen,) if seen else MADE, alike=alike or {})


def measures(*values: Any, seen: str = "figures") -> Flip:
    return Flip(values, "measures", (seen,))


def computes(*values: Any, seen: str) -> Flip:
    return Flip(values, "computes", (seen,))


def incidental(*values: Any, seen: str) -> Flip:
    return Flip(values, "incidental", (seen,))


def bounds(*values: Any) -> Flip:
    return Flip(values, "bounds", ("ended",))


def admits(*values: Any) -> Flip:
    return Flip(values, "admits", ("ended",))


def names(*values: Any) -> Flip:
    return Flip(values, "names", ("called",))


def refused(*values: Any) -> Flip:
    return Flip(values, "refused", ("refused",))


def changed(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table with other values at some paths; a path through a list goes through the first of it."""
    made = copy.deepcopy(dict(table))
    for path, value in changes.items():
        *tables, name = path.split(".")
        inner = made
        for each in tables:
            inner = inner.setdefault(each, {})
            inner = inner[0] if isinstance(inner, list) else inner
        if value is LEFT_OUT:
            inner.pop(name, None)
        else:
            inner[name] = copy.deepcopy(value)
    return made
