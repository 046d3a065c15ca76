"""Garbage: objects that nothing refers to, such as those of a run that was killed before its ledger knew them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reasonmill.store import disk
from reasonmill.store.commit import disk_errors
from reasonmill.store.home import OBJECTS, Home, WriterLock
from reasonmill.store.ledger_backup import LEDGER
from reasonmill.store.objects import QUARANTINE, TMP
from reasonmill.store.views import RUNS


@dataclass(frozen=True)
class Garbage:
    """What is, or was, garbage.

    Args:
        objects: digests of objects that nothing refers to.
        states: (stage key, step, digest) of states of finished stages, which only an unfinished one needs.
        leftovers: paths of what runs that were cut off left in their work directories.
        num_bytes: the size of all this.
        num_bytes_quarantined: the size of what was put aside because it was damaged, which is never removed.
    """

    objects: tuple[str, ...]
    states: tuple[tuple[str, int, str], ...]
    leftovers: tuple[Path, ...]
    num_bytes: int
    num_bytes_quarantined: int


def look_for_garbage(path: Path) -> Garbage:
    """What `collect_garbage` would remove, by now; removes nothing.

    Raises:
        StoreError: a run writes to the home, or there is none.
    """
    with Home.open(path, write=False) as home:
        lock = WriterLock(home.path)
        try:
            return _garbage(home)
        finally:
            lock.release()


def collect_garbage(path: Path) -> Garbage:
    """Removes objects and leftovers that nothing refers to, and returns what they were.

    What the ledger refers to stays: artifacts, whether a stage still has them or not, and with them all that they were
    made from; the groups of all steps, those of finished stages too, because the report shows them and a damaged
    artifact is made again from them; the states of unfinished stages. A crash leaves each object whole or gone.

    Raises:
        StoreError: a run writes to the home, or there is none.
    """
    garbage = look_for_garbage(path)  # before opening for writing clears the work directory
    with Home.open(path) as home:
        for key, step, _ in _idle_states(home):
            home.ledger.forget_state(key, step)
        for digest in _unreferenced(home):
            home.objects.delete(digest)
        with disk_errors(home.path):
            for leftover in _cut_off_views(home):
                if leftover.is_dir():
                    disk.remove_tree(leftover, "leftover view")
                else:
                    disk.unlink(leftover, "leftover view")
    return garbage


def _garbage(home: Home) -> Garbage:
    objects, states = tuple(_unreferenced(home)), tuple(_idle_states(home))
    leftovers = (*sorted((home.path / TMP).iterdir()), *_cut_off_views(home))
    doomed = {home.path / OBJECTS / digest for digest in objects}
    return Garbage(objects, states, leftovers, sum(map(_size, (*doomed, *leftovers))), _size(home.path / QUARANTINE))


def _unreferenced(home: Home) -> list[str]:
    """Digests of the objects that the ledger does not refer to, or only as states of finished stages.

    What is older than a backup's taking the place of a damaged ledger stays: the records that were lost may be of it.
    """
    needed = {artifact.digest for artifact in home.ledger.artifacts()}
    idle = set(_idle_states(home))
    for key in home.ledger.begun_stages():
        needed |= {digest for _, digest in home.ledger.steps(key) if digest is not None}
        needed |= {digest for step, digest in home.ledger.states(key) if (key, step, digest) not in idle}
    fell_back_s = max((incident.at_s for incident in home.ledger.incidents() if incident.file == LEDGER), default=0.0)
    free = [digest for digest in home.objects.digests() if digest not in needed]
    return [digest for digest in free if (home.path / OBJECTS / digest).stat().st_mtime > fell_back_s]


def _idle_states(home: Home) -> list[tuple[str, int, str]]:
    """(stage key, step, digest) of the states of finished stages."""
    finished = [key for key in home.ledger.begun_stages() if home.ledger.stage(key) is not None]
    return [(key, step, digest) for key in finished for step, digest in home.ledger.states(key)]


def _cut_off_views(home: Home) -> list[Path]:
    """What the writing of views left in the directories of runs: names that begin with a dot."""
    return sorted(path for run in (home.path / RUNS).iterdir() if run.is_dir() for path in run.glob(".*"))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files if not file.is_dir())
