"""Groups to Parquet and back, exactly: one row per rollout, so that other tools can read transcripts, too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from reasonmill.store.parquet import MESSAGES, format_of, messages_of, read_table, write_rows
from reasonmill.types import Completion, Grade, Group, Problem, Reply, Rollout

# What an artifact that holds groups calls their file.
GROUPS_FILE = "groups.parquet"

_REPLIES = pa.list_(
    pa.struct([("start", pa.int32()), ("stop", pa.int32()), ("said", pa.string()), ("messages", MESSAGES)])
)

# `group` numbers the groups of a file; the columns up to `meta` repeat for each rollout and compress to nearly nothing.
# The others are null in the one row of a group that has no rollouts; `logprobs` and `reward` also where there are none.
SCHEMA = pa.schema(
    [
        ("group", pa.int32()),
        ("problem_id", pa.string()),
        ("task", pa.string()),
        ("messages", MESSAGES),
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
        ("split", pa.string()),  # the problem's; null where it is not known
    ],
    metadata={format_of("groups"): "3"},
)
# Version 1 has no version in its metadata, and no replies: each of its rollouts has one turn. Neither it nor version 2
# says from which split its problems were drawn.
_ADDED = ("replies", "split")
_SCHEMAS = {str(version): pa.schema([*SCHEMA][: len(SCHEMA) + version - 3]) for version in (1, 2)} | {"3": SCHEMA}


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Writes groups to a Parquet file; equal groups give equal bytes.

    Raises:
        ValueError: a problem's meta is not JSON, so that it could not be read back as it is.
    """
    rows: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        shared = {"group": index, **_problem_row(group.problem)}
        rows += [shared | _rollout_row(rollout) for rollout in group.rollouts] or [shared]
    write_rows(path, rows, SCHEMA)


def read_groups(path: Path) -> list[Group]:
    """The groups that `write_groups` wrote, now or in an earlier version of the format, equal to the last bit.

    Raises:
        StoreError: the file can't be read or holds something else.
    """
    table = read_table(path, "groups", _SCHEMAS)
    columns = {name: column_values(table.column(name).combine_chunks()) for name in table.column_names}
    columns = {name: [None] * table.num_rows for name in _ADDED} | columns
    problems: list[Problem] = []
    rollouts: list[list[Rollout]] = []
    for row in range(table.num_rows):
        if columns["group"][row] == len(problems):
            problems.append(_problem(columns, row))
            rollouts.append([])
        if columns["tokens"][row] is not None:
            rollouts[-1].append(_rollout(columns, row))
    return [Group(problem, tuple(attempts)) for problem, attempts in zip(problems, rollouts, strict=True)]


def _problem_row(problem: Problem) -> dict[str, Any]:
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
        "messages": [asdict(message) for message in problem.messages],
        "answer": problem.answer,
        "meta": encoded,
        "split": problem.split,
    }


def _rollout_row(rollout: Rollout) -> dict[str, Any]:
    return {
        **_fields(rollout.completion),
        **_fields(rollout.grade),
        "parts": sorted(rollout.grade.parts.items()),
        "prompt_tokens": rollout.prompt_tokens,
        "replies": [asdict(reply) for reply in rollout.replies] or None,
    }


def _fields(record: Completion | Grade) -> dict[str, Any]:
    """What a record holds, without a copy; its columns have the same names."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def column_values(column: pa.Array) -> list[Any]:
    """Python values of a column; lists of numbers become tuples, and go by way of one flat array for speed."""
    if not pa.types.is_list(column.type) or pa.types.is_struct(column.type.value_type):
        values: list[Any] = column.to_pylist()
        return values
    flat = column.values.to_numpy(zero_copy_only=False).tolist()
    offsets = column.offsets.to_numpy().tolist()
    valid = column.is_valid().to_pylist()
    return [tuple(flat[offsets[i] : offsets[i + 1]]) if valid[i] else None for i in range(len(column))]


def _problem(columns: Mapping[str, list[Any]], row: int) -> Problem:
    task, answer, meta, split = (columns[name][row] for name in ("task", "answer", "meta", "split"))
    return Problem(task, messages_of(columns["messages"][row]), answer, json.loads(meta), split)


def _rollout(columns: Mapping[str, list[Any]], row: int) -> Rollout:
    completion = Completion(**{field.name: columns[field.name][row] for field in fields(Completion)})
    grade = Grade(reward=columns["reward"][row], parts=dict(columns["parts"][row]), error=columns["error"][row])
    replies = columns["replies"][row] or ()
    turns = tuple(Reply(**{**reply, "messages": messages_of(reply["messages"])}) for reply in replies)
    return Rollout(columns["prompt_tokens"][row], completion, grade, turns)
