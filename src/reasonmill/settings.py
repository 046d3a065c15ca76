"""What settings decide: most of them decide what comes out, some only how it is got.

Marks stand in annotations: `timeout_s: Annotated[float, INCIDENTAL]`, `data: list[DatasetRef]`. `marks` finds them
wherever they are, also within lists, tables and settings of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field

# The range of fp32, in which networks and their optimizer compute: what is smaller becomes 0 there, or nearly nothing,
# and what is larger infinity.
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


def _held_in_fp32(value: float) -> float:
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise ValueError(f"{value} is no number that fp32 holds: write 0, or something from 1.2e-38 to 3.4e38")
    return value


# A number of a recipe: any that can be computed with.
Real = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_held_in_fp32)]
# A time that clocks and sockets can count: up to thirty years.
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


@dataclass(frozen=True)
class Incidental:
    """Marks a setting that decides how something is got, and never what: patience, haste, the name of a variable."""


INCIDENTAL = Incidental()


class ByContent:
    """Marks a setting that names something: what it names counts by its content, and not by its name or place."""


BY_CONTENT = ByContent()


@dataclass(frozen=True)
class Naming:
    """Marks what names a plug-in of a group, a name or a table with `use`: the key of the stage covers the plug-in.

    Keys that the table does not define itself are arguments.
    """

    group: str


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Mark(Generic[Kind]):
    """A marked value: its key as a recipe writes it (`data[0]`, `tasks.sums`), the value, and the mark."""

    key: str
    value: Any
    mark: Kind


def marks(settings: BaseModel, kind: type[Kind]) -> list[Mark[Kind]]:
    """All values of the settings with a mark of this kind, in their order. None and empty tables have none."""
    return [Mark(*found) for found in _marked("", settings, type(settings)) if isinstance(found[2], kind)]


def decisive(settings: BaseModel) -> dict[str, Any]:
    """The settings as JSON by the names that a recipe gives them, without those that are incidental or count by the
    content of what they name, at any depth."""
    dumped = settings.model_dump(mode="json", by_alias=True)
    decided: dict[str, Any] = _decided(settings, dumped, type(settings))
    return decided


_NOTHING = object()


def _decided(value: Any, dumped: Any, annotation: Any, metadata: Sequence[Any] = ()) -> Any:
    """What counts of `dumped`, which is `value` as JSON; _NOTHING if all of it counts otherwise or not at all."""
    annotation, metadata = _apart(value, annotation, metadata)
    if INCIDENTAL in metadata or (value is not None and any(isinstance(mark, ByContent) for mark in metadata)):
        return _NOTHING
    if not isinstance(value, BaseModel | Mapping | list | tuple):
        return dumped
    parts = {key: _decided(each, dumped[key], *how) for key, each, *how in _parts(value, annotation)}
    # The other keys of a table that names a plug-in are its arguments, which count with the plug-in.
    if isinstance(value, BaseModel) and not any(isinstance(mark, Naming) for mark in metadata):
        parts |= {key: other for key, other in dumped.items() if key not in parts}
    decided = {key: part for key, part in parts.items() if part is not _NOTHING}
    return list(decided.values()) if isinstance(value, list | tuple) else decided


def _marked(key: str, value: Any, annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, mark) of one value and of those within it."""
    if value is None:
        return
    annotation, metadata = _apart(value, annotation, metadata)
    yield from ((key, value, mark) for mark in metadata)
    for name, each, *how in _parts(value, annotation):
        inner = f"{key}[{name}]" if isinstance(value, list | tuple) else f"{key}.{name}".removeprefix(".")
        if isinstance(value, Mapping):
            yield from _marked(inner, name, _inner(annotation, 0))
        yield from _marked(inner, each, *how)


def _parts(value: Any, annotation: Any) -> Iterator[tuple[Any, Any, Any, Sequence[Any]]]:
    """What a value consists of: each part's key or place, the part, its annotation and what that says beside."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield field.alias or name, getattr(value, name), field.annotation, field.metadata
    elif isinstance(value, Mapping):
        yield from ((name, each, _inner(annotation, 1), ()) for name, each in value.items())
    elif isinstance(value, list | tuple):
        yield from ((place, each, _inner(annotation, place), ()) for place, each in enumerate(value))


def _apart(value: Any, annotation: Any, metadata: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """The plain type of a value, of a union the option that it is of, and all that it is annotated with."""
    while True:
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation, metadata = inner[0], (*metadata, *inner[1:])
        elif origin in (Union, UnionType):
            annotation = _option(value, inner)
        else:
            return annotation, metadata


def _option(value: Any, options: Sequence[Any]) -> Any:
    """The option that a value is of; the first one where that is not known, as for None."""
    for option in options:
        plain = get_args(option)[0] if get_origin(option) is Annotated else option
        kind = get_origin(plain) or plain
        if value is not None and isinstance(kind, type) and issubclass(type(value), kind):
            return option
    return next(option for option in options if option is not NoneType)


def _inner(annotation: Any, place: int) -> Any:
    """The annotation of an entry of a list or a tuple, or of a table's names (0) and values (1)."""
    inner = get_args(annotation)
    if len(inner) == 1 or Ellipsis in inner:
        return inner[0]
    return inner[place] if place < len(inner) else Any
