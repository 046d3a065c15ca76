"""Rows of files, each with its place: JSONL, JSON, CSV and TSV (also with .gz), and Parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from reasonmill.data.harbor import read_tasks, task_directories
from reasonmill.data.values import BadRow, Row, json_value
from reasonmill.errors import RecipeError

_BATCH = 1024  # rows of Parquet that are in memory at once
_PACKED = ".gz"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a file, of all files of a directory in the order of their names, or of task directories; those that
    can't be read, too.

    Raises:
        RecipeError: the file is of no known format, or can't be read as what its name says.
    """
    tasks = task_directories(path) if path.is_dir() else []
    if tasks:
        yield from read_tasks(tasks)
        return
    for file in _shards(path) if path.is_dir() else [path]:
        yield from _reader(file)(file)


def format_of(path: Path) -> str:
    """The ending that says how a file is read; empty where none of them fits."""
    name = path.name.lower()
    packed = name.endswith(_PACKED)
    ending = Path(name.removesuffix(_PACKED)).suffix
    return ending if ending in _READERS and not (packed and ending == ".parquet") else ""


def _shards(directory: Path) -> list[Path]:
    """The files of a directory that together are one file."""
    files = [file for file in sorted(directory.iterdir()) if file.is_file() and format_of(file)]
    endings = {format_of(file) for file in files}
    if len(endings) != 1:
        found = f"files of {', '.join(sorted(endings))}" if endings else "no file that can be read"
        raise RecipeError(
            f"the directory holds {found}", where=str(directory), fix=f"name a file, or a directory of one of {_KNOWN}"
        )
    return files


def _reader(path: Path) -> Callable[[Path], Iterator[Row | BadRow]]:
    if not path.is_file():
        raise RecipeError(
            f"missing file: {path.name!r}", where=str(path), fix="correct the path, or give another one with --set"
        )
    ending = format_of(path)
    if not ending:
        raise RecipeError(
            f"{path.name!r} is of no format that is read here", where=str(path), fix=f"give it as {_KNOWN}"
        )
    return _READERS[ending]


# Text


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.name.lower().endswith(_PACKED) else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """The lines of a text by their numbers, from 1 on; one that is no UTF-8 is a bad one. UTF-16 needs its mark."""
    number = 0
    try:
        with _open(path) as file:
            if file.peek(2)[:2] in _UTF16:
                yield from enumerate(file.read().decode("utf-16").split("\n"), 1)
                return
            for number, line in enumerate(file, 1):
                try:
                    yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
                except UnicodeDecodeError as error:
                    yield number, BadRow(f"it is no UTF-8: {error.reason} at byte {error.start + 1}")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the file is damaged: {error}", where=f"{path}:{number + 1}", fix="download or write it again"
        ) from error


def _text(path: Path) -> str:
    """The file as a whole."""
    parts = []
    for number, line in _lines(path):
        if isinstance(line, BadRow):
            raise RecipeError(f"the file can't be read: {line.what}", where=f"{path}:{number}", fix="save it as UTF-8")
        parts.append(line)
    return "\n".join(part.removesuffix("\n") for part in parts)


# JSON


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _row(value: Any, place: str, source: str) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(f"a row is a JSON object, and this is {_kind(value)}", place=place)
    if "\\ud" in source or "\\uD" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return BadRow("it has half of a character: a surrogate without its other half", place=place)
    return Row(place, value)


def _kind(value: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _of_json(error: Exception) -> str:
    """What is wrong, with the place in the line where that is known."""
    return f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _json_lines(path: Path) -> Iterator[Row | BadRow]:
    for number, line in _lines(path):
        place = f"{path}:{number}"
        if isinstance(line, BadRow):
            yield BadRow(line.what, place=place)
        elif line.strip():
            yield _json_line(line, place)


def _json_line(line: str, place: str) -> Row | BadRow:
    try:
        return _row(_DECODER.decode(line.rstrip()), place, line)
    except (ValueError, RecursionError) as error:
        return BadRow(f"it is no JSON: {_of_json(error)}", place=place)


def _json(path: Path) -> Iterator[Row | BadRow]:
    """A list of objects, an object with one list of them, or JSON lines under another name."""
    text = _text(path)
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "[":
        yield from _json_list(path, text, start + 1)
        return
    first, _, rest = text[start:].partition("\n")
    if rest.strip() and isinstance(_json_line(first, ""), Row):
        yield from _json_lines(path)
        return
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"the file is no JSON: {error}", where=str(path), fix="correct it") from error
    lists = [key for key, each in value.items() if isinstance(each, list)] if isinstance(value, dict) else []
    if len(lists) != 1:
        raise RecipeError(
            f"the file holds no one list of rows: it is {_kind(value)}"
            + (f" with the lists {', '.join(lists)}" if lists else ""),
            where=str(path),
            fix="write a list of objects, or one object a line",
        )
    for number, each in enumerate(value[lists[0]], 1):
        yield _row(each, f"{path}, row {number} of {lists[0]!r}", text)


def _json_list(path: Path, text: str, position: int) -> Iterator[Row | BadRow]:
    """The entries of a list, each with the line that it begins in."""
    line, counted = 1, 0
    while True:
        position = _skip(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and not text[position + 1 :].strip():
            return
        try:
            value, position = _DECODER.raw_decode(text, position)
            position = _skip(text, position)
            if text[position : position + 1] == ",":
                position += 1
            elif text[position : position + 1] != "]":
                raise ValueError("a comma or the end of the list is missing after it")
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise RecipeError(
                f"the file is no JSON: {_of_json(error)}", where=f"{path}:{at}", fix="correct it"
            ) from error
        yield _row(value, f"{path}:{line}", text)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


# CSV


def _separated(path: Path) -> Iterator[Row | BadRow]:
    delimiter = "\t" if format_of(path) == ".tsv" else ","
    csv.field_size_limit(2**31 - 1)
    # A lone carriage return ends no line here; a field in quotation marks may hold ends of lines.
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(reader, [])
        first = int(len(header) > 1 and not header[0])  # pandas writes a row's number first, under no name
        header = header[first:]
        if len(set(header)) < len(header) or not all(header):
            raise RecipeError(
                "the columns have no names of their own",
                where=f"{path}:1",
                fix="name each column once in the first line",
            )
        line = reader.line_num + 1
        for fields in reader:
            place = f"{path}:{line}"
            if len(fields) == first + len(header):
                yield Row(place, dict(zip(header, fields[first:], strict=True)))
            elif fields:
                told = f"it has {len(fields)} fields, and the first line {first + len(header)}"
                yield BadRow(told, place=place)
            line = reader.line_num + 1
    except csv.Error as error:
        raise RecipeError(f"the file is no {format_of(path)[1:].upper()}: {error}", where=f"{path}:{line}") from error


# Parquet


def _parquet(path: Path) -> Iterator[Row | BadRow]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for columns in batch.to_pylist():
                    number += 1
                    place = f"{path}, row {number}"
                    try:
                        yield Row(place, {name: json_value(value, name) for name, value in columns.items()})
                    except BadRow as bad:
                        yield BadRow(bad.what, bad.column, place)
    except (pa.ArrowException, OSError) as error:
        raise RecipeError(f"the file is no Parquet: {error}", where=str(path), fix="write it again") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
_KNOWN = ".jsonl, .json, .csv, .tsv (also with .gz) or .parquet"
