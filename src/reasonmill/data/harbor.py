"""Task directories of Harbor: `task.toml`, `instruction.md`, `tests/` and `environment/` are one row each."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from reasonmill.data.values import BadRow, Row, json_value

_TASK, _INSTRUCTION = "task.toml", "instruction.md"
_FOLDERS = ("tests", "environment")


def task_directories(path: Path) -> list[Path]:
    """The task directories that a directory is, or has in it; none where it is something else."""
    return [each for each in (path, *sorted(path.iterdir())) if (each / _TASK).is_file()]


def read_tasks(directories: Sequence[Path]) -> Iterator[Row | BadRow]:
    """A row for each: the instruction, what task.toml says, and the texts of its tests and its environment."""
    for directory in directories:
        file = directory / _INSTRUCTION
        try:
            instruction = file.read_text(encoding="utf-8")
            file = directory / _TASK
            task = json_value(tomllib.loads(file.read_text(encoding="utf-8")), "task")
            folders: dict[str, dict[str, str]] = {name: {} for name in _FOLDERS}
            for name in _FOLDERS:
                for file in sorted(each for each in (directory / name).rglob("*") if each.is_file()):
                    folders[name][file.relative_to(directory / name).as_posix()] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            yield BadRow(f"{file.name} can't be read: {error}", place=str(directory))
            continue
        yield Row(str(directory), {"instruction": instruction, "task": task, **folders})
