"""What users' code is constructed with: arguments checked by the types that its parameters are annotated with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PydanticUserError, create_model
from pydantic.errors import PydanticUndefinedAnnotation

from reasonmill.errors import RecipeError
from reasonmill.settings import Naming

_CONFIG = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)


def arguments_of(made_by: Callable[..., Any], what: str) -> type[BaseModel]:
    """The settings that a class or a function takes: one for each of its parameters, strict and complete.

    Args:
        what: names it in messages.

    Raises:
        RecipeError: a parameter has no type that a recipe's value can be checked against.
    """
    try:
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(made_by, eval_str=True).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"it takes {parameter}, so that nothing could be checked")
            if parameter.annotation is parameter.empty:
                raise TypeError(f"its parameter {name!r} has no type")
            annotation = _as_written(parameter.annotation)
            fields[name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
        return create_model("Arguments", __config__=_CONFIG, **fields)
    except (TypeError, ValueError, NameError, PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise RecipeError(
            f"the arguments of {what} can't be checked: {str(error).split(chr(10), 1)[0]}",
            fix="annotate every parameter with a plain type, such as int, str, list[str] or Path",
        ) from error


def _as_written(annotation: Any) -> Any:
    """What a recipe writes for a parameter: the name of a plug-in, where the parameter wants what is made of it."""
    if get_origin(annotation) is Annotated:
        naming = next((mark for mark in annotation.__metadata__ if isinstance(mark, Naming)), None)
        return annotation if naming is None else Annotated[str, naming]
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(map(_as_written, get_args(annotation)))]  # noqa: UP007  # of as many as there are
    return annotation


def keywords(arguments: BaseModel, folder: Path) -> dict[str, Any]:
    """The arguments by name; paths are relative to the recipe's folder."""
    return {
        name: (folder / value.expanduser()).resolve() if isinstance(value, Path) else value for name, value in arguments
    }
