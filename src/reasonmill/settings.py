"""What settings decide: most of them decide what comes out, some only how it is got.

Marks stand in annotations: `timeout_s: Annotated[float, INCIDENTAL]`, `data: list[DatasetRef]`. `marks` finds them
wherever they are, also within lists, tables and settings of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

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
    return list(_marked("", settings, type(settings), (), kind))


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
    parts = {
        part.key: _decided(part.value, dumped[part.key], part.annotation, part.metadata)
        for kind in (Incidental, ByContent)
        for part in _parts(value, annotation, kind)
    }
    if isinstance(value, list | tuple):
        return [part for part in parts.values() if part is not _NOTHING]
    if isinstance(value, BaseModel) and any(isinstance(mark, Naming) for mark in metadata):
        # The other keys of a table that names a plug-in are its arguments, which count with the plug-in.
        own = {field.alias or name for name, field in type(value).model_fields.items()}
        dumped = {key: whole for key, whole in dumped.items() if key in own}
    decided = {key: parts.get(key, whole) for key, whole in dumped.items()}
    return {key: part for key, part in decided.items() if part is not _NOTHING}


def _marked(key: str, value: Any, annotation: Any, metadata: Sequence[Any], kind: type[Kind]) -> Iterator[Mark[Kind]]:
    """The marks of a kind of one value and of those within it."""
    if value is None:
        return
    annotation, metadata = _apart(value, annotation, metadata)
    yield from (Mark(key, value, mark) for mark in metadata if isinstance(mark, kind))
    for part in _parts(value, annotation, kind):
        inner = f"{key}[{part.key}]" if isinstance(value, list | tuple) else f"{key}.{part.key}".removeprefix(".")
        if isinstance(value, Mapping):
            yield from _marked(inner, part.key, _inner(annotation, 0), (), kind)
        yield from _marked(inner, part.value, part.annotation, part.metadata, kind)


class _Part(NamedTuple):
    """A part of a value: its key or place, itself, its annotation and what that says beside."""

    key: Any
    value: Any
    annotation: Any
    metadata: Sequence[Any] = ()


def _parts(value: Any, annotation: Any, kind: type) -> Iterator[_Part]:
    """What a value consists of, but for settings that no mark of this kind can be found at."""
    if isinstance(value, BaseModel):
        for name, part in _telling(type(value), kind):
            yield part._replace(value=getattr(value, name))
    elif isinstance(value, Mapping):
        yield from (_Part(name, each, _inner(annotation, 1)) for name, each in value.items())
    elif isinstance(value, list | tuple):
        yield from (_Part(place, each, _inner(annotation, place)) for place, each in enumerate(value))


# A recipe's settings are looked through for one kind of marks after the other, and most of them can have none.
@lru_cache(maxsize=1024)
def _telling(model: type[BaseModel], kind: type) -> tuple[tuple[str, _Part], ...]:
    """The fields at which, or within which, marks of a kind may be found: their names, and all but their values."""
    return tuple(
        (name, _Part(field.alias or name, None, field.annotation, field.metadata))
        for name, field in model.model_fields.items()
        if any(isinstance(mark, kind) for mark in field.metadata) or _may_tell(field.annotation, kind)
    )


_PLAIN = (str, int, float, bool, Path, NoneType, Ellipsis)


def _may_tell(annotation: Any, kind: type) -> bool:
    """Whether a value of this annotation, or one within it, may have a mark of a kind."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return any(isinstance(mark, kind) for mark in inner[1:]) or _may_tell(inner[0], kind)
    if origin in (Union, UnionType, dict, list, tuple):
        return any(_may_tell(part, kind) for part in inner)
    return origin is not Literal and annotation not in _PLAIN


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
