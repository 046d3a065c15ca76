"""Parquet files of rows, exactly as they were written: what groups and conversations have in common."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reasonmill.errors import StoreError
from reasonmill.types import Message

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def format_of(what: str) -> str:
    """Under what the metadata of a file has the version of its format; a file without one is of version 1."""
    return f"reasonmill.{what}"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Writes rows by the names of their columns; what a row lacks is null. Equal rows give equal bytes."""
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def read_table(path: Path, what: str, schemas: Mapping[str, pa.Schema]) -> pa.Table:
    """The table that `write_rows` wrote, now or in an earlier version of the format.

    Args:
        what: the rows are, in the plural.
        schemas: by their versions.

    Raises:
        StoreError: the file can't be read or holds something else.
    """
    try:
        table = pq.read_table(path, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{what} can't be read: {error}", fix="restore the file or run the stage again", where=str(path)
        ) from error
    version = (table.schema.metadata or {}).get(format_of(what).encode(), b"1").decode()
    if version not in schemas:
        raise StoreError(
            f"these {what} have format {version}, and this reasonmill reads {' and '.join(schemas)}",
            fix="use the reasonmill that wrote them, or a newer one",
            where=str(path),
        )
    if not table.schema.equals(schemas[version]):
        raise StoreError(
            f"this Parquet file does not hold {what}", fix="name a file that reasonmill wrote", where=str(path)
        )
    return table


def messages_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The messages of a row."""
    return tuple(Message(**row) for row in rows)
