"""Logs of other programs: per-sample logs of lm-evaluation-harness, and logs of inspect_ai.

lm-evaluation-harness (with `--log_samples`) writes `samples_TASK_DATE.jsonl` into a directory for each model: a row for
each document and filter, whose metrics are keys of the row. inspect_ai writes a log as one JSON file, or as a ZIP file
(`.eval`) with a JSON file for each sample and epoch, compressed by zstd.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from reasonmill.errors import RecipeError

_SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:+-]+)\.jsonl")
# How inspect_ai writes scores that are no numbers.
_SCORES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_ENDINGS = (".jsonl", ".json", ".eval")
_ZSTD = 93
# The head of a file in a ZIP file: its signature, and where the lengths of its name and its extra field stand.
_LOCAL = struct.Struct("<4s22xHH")
# What a member may be unpacked to.
_MOST_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class Answered:
    """What was answered to a problem.

    Attributes:
        prompt: what was asked, to be shown.
        values: from 0 to 1 of each graded answer; `ungraded` counts the others.
    """

    cluster: Hashable
    prompt: str
    values: tuple[float, ...]
    ungraded: int = 0

    def __add__(self, other: Answered) -> Answered:
        """More answers to the same problem."""
        return Answered(self.cluster, self.prompt, self.values + other.values, self.ungraded + other.ungraded)


Tasks = dict[str, dict[str, Answered]]


def is_foreign(path: Path) -> bool:
    """Whether a path is a log of another program, or a directory with such."""
    return (path.is_file() and path.suffix in _ENDINGS) or (path.is_dir() and bool(_latest(path)))


def read_foreign(path: Path, metric: str | None) -> Tasks:
    """What a log says, by task and problem.

    Args:
        path: a `.jsonl` file of samples or a directory of them; a `.json` or `.eval` file.
        metric: name of the metric or scorer that counts; the first if None.

    Raises:
        RecipeError: it is no such log, or has no such metric.
    """
    try:
        if path.is_dir():
            found: Tasks = {}
            for file in _latest(path):
                found |= _harness(file, metric)
            return found
        return _harness(path, metric) if path.suffix == ".jsonl" else _inspect(path, metric)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        pa.ArrowException,
    ) as error:
        raise RecipeError(
            f"this is no log that can be read: {type(error).__name__}: {error}",
            where=str(path),
            fix="give samples_*.jsonl of lm-evaluation-harness (--log_samples), or .json or .eval of inspect_ai",
        ) from error


def _latest(directory: Path) -> list[Path]:
    """Of each task, the samples that were written last."""
    found: dict[str, tuple[str, Path]] = {}
    for file in directory.glob("samples_*.jsonl"):
        named = _SAMPLES.fullmatch(file.name)
        if named is not None:
            found[named["task"]] = max(found.get(named["task"], ("", file)), (named["date"], file))
    return [file for _, (_, file) in sorted(found.items())]


# lm-evaluation-harness


def _harness(path: Path, metric: str | None) -> Tasks:
    named = _SAMPLES.fullmatch(path.name)
    task = named["task"] if named else path.stem
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    filters = list(dict.fromkeys(str(row.get("filter", "none")) for row in rows))
    found: Tasks = {}
    for row in rows:
        known = row.get("metrics") or [name for name in ("exact_match", "acc", "pass@1") if name in row]
        chosen = _named(metric, known, path)
        name = f"{task} ({row['filter']})" if len(filters) > 1 else task
        problem = str(row.get("doc_hash", row["doc_id"]))
        answered = _scored((task, problem), _shown(row["doc"]), row[chosen])
        problems = found.setdefault(name, {})
        problems[problem] = problems[problem] + answered if problem in problems else answered
    return found


def _shown(document: Any) -> str:
    """What a document asks, as far as that can be told from the names of its fields."""
    names = ("question", "problem", "prompt", "query", "input", "text")
    fields = document if isinstance(document, Mapping) else {}
    return str(next((fields[name] for name in names if fields.get(name)), json.dumps(document, ensure_ascii=False)))


# inspect_ai


def _inspect(path: Path, metric: str | None) -> Tasks:
    if path.suffix == ".eval":
        members = dict(_members(path))
        header = json.loads(members.get("header.json") or members["_journal/start.json"])
        samples: Iterable[Any] = (json.loads(data) for name, data in members.items() if name.startswith("samples/"))
    else:
        header = json.loads(path.read_text(encoding="utf-8"))
        samples = header["samples"]
    task = str(header["eval"]["task"])
    problems: dict[str, Answered] = {}
    for sample in samples:
        problem = str(sample["id"])
        scores = sample.get("scores") or {}
        value = scores[_named(metric, list(scores), path)]["value"] if scores else None
        answered = _scored((task, problem), _asked(sample["input"]), value)
        problems[problem] = problems[problem] + answered if problem in problems else answered
    return {task: problems}


def _asked(given: Any) -> str:
    if isinstance(given, str):
        return given
    content = given[-1]["content"]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a ZIP file; of several with one name, the last."""
    with zipfile.ZipFile(path) as packed, path.open("rb") as raw:
        for info in {info.filename: info for info in packed.infolist()}.values():
            if info.compress_type != _ZSTD:
                yield info.filename, packed.read(info)
                continue
            raw.seek(info.header_offset)
            signature, name, extra = _LOCAL.unpack(raw.read(_LOCAL.size))
            if signature != b"PK\x03\x04" or info.file_size > _MOST_BYTES:
                raise ValueError(f"the member {info.filename!r} can't be read")
            raw.seek(name + extra, 1)
            stream = pa.CompressedInputStream(pa.BufferReader(raw.read(info.compress_size)), "zstd")
            content = stream.read(info.file_size)
            if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
                raise ValueError(f"the member {info.filename!r} is damaged")
            yield info.filename, content


# Both


def _named(metric: str | None, known: list[str], path: Path) -> str:
    """The metric that counts.

    Raises:
        RecipeError: there is none of this name.
    """
    if metric is None and known:
        return known[0]
    if metric in known:
        return str(metric)
    raise RecipeError(
        f"the log has no metric {metric!r}", where=str(path), fix=f"--metric is one of: {', '.join(known) or 'none'}"
    )


def _scored(cluster: Hashable, prompt: str, value: Any) -> Answered:
    """An answer with this score; what is no number was not graded."""
    score = _number(value) if isinstance(value, str) else value
    if isinstance(score, bool | int | float) and math.isfinite(score):
        if not 0 <= score <= 1:
            raise RecipeError(
                f"a score of {score}: what is compared must lie between 0 and 1", fix="name another --metric"
            )
        return Answered(cluster, prompt, (float(score),))
    return Answered(cluster, prompt, (), 1)


def _number(text: str) -> float | None:
    """What inspect_ai takes a text for that is a score; None for what it can't."""
    try:
        return (
            _SCORES.get(text, _SCORES.get(text.lower())) if text.lower() in {*map(str.lower, _SCORES)} else float(text)
        )
    except ValueError:
        return None
