"""The views of a run: plain files that are copied and computed from the home, and can be written again at any time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from reasonmill.store.commit import disk_errors, file_digest, holds

RUNS = "runs"


def view_digests(directory: Path, views: Collection[str]) -> dict[str, str]:
    """The digest of each file of a run's views, by its path below the run's directory.

    Args:
        views: the names of the files and directories that count; a user may have put others there.
    """
    with disk_errors(directory):
        names = [name for name in view_names(directory) if name.split("/")[0] in views]
        return {name: file_digest(directory / name) for name in names}


def view_names(directory: Path) -> list[str]:
    """The paths of the files of a run's directory below it.

    What begins with a dot is on its way to be a view, or was left when that was cut off.
    """
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.startswith("."))


def damaged_views(directory: Path, recorded: Mapping[str, str]) -> list[str]:
    """The recorded files of a run's directory that are missing or hold something else."""
    with disk_errors(directory):
        return [name for name, digest in recorded.items() if not holds(directory / name, digest)]
