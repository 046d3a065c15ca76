"""Conversations to Parquet and back, exactly: one row each, the layout that other trainers read, too."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from reasonmill.store.parquet import MESSAGES, messages_of, read_table, write_rows
from reasonmill.types import Conversation

CONVERSATIONS_FILE = "conversations.parquet"

SCHEMA = pa.schema(
    [("messages", MESSAGES), ("response", pa.string()), ("source", pa.string()), ("problem_id", pa.string())]
)


def write_conversations(path: Path, conversations: Sequence[Conversation]) -> None:
    """Writes conversations to a Parquet file in their order; equal conversations give equal bytes."""
    write_rows(path, [asdict(conversation) for conversation in conversations], SCHEMA)


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations that `write_conversations` wrote, in their order.

    Raises:
        StoreError: the file can't be read or holds something else.
    """
    rows = read_table(path, "conversations", {"1": SCHEMA}).to_pylist()
    return [Conversation(**{**row, "messages": messages_of(row["messages"])}) for row in rows]
