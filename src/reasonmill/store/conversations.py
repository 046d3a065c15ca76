"""Conversations to Parquet and back, exactly: one row each, the layout that other trainers read, too."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from reasonmill.store.parquet import MESSAGES, format_of, messages_of, read_table, write_rows
from reasonmill.types import Conversation

CONVERSATIONS_FILE = "conversations.parquet"

_FIRST = pa.schema(
    [("messages", MESSAGES), ("response", pa.string()), ("source", pa.string()), ("problem_id", pa.string())]
)
# Version 1 has no version in its metadata, and does not say from which split its problems were drawn.
SCHEMA = _FIRST.append(pa.field("split", pa.string())).with_metadata({format_of("conversations"): "2"})


def write_conversations(path: Path, conversations: Sequence[Conversation]) -> None:
    """Writes conversations to a Parquet file in their order; equal conversations give equal bytes."""
    write_rows(path, [asdict(conversation) for conversation in conversations], SCHEMA)


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations that `write_conversations` wrote, now or in an earlier version of the format, in their order.

    Raises:
        StoreError: the file can't be read or holds something else.
    """
    rows = read_table(path, "conversations", {"1": _FIRST, "2": SCHEMA}).to_pylist()
    return [Conversation(**{**row, "messages": messages_of(row["messages"])}) for row in rows]
