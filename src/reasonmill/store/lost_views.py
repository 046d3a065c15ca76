"""Lost views: reported, put aside where they can't be written over, and forgotten, so that they are rebuilt."""

from __future__ import annotations

from pathlib import Path

from reasonmill.store.commit import disk_errors
from reasonmill.store.incidents import Incident, Incidents
from reasonmill.store.ledger import Ledger
from reasonmill.store.looking import exists, is_directory, is_file
from reasonmill.store.objects import QUARANTINE, put_aside, quarantined
from reasonmill.store.views import FILES, RUNS, VIEWS, damaged_views


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
