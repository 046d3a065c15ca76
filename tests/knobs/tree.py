"""All settings that a recipe's tables take, found in their models: what is not there, nobody can set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from reasonmill.settings import Incidental


@dataclass(frozen=True)
class Knob:
    """A setting of a table.

    Attributes:
        path: as a recipe writes it, from the table on: `optimizer.beta1`.
        options: all values that it may have, where those are few: of a choice, or false and true.
        is_incidental: whether it is marked as one that moves no bit.
    """

    path: str
    options: tuple[Any, ...]
    is_incidental: bool


def knobs(model: type[BaseModel], before: str = "", *, is_incidental: bool = False) -> Iterator[Knob]:
    """The settings of a table and of the tables within it. A table that is always there is none by itself: all that can
    be set of it are its own settings. One that may be left out is, and so is one with names of the user's."""
    for name, field in model.model_fields.items():
        path = f"{before}{field.alias or name}"
        moves_nothing = is_incidental or any(isinstance(mark, Incidental) for mark in field.metadata)
        inner = list(_tables(field.annotation))
        if inner != [field.annotation]:
            yield Knob(path, _options(field.annotation), moves_nothing)
        for table in inner:
            yield from knobs(table, f"{path}.", is_incidental=moves_nothing)


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a value of this annotation may be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    inner = get_args(annotation)
    for part in inner[:1] if get_origin(annotation) is Annotated else inner:
        if get_origin(annotation) is not Literal:
            yield from _tables(part)


def _options(annotation: Any) -> tuple[Any, ...]:
    """The values of a choice. What a table or a list holds is not looked at: it has other values beside."""
    if annotation is bool:
        return (False, True)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (dict, list, tuple):
        return ()
    return tuple(option for part in get_args(annotation) for option in _options(part))
