"""What settings decide: most of them decide what comes out, some only how it is got.

Marks stand in annotations: `timeout_s: Annotated[float, INCIDENTAL]`, `data: list[DatasetRef]`. `marks` finds them
wherever they are, also within lists, tables and settings of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


@dataclass(frozen=True)
class Incidental:
    """Marks a setting that decides how something is got, and never what: patience, haste, the name of a variable."""


INCIDENTAL = Incidental()


class ByContent:
    """Marks a setting that names something: what it names counts by its content, and not by its name or place."""


@dataclass(frozen=True)
class Naming:
    """Marks what names a plug-in of a group, a name or a table with `use`: the key of the stage covers the plug-in."""

    group: str


@dataclass(frozen=True)
class Inline(Naming, ByContent):
    """Marks a table that names a plug-in by its `use`, which may be the path of a file."""


@dataclass(frozen=True)
class Mark:
    """A marked value: its key as a recipe writes it (`data[0]`, `tasks.sums`), the value, and the mark."""

    key: str
    value: Any
    mark: Any


def marks(settings: BaseModel) -> list[Mark]:
    """All marked values of the settings, in their order. Values of None and empty tables have none."""
    return list(_marks_of(settings, ""))


def decisive(settings: BaseModel) -> dict[str, Any]:
    """The settings as JSON by the names that a recipe gives them, without those that are incidental or count by the
    content of what they name, at any depth."""
    dumped: dict[str, Any] = settings.model_dump(mode="json", by_alias=True)
    _drop_what_does_not_decide(settings, dumped)
    return dumped


def _drop_what_does_not_decide(value: Any, dumped: Any) -> None:
    """Removes from `dumped`, which is `value` as JSON, what is marked within."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            key, inner = field.alias or name, getattr(value, name)
            found = [entry.mark for entry in _marked(key, inner, field.annotation, field.metadata)]
            if INCIDENTAL in field.metadata or any(isinstance(mark, ByContent) for mark in found):
                del dumped[key]
            else:
                _drop_what_does_not_decide(inner, dumped[key])
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _drop_what_does_not_decide(inner, dumped[key])
    elif isinstance(value, list | tuple):
        for inner, inner_dumped in zip(value, dumped, strict=True):
            _drop_what_does_not_decide(inner, inner_dumped)


def _marks_of(settings: BaseModel, prefix: str) -> Iterator[Mark]:
    for name, field in type(settings).model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield from _marked(key, getattr(settings, name), field.annotation, field.metadata)


def _marked(key: str, value: Any, annotation: Any, metadata: Any = ()) -> Iterator[Mark]:
    """The marks of one value and of those within it."""
    if value is None:
        return
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = (*metadata, *more)
    yield from (Mark(key, value, mark) for mark in metadata if isinstance(mark, Incidental | ByContent | Naming))
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for option in inner:
            yield from _marked(key, value, option)
    elif origin is dict and isinstance(value, Mapping):
        for name, each in value.items():
            yield from _marked(f"{key}.{name}", name, inner[0])
            yield from _marked(f"{key}.{name}", each, inner[1])
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield from _marked(f"{key}[{place}]", each, inner[0])
    elif isinstance(value, BaseModel):
        yield from _marks_of(value, f"{key}.")
