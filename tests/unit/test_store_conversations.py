"""Conversations to Parquet and back."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonmill.errors import StoreError
from reasonmill.store.conversations import read_conversations, write_conversations
from reasonmill.types import Conversation, Message

earlier_turns = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=10)), max_size=3
)
conversations_strategy = st.lists(
    st.builds(
        lambda earlier, question, response, source, problem_id, split: Conversation(
            (*earlier, Message("user", question)), response, source, problem_id, split
        ),
        earlier_turns,
        st.text(max_size=10),
        st.text(min_size=1, max_size=20),
        st.sampled_from(["reasoning", "general"]),
        st.text(max_size=5),
        st.sampled_from([None, "train", "dev", "test"]),
    )
)


@pytest.mark.check
@settings(max_examples=60, deadline=None)
@given(conversations=conversations_strategy)
def test_conversations_come_back_equal(
    conversations: list[Conversation], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("conversations") / "conversations.parquet"
    write_conversations(path, conversations)
    assert read_conversations(path) == conversations


def test_other_tools_see_one_row_per_conversation(tmp_path: Path) -> None:
    write_conversations(tmp_path / "c", [Conversation((Message("user", "1 + 1 ?"),), "2", "reasoning", "p1")] * 2)
    row = {"messages": [{"role": "user", "content": "1 + 1 ?"}], "response": "2"}
    row |= {"source": "reasoning", "problem_id": "p1", "split": None}
    assert pq.read_table(tmp_path / "c").to_pylist() == [row, row]


def test_files_of_the_first_version_do_not_know_the_split(tmp_path: Path) -> None:
    row = Conversation((Message("user", "1 + 1 ?"),), "2", "reasoning", "p1", "train")
    write_conversations(tmp_path / "c", [row])
    table = pq.read_table(tmp_path / "c")
    assert table.schema.metadata == {b"reasonmill.conversations": b"2"}
    pq.write_table(table.drop_columns("split").replace_schema_metadata(None), tmp_path / "c")
    assert read_conversations(tmp_path / "c") == [replace(row, split=None)]


@pytest.mark.parametrize(
    ("messages", "response"),
    [((), "2"), ((Message("user", "1 ?"), Message("assistant", "1")), "2"), ((Message("user", "1 ?"),), "")],
)
def test_a_conversation_that_nobody_could_learn_from_is_refused(messages: tuple[Message, ...], response: str) -> None:
    with pytest.raises(ValueError, match="conversation 'p1'"):
        Conversation(messages, response, "reasoning", "p1")


def test_a_damaged_a_foreign_and_a_missing_file_are_store_errors(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign")
    for name in ("damaged", "foreign", "missing"):
        with pytest.raises(StoreError) as caught:
            read_conversations(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
