"""The views of a run: plain files that are copied and computed from the home, and can be written again at any time.

Lost ones are reported, put aside where they can't be written over, and forgotten, so that they are written again.
"""

from collections.abc import Mapping
from pathlib import Path

from reasonmill.content import file_digest
from reasonmill.store.commit import disk_errors, has_size, holds
from reasonmill.store.incidents import Incident, Incidents
from reasonmill.store.ledger import Ledger
from reasonmill.store.looking import exists, files_below, is_directory, is_file, size
from reasonmill.store.objects import QUARANTINE, put_aside, quarantined

RUNS = "runs"
MODEL, RECIPE, PAGE, SUMMARY = "model", "recipe.json", "report.html", "summary.json"
FILES = frozenset({RECIPE, PAGE, SUMMARY})
VIEWS = FILES | {MODEL}
# What `replace_file` and `replace_directory` call a view that is being written, or the old one that it replaces.
_HALF_WRITTEN = frozenset(f".{view}.{step}" for view in VIEWS for step in ("tmp", "new", "old"))


def view_digests(directory: Path) -> dict[str, str]:
    """The digest of each file of a run's views, by its path below the run's directory."""
    with disk_errors(directory):
        names = [name for name in file_names(directory) if name.split("/")[0] in VIEWS]
        return {name: file_digest(directory / name) for name in names}


def file_names(directory: Path) -> list[str]:
    """The paths of the files of a run's directory below it, those of the user too, but not those of half-written
    views."""
    found = files_below(directory) if is_directory(directory) else ()
    names = [name for name in found if is_file(directory / name)]
    return sorted(name for name in names if name.split("/")[0] not in _HALF_WRITTEN)


def half_written_views(directory: Path) -> list[Path]:
    """What was left in a run's directory when the writing of a view was cut off."""
    return sorted(path for name in _HALF_WRITTEN if exists(path := directory / name))


def own_entries(directory: Path) -> list[Path]:
    """The views in a run's directory, also half-written ones: all that is not of the user. A link is the user's."""
    if directory.is_symlink():
        return []
    return sorted(path for name in VIEWS | _HALF_WRITTEN if exists(path := directory / name))


def damaged_views(directory: Path, recorded: Mapping[str, str], *, model: Path | None = None) -> list[str]:
    """The recorded files of a run's directory that are missing or hold something else.

    Args:
        model: what the run's model is a copy of. Then a file of the copy is not read, but has to have the same size.
    """

    def is_whole(name: str) -> bool:
        below = name.removeprefix(f"{MODEL}/")
        if model is not None and below != name and is_file(model / below):
            return has_size(directory / name, size(model / below))
        return holds(directory / name, recorded[name])

    with disk_errors(directory):
        return [name for name in recorded if not is_whole(name)]


def in_the_way(directory: Path) -> list[Path]:
    """What no view can be written over: a file in the place of a directory, or directories in those of files."""
    with disk_errors(directory):
        if not is_directory(directory):
            return [directory] if exists(directory) else []
        places = {directory / name: is_directory if name in FILES else is_file for name in VIEWS}
        return [place for place, is_other in places.items() if is_other(place)]


def forget_lost_views(home: Path, run: str, ledger: Ledger, incidents: Incidents, what: str) -> None:
    """Has a run write its views again, if one of them is not what was recorded.

    Args:
        what: what is wrong with such a view, to follow its name.
    """
    directory, recorded = home / RUNS / run, ledger.views(run)
    obstacles = in_the_way(directory)
    lost = dict.fromkeys(obstacles, "")
    if directory not in obstacles:
        lost.update({directory / name: recorded[name] for name in damaged_views(directory, recorded)})
    for path, digest in lost.items():
        kept = quarantined(home, path.name)
        reported = f"{what}, and is now in {QUARANTINE}/{kept.name}" if path in obstacles else what
        file = path.relative_to(home).as_posix()
        incidents.add(Incident(file, digest, reported, "it is written again"))
        if path in obstacles:
            with disk_errors(path):
                put_aside(path, kept)
    if lost:
        ledger.record_views(run, {})
