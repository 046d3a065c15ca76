"""Groups to Parquet and back, exactly: one row per rollout, so that other tools can read transcripts, too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reasonmill.errors import StoreError
from reasonmill.types import Completion, Grade, Group, Message, Problem, Reply, Rollout

# What an artifact that holds groups calls their file.
GROUPS_FILE = "groups.parquet"

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

_REPLIES = pa.list_(
    pa.struct([("start", pa.int32()), ("stop", pa.int32()), ("said", pa.string()), ("messages", _MESSAGES)])
)
_FORMAT = "reasonmill.groups"

# `group` numbers the groups of a file; the columns up to `meta` repeat for each rollout and compress to nearly nothing.
# The others are null in the one row of a group that has no rollouts; `logprobs` and `reward` also where there are none.
SCHEMA = pa.schema(
    [
        ("group", pa.int32()),
        ("problem_id", pa.string()),
        ("task", pa.string()),
        ("messages", _MESSAGES),
        ("answer", pa.string()),
        ("meta", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("sampled", pa.list_(pa.bool_())),
        ("text", pa.string()),
        ("finish", pa.string()),
        ("policy_version", pa.int64()),
        ("reward", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
        ("error", pa.string()),
        ("replies", _REPLIES),  # null where a rollout has one turn
    ],
    metadata={_FORMAT: "2"},
)
# Version 1 has no version in its metadata, and no replies: each of its rollouts has one turn.
_SCHEMAS = {"1": pa.schema([field for field in SCHEMA if field.name != "replies"]), "2": SCHEMA}


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Writes groups to a Parquet file; equal groups give equal bytes.

    Raises:
        ValueError: a problem's meta is not JSON, so that it could not be read back as it is.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for index, group in enumerate(groups):
        shared = {"group": index, **_problem_columns(group.problem)}
        for rollout in group.rollouts or (None,):
            row = shared if rollout is None else shared | _rollout_columns(rollout)
            for name, column in columns.items():
                column.append(row.get(name))
    pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="zstd")


def read_groups(path: Path) -> list[Group]:
    """The groups that `write_groups` wrote, now or in an earlier version of the format, equal to the last bit.

    Raises:
        StoreError: the file can't be read or holds something else.
    """
    try:
        table = pq.read_table(path, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"groups can't be read: {error}", fix="restore the file or run the stage again", where=str(path)
        ) from error
    version = (table.schema.metadata or {}).get(_FORMAT.encode(), b"1").decode()
    if version not in _SCHEMAS:
        raise StoreError(
            f"these groups have format {version}, and this reasonmill reads {' and '.join(_SCHEMAS)}",
            fix="use the reasonmill that wrote them, or a newer one",
            where=str(path),
        )
    if not table.schema.equals(_SCHEMAS[version]):
        raise StoreError(
            "this Parquet file does not hold groups", fix="name a file that reasonmill wrote", where=str(path)
        )

    columns = {name: _values(table.column(name).combine_chunks()) for name in table.column_names}
    columns.setdefault("replies", [None] * table.num_rows)
    problems: list[Problem] = []
    rollouts: list[list[Rollout]] = []
    for row in range(table.num_rows):
        if columns["group"][row] == len(problems):
            problems.append(_problem(columns, row))
            rollouts.append([])
        if columns["tokens"][row] is not None:
            rollouts[-1].append(_rollout(columns, row))
    return [Group(problem, tuple(attempts)) for problem, attempts in zip(problems, rollouts, strict=True)]


def _problem_columns(problem: Problem) -> dict[str, Any]:
    meta = dict(problem.meta)
    encoded = json.dumps(meta, sort_keys=True, allow_nan=False)
    if json.loads(encoded) != meta:
        raise ValueError(
            f"the meta of problem {problem.id} of task {problem.task!r} must be JSON: lists instead of tuples, "
            "and only strings as keys"
        )
    return {
        "problem_id": problem.id,
        "task": problem.task,
        "messages": _message_rows(problem.messages),
        "answer": problem.answer,
        "meta": encoded,
    }


def _rollout_columns(rollout: Rollout) -> dict[str, Any]:
    completion, grade = rollout.completion, rollout.grade
    return {
        "prompt_tokens": rollout.prompt_tokens,
        "tokens": completion.tokens,
        "logprobs": completion.logprobs,
        "sampled": completion.sampled,
        "text": completion.text,
        "finish": completion.finish,
        "policy_version": completion.policy_version,
        "reward": grade.reward,
        "parts": sorted(grade.parts.items()),
        "error": grade.error,
        "replies": [{**asdict(reply), "messages": _message_rows(reply.messages)} for reply in rollout.replies] or None,
    }


def _values(column: pa.Array) -> list[Any]:
    """Python values of a column; lists of numbers become tuples, and go by way of one flat array for speed."""
    if not pa.types.is_list(column.type) or pa.types.is_struct(column.type.value_type):
        values: list[Any] = column.to_pylist()
        return values
    flat = column.values.to_numpy(zero_copy_only=False).tolist()
    offsets = column.offsets.to_numpy().tolist()
    valid = column.is_valid().to_pylist()
    return [tuple(flat[offsets[i] : offsets[i + 1]]) if valid[i] else None for i in range(len(column))]


def _problem(columns: dict[str, list[Any]], row: int) -> Problem:
    return Problem(
        task=columns["task"][row],
        messages=_messages(columns["messages"][row]),
        answer=columns["answer"][row],
        meta=json.loads(columns["meta"][row]),
    )


def _rollout(columns: dict[str, list[Any]], row: int) -> Rollout:
    completion = Completion(
        tokens=columns["tokens"][row],
        logprobs=columns["logprobs"][row],
        sampled=columns["sampled"][row],
        text=columns["text"][row],
        finish=columns["finish"][row],
        policy_version=columns["policy_version"][row],
    )
    grade = Grade(reward=columns["reward"][row], parts=dict(columns["parts"][row]), error=columns["error"][row])
    replies = tuple(
        Reply(**{**reply, "messages": _messages(reply["messages"])}) for reply in columns["replies"][row] or ()
    )
    return Rollout(columns["prompt_tokens"][row], completion, grade, replies)


def _message_rows(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [asdict(message) for message in messages]


def _messages(rows: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(**row) for row in rows)
