"""Conversations to Parquet and back, exactly: one row each, the layout that other trainers read, too."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reasonmill.errors import StoreError
from reasonmill.types import Conversation, Message

CONVERSATIONS_FILE = "conversations.parquet"

SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("response", pa.string()),
        ("source", pa.string()),
        ("problem_id", pa.string()),
    ]
)


def write_conversations(path: Path, conversations: Sequence[Conversation]) -> None:
    """Writes conversations to a Parquet file in their order; equal conversations give equal bytes."""
    columns = {
        "messages": [
            [{"role": message.role, "content": message.content} for message in conversation.messages]
            for conversation in conversations
        ],
        "response": [conversation.response for conversation in conversations],
        "source": [conversation.source for conversation in conversations],
        "problem_id": [conversation.problem_id for conversation in conversations],
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="zstd")


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations that `write_conversations` wrote, in their order.

    Raises:
        StoreError: the file can't be read or holds something else.
    """
    try:
        table = pq.read_table(path, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"conversations can't be read: {error}", fix="restore the file or run the stage again", where=str(path)
        ) from error
    if not table.schema.equals(SCHEMA):
        raise StoreError(
            "this Parquet file does not hold conversations", fix="name a file that reasonmill wrote", where=str(path)
        )
    return [
        Conversation(
            messages=tuple(Message(message["role"], message["content"]) for message in row["messages"]),
            response=row["response"],
            source=row["source"],
            problem_id=row["problem_id"],
        )
        for row in table.to_pylist()
    ]
