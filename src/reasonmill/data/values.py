"""Rows with their places, and values as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file: JSON values by the names of its columns.

    Attributes:
        place: the file, with the line that the row begins in, or its number where the file has no lines.
    """

    place: str
    columns: Mapping[str, Any]


class BadRow(Exception):
    """A row, or a part of it, that is not understood.

    Args:
        what: why, in words for the user.
        column: where in the row; empty where it is the row as a whole.
        place: of the row, once that is known.
    """

    def __init__(self, what: str, column: str = "", place: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.column = column
        self.place = place

    @property
    def where(self) -> str:
        """Place and column."""
        return f"{self.place}, column {self.column!r}" if self.column else self.place


def json_value(value: Any, column: str) -> Any:
    """A value of a table as JSON has it: what is no number is null, dates and decimals are texts.

    Raises:
        BadRow: JSON has nothing like it.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(name): json_value(each, f"{column}.{name}") for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each, f"{column}[{place}]") for place, each in enumerate(value)]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise BadRow(f"it is of type {type(value).__name__}, and only what JSON can hold is read", column)
