"""Files of rows: every format gives the same rows, and what can't be read is named by file and line."""

import codecs
import gzip
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonmill.data.files import read_rows
from reasonmill.data.table import Rows
from reasonmill.data.values import BadRow, Row
from reasonmill.errors import RecipeError

ROWS = [{"question": f"What is {n} ≤ x?\u2028Say\n«{n}».", "answer": f'{n}, or "{n}"'} for n in range(5)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def separated(delimiter: str) -> bytes:
    quoted = ['"' + text.replace('"', '""') + '"' for row in ROWS for text in row.values()]
    cells = [delimiter.join(quoted[place : place + 2]) for place in range(0, len(quoted), 2)]
    return "\r\n".join([f"question{delimiter}answer", *cells]).encode()


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)


FORMATS: dict[str, bytes | Callable[[Path], None]] = {
    "rows.jsonl": lines(ROWS),
    "rows.ndjson": b"\n\n" + lines(ROWS).rstrip(),
    "marked.jsonl": codecs.BOM_UTF8 + lines(ROWS),
    "wide.jsonl": lines(ROWS).decode().encode("utf-16"),
    "windows.jsonl": lines(ROWS).replace(b"\n{", b"\r\n{"),
    "rows.jsonl.gz": gzip.compress(lines(ROWS)),
    "rows.json": json.dumps(ROWS, indent=2).encode(),
    "escaped.json": codecs.BOM_UTF8 + json.dumps(ROWS).encode(),
    "table.json": json.dumps({"version": "1", "data": ROWS}).encode(),
    "lines.json": lines(ROWS),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.csv": separated(","),
    "excel.csv": codecs.BOM_UTF8 + separated(","),
    "rows.csv.gz": gzip.compress(separated(",")),
    "rows.tsv": separated("\t"),
    "rows.parquet": parquet,
}


def write(path: Path, content: bytes | Callable[[Path], None]) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    found = list(read_rows(write(tmp_path / name, FORMATS[name])))
    assert [row.columns for row in found if isinstance(row, Row)] == ROWS


def test_a_row_knows_the_line_that_it_begins_in(tmp_path: Path) -> None:
    places = {name: [row.place for row in read_rows(write(tmp_path / name, FORMATS[name]))] for name in FORMATS}
    assert places["rows.jsonl"][2] == f"{tmp_path / 'rows.jsonl'}:3"
    assert places["rows.ndjson"][2] == f"{tmp_path / 'rows.ndjson'}:5"
    assert places["wide.jsonl"][4] == f"{tmp_path / 'wide.jsonl'}:5"
    assert places["rows.json"][:2] == [f"{tmp_path / 'rows.json'}:2", f"{tmp_path / 'rows.json'}:6"]
    assert places["rows.csv"][:2] == [f"{tmp_path / 'rows.csv'}:2", f"{tmp_path / 'rows.csv'}:4"]  # of two lines each
    assert places["rows.parquet"][3] == f"{tmp_path / 'rows.parquet'}, row 4"


def test_the_files_of_a_directory_are_one(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not data")
    for number in (2, 1):
        write(tmp_path / f"train-0000{number}-of-00002.jsonl", lines(ROWS[number : number + 1]))
    assert [row.columns for row in read_rows(tmp_path) if isinstance(row, Row)] == ROWS[1:3]
    write(tmp_path / "more.csv", separated(","))
    with pytest.raises(RecipeError, match=r"the directory holds files of .csv, .jsonl"):
        list(read_rows(tmp_path))


# What a line holds, and what is said of it.
BAD_LINES = [
    (b'{"question": "a"', "no JSON: Expecting ',' delimiter at character 17"),
    (b"[1, 2]", "a row is a JSON object, and this is a list"),
    (b'{"question": NaN}', "NaN is no number of JSON"),
    (b'{"question": "\\ud800"}', "half of a character"),
    (b'{"question": "\xff"}', "no UTF-8: invalid start byte at byte 15"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, why: str) -> None:
    file = write(tmp_path / "rows.jsonl", lines(ROWS[:2]) + line + b"\n" + lines(ROWS[2:3]))
    found = list(read_rows(file))
    assert [row.columns for row in found if isinstance(row, Row)] == ROWS[:3]
    (bad,) = [row for row in found if isinstance(row, BadRow)]
    assert bad.where == f"{file}:3"
    assert why in bad.what


def test_pairs_of_escapes_are_one_character(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "rows.jsonl", b'{"question": "\\ud83d\\ude00"}'))
    assert isinstance(row, Row)
    assert row.columns == {"question": "😀"}


def test_a_row_of_csv_has_as_many_fields_as_the_first_line(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", b"question,answer\na,1\nb\nc,3\n")
    _, bad, last = read_rows(file)
    assert isinstance(bad, BadRow)
    assert (bad.where, bad.what) == (f"{file}:3", "it has 1 fields, and the first line 2")
    assert isinstance(last, Row)


def test_a_first_column_of_csv_without_a_name_is_the_number_of_the_row(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "rows.csv", b",question,answer\n0,a,1\n"))
    assert isinstance(row, Row)
    assert row.columns == {"question": "a", "answer": "1"}


# A file, where it is at fault, and what is said of it.
DAMAGED: list[tuple[str, bytes, str, str]] = [
    ("rows.jsonl.gz", gzip.compress(lines(ROWS))[:-9], ":6", "damaged"),
    ("rows.jsonl.gz", lines(ROWS), ":1", "damaged"),
    ("rows.json", b'[{"a": 1},\n {"a" 2}]', ":2", "no JSON: Expecting ':' delimiter at character 7"),
    ("rows.json", b'[{"a": 1}\n {"a": 2}]', ":1", "a comma or the end of the list is missing"),
    ("rows.json", b'{"a": [1], "b": [2]}', "", "no one list of rows: it is an object with the lists a, b"),
    ("rows.csv", b"a,a\n1,2\n", ":1", "the columns have no names of their own"),
    ("rows.csv", b"a,,b\n1,2,3\n", ":1", "the columns have no names of their own"),
    ("rows.csv", b'a,b\n1,2\n"1,2\n', ":3", "the file is no CSV"),
    ("rows.parquet", b"PAR1 and nothing else", "", "the file is no Parquet"),
    ("rows.txt", b"a", "", "of no format that is read here"),
    ("rows.parquet.gz", b"a", "", "of no format that is read here"),
]


@pytest.mark.parametrize(("name", "content", "line", "message"), DAMAGED)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes, line: str, message: str
) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(RecipeError, match=message) as refused:
        list(read_rows(file))
    assert refused.value.where == f"{file}{line}"


def test_task_directories_are_rows(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "task.toml").write_text("[verifier]\ntimeout_sec = 60.0\n")
        (tmp_path / name / "instruction.md").write_text(f"Write {name}.")
        (tmp_path / name / "tests" / "test.sh").write_text("echo 1.0 > /logs/verifier/reward.txt\n")
    first, _ = read_rows(tmp_path)
    assert isinstance(first, Row)
    assert (first.place, first.columns["instruction"]) == (str(tmp_path / "a"), "Write a.")
    assert first.columns["task"] == {"verifier": {"timeout_sec": 60.0}}
    assert list(first.columns["tests"]) == ["test.sh"]
    problems = Rows(test=tmp_path).problems()["test"]
    assert [problem.messages[0].content for problem in problems] == ["Write a.", "Write b."]
    assert problems[0].meta.keys() == {"task", "tests", "environment"}
    assert list(read_rows(tmp_path / "a")) == [first]
    (tmp_path / "b" / "instruction.md").unlink()
    _, bad = read_rows(tmp_path)
    assert isinstance(bad, BadRow)
    assert (bad.where, bad.what[:28]) == (str(tmp_path / "b"), "instruction.md can't be read")


def test_values_of_tables_become_those_of_json(tmp_path: Path) -> None:
    held = {"day": date(2026, 11, 28), "cost": Decimal("1.50"), "gone": float("nan"), "parts": [{"n": 1, "m": None}]}
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"a": 1, **held}, {"a": 2, **held}]), file)
    first, _ = read_rows(file)
    assert isinstance(first, Row)
    assert first.columns == {"a": 1, "day": "2026-11-28", "cost": "1.50", "gone": None, "parts": [{"n": 1, "m": None}]}
    pq.write_table(pa.Table.from_pylist([{"a": "x", "picture": {"bytes": b"\x00"}}]), file)
    (bad,) = read_rows(file)
    assert isinstance(bad, BadRow)
    assert (bad.where, bad.what[:21]) == (f"{file}, row 1, column 'picture.bytes'", "it is of type bytes, ")
