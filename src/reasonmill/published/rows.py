"""Rows of published sets, made into problems."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import tomllib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from reasonmill.data.values import BadRow
from reasonmill.randomness import generator
from reasonmill.types import Message, Problem

_TABLE: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("sets.toml").read_text(encoding="utf-8"))
_HOLE = re.compile(r"\{(\w+)\}")
_LETTERS = "ABCD"
_MARK = "####"
# What the tests of a problem may be unpacked to.
_MOST_BYTES = 2**30

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """What a row says: what stands in the prompt's holes, the answer, and what the grader needs."""

    holes: Mapping[str, str]
    answer: str
    meta: Mapping[str, Any]


def problem_of(name: str, columns: Columns) -> Problem:
    """The problem of a row.

    Args:
        name: of the set.

    Raises:
        BadRow: the row is not of this set.
    """
    table = _TABLE[name]
    made = _MAKES[name](_named(table, columns))
    asked = _HOLE.sub(lambda hole: made.holes[hole[1]], table["prompt"].removeprefix("\n"))
    system = [Message("system", table["system"])] if "system" in table else []
    return Problem(name, (*system, Message("user", asked)), made.answer, {**made.meta, "language": "en"})


def belongs(name: str, split: str, columns: Columns) -> bool:
    """Whether a row is of this split; where a set's file holds several, its rows' numbers tell.

    Args:
        name: of the set.
    """
    table = _TABLE[name]
    number = columns.get(table.get("numbered_by", ""))
    if not isinstance(number, int | str) or not str(number).isdigit():
        return True
    first, last = table["numbers"][split]
    return bool(first <= int(number) <= last)


def _named(table: Mapping[str, Any], columns: Columns) -> Columns:
    """The values by what they are."""
    found = {}
    for role, names in table["columns"].items():
        name = next((name for name in names if columns.get(name) is not None), None)
        if name is None:
            raise BadRow(f"it has no {' or '.join(map(repr, names))}", names[0])
        found[role] = columns[name]
    for role, (name,) in table.get("maybe", {}).items():
        if columns.get(name) is not None:
            found[role] = columns[name]
    return found


def _text(row: Columns, role: str) -> str:
    value = row[role]
    if not isinstance(value, str) or not value.strip():
        raise BadRow("a text is needed here", role)
    return value


def _gsm8k(row: Columns) -> Made:
    answer = _text(row, "answer").rpartition(_MARK)[2].strip().replace(",", "")
    return Made({"question": _text(row, "question")}, answer, {})


def _math(row: Columns) -> Made:
    return Made({"problem": _text(row, "problem")}, _text(row, "answer"), {})


def _aime(row: Columns) -> Made:
    written = str(row["answer"]).strip().removesuffix(".0")
    if not (written.isascii() and written.isdigit() and int(written) <= 999):
        raise BadRow(f"an answer is a whole number from 0 to 999, and not {written!r}", "answer")
    return Made({"problem": _text(row, "problem")}, str(int(written)), {})


def _chosen(question: str, choices: list[str], answer: str) -> Made:
    return Made({"question": question, **dict(zip(_LETTERS, choices, strict=True))}, answer, {"choices": choices})


def _gpqa(row: Columns) -> Made:
    """The options stand in an order that their question decides, as the right one comes first in the file."""
    question, right = _text(row, "question"), _text(row, "right").strip()
    choices = [right, *(_text(row, f"wrong{number}").strip() for number in (1, 2, 3))]
    generator("gpqa", question).shuffle(choices)
    return _chosen(question.strip(), choices, _LETTERS[choices.index(right)])


def _mmlu(row: Columns) -> Made:
    """Options in a list and the answer's number from 0 on, or a column for each option and the answer's letter."""
    choices = row["choices"] if "choices" in row else [row.get(letter) for letter in _LETTERS]
    if not isinstance(choices, list) or len(choices) != len(_LETTERS) or None in choices:
        raise BadRow("four options are needed", "choices")
    answer = str(row["answer"]).strip()
    letter = _LETTERS[int(answer)] if answer in ("0", "1", "2", "3") else answer
    if letter not in tuple(_LETTERS):
        raise BadRow(f"{answer!r} is none of the options", "answer")
    return _chosen(_text(row, "question").strip(), [str(choice) for choice in choices], letter)


def _humaneval(row: Columns) -> Made:
    tests = {role: _text(row, role) for role in ("prompt", "test", "entry_point")}
    return Made({"prompt": tests["prompt"]}, str(row.get("canonical_solution", "")), tests)


def _mbpp(row: Columns) -> Made:
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise BadRow("a list of assertions is needed here", "test_list")
    meta = {role: row[role] for role in ("test_list", "test_setup_code", "test_imports") if role in row}
    return Made({"text": _text(row, "text"), "tests": "\n".join(tests)}, str(row.get("code", "")), meta)


def _livecodebench(row: Columns) -> Made:
    table = _TABLE["livecodebench"]
    starter = str(row.get("starter", ""))
    tests = [*_tests(row["public"], "public_test_cases"), *_tests(row["private"], "private_test_cases")]
    holes = {
        "question": _text(row, "question"),
        "format": table["format_with_starter" if starter.strip() else "format_without_starter"],
        "starter": starter if starter.strip() else table["starter"],
    }
    metadata = _json(row.get("metadata", "{}"), "metadata")
    function = metadata.get("func_name") if isinstance(metadata, dict) else None
    return Made(holes, "", {"tests": tests, **({"fn_name": function} if function else {})})


def _tests(value: Any, column: str) -> list[Any]:
    """Test cases: a list, JSON, or JSON that is pickled, packed by zlib and written in base64."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        try:
            value = _PlainUnpickler(io.BytesIO(_unpacked(base64.b64decode(value, validate=True)))).load()
        except (ValueError, EOFError, AttributeError, IndexError, zlib.error, pickle.UnpicklingError) as error:
            raise BadRow(f"the packed test cases can't be read: {error}", column) from error
    tests = _json(value, column)
    if not isinstance(tests, list):
        raise BadRow("a list of test cases is needed here", column)
    return tests


def _unpacked(packed: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(packed, _MOST_BYTES)
    if not decompressor.eof:
        raise ValueError(f"they are cut off, or larger than {_MOST_BYTES} bytes")
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Reads texts and what holds them: whatever would import or call something is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, and not for a text")


def _json(value: Any, column: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str | bytes) else value
    except (ValueError, RecursionError) as error:
        raise BadRow(f"it is no JSON: {error}", column) from error


def _ifeval(row: Columns) -> Made:
    meta = {role: row[role] for role in ("instruction_id_list", "kwargs")}
    if not all(isinstance(value, list) for value in meta.values()):
        raise BadRow("a list is needed here", "instruction_id_list")
    # Parquet has every argument of every kind, null where it means nothing.
    meta["kwargs"] = [{k: v for k, v in (given or {}).items() if v is not None} for given in meta["kwargs"]]
    return Made({"prompt": _text(row, "prompt")}, "", meta)


_MAKES: Mapping[str, Callable[[Columns], Made]] = {
    "gsm8k": _gsm8k,
    "math-500": _math,
    "aime": _aime,
    "gpqa": _gpqa,
    "mmlu": _mmlu,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "livecodebench": _livecodebench,
    "ifeval": _ifeval,
}
