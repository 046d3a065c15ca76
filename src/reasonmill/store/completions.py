"""Completions by name to Parquet and back, exactly, in the columns that groups have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pyarrow as pa

from reasonmill.store.groups import SCHEMA as GROUPS
from reasonmill.store.groups import column_values
from reasonmill.store.parquet import format_of, read_table, write_rows
from reasonmill.types import Completion

COMPLETIONS_FILE = "completions.parquet"

_COLUMNS = [field.name for field in fields(Completion)]
_SCHEMA = pa.schema(
    [("name", pa.string()), *(GROUPS.field(column) for column in _COLUMNS)], metadata={format_of("completions"): "1"}
)


def write_completions(path: Path, completions: Mapping[str, Completion]) -> None:
    """Writes completions to a Parquet file."""
    rows = [
        {"name": name, **{column: getattr(completion, column) for column in _COLUMNS}}
        for name, completion in completions.items()
    ]
    write_rows(path, rows, _SCHEMA)


def read_completions(path: Path) -> dict[str, Completion]:
    """The completions that `write_completions` wrote.

    Raises:
        StoreError: the file can't be read or holds something else.
    """
    table = read_table(path, "completions", {"1": _SCHEMA})
    columns = {name: column_values(table.column(name).combine_chunks()) for name in table.column_names}
    return {
        name: Completion(**{column: columns[column][row] for column in _COLUMNS})
        for row, name in enumerate(columns["name"])
    }
