"""What settings decide: most of them decide what comes out, some only how it is got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Incidental:
    """Marks a setting that decides how something is got, and never what: patience, haste, the name of a variable.

    It stands in the annotation: `timeout_s: Annotated[float, INCIDENTAL]`.
    """


INCIDENTAL = Incidental()


def decisive(settings: BaseModel) -> dict[str, Any]:
    """The settings as JSON by the names that a recipe gives them, at any depth without those that are incidental."""
    dumped: dict[str, Any] = settings.model_dump(mode="json", by_alias=True)
    _drop_incidental(settings, dumped)
    return dumped


def _drop_incidental(value: Any, dumped: Any) -> None:
    """Removes from `dumped`, which is `value` as JSON, what is marked within."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            key = field.alias or name
            if INCIDENTAL in field.metadata:
                del dumped[key]
            else:
                _drop_incidental(getattr(value, name), dumped[key])
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _drop_incidental(inner, dumped[key])
    elif isinstance(value, list | tuple):
        for inner, inner_dumped in zip(value, dumped, strict=True):
            _drop_incidental(inner, inner_dumped)
