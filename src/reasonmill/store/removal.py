"""Runs are forgotten, and what no other run refers to is removed."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from reasonmill.errors import OutOfSpace
from reasonmill.store import disk
from reasonmill.store.commit import disk_errors, replace_directory
from reasonmill.store.garbage import (
    Garbage,
    free_objects,
    garbage_of,
    locked,
    object_sizes,
    remove_unrecorded,
    sound_ledger,
)
from reasonmill.store.holdings import NOTHING, Holdings, Removal
from reasonmill.store.home import Home, WriterLock, entries
from reasonmill.store.ledger_runs import unknown_run
from reasonmill.store.looking import is_directory, size_below
from reasonmill.store.views import MODEL, RUNS, own_entries


@dataclass(frozen=True)
class Staying:
    """What stays of a run that is forgotten.

    Args:
        what: a stage's name, or what else it is.
        readers: names of the runs that refer to it; none where it is not known that a run does.
    """

    run: str
    what: str
    num_bytes: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class RemovedRuns:
    """What is, or was, removed with runs.

    Args:
        runs: their names.
        stages: how many stages, finished or not, are forgotten with them.
        num_bytes: the size of the objects and views that only these have.
        num_bytes_garbage: the size of what nothing referred to before, which goes first.
        staying: what stays of these runs, the largest first.
        foreign: paths of the user's own files in the directories of these runs; they stay, too.
    """

    runs: tuple[str, ...]
    stages: int
    num_bytes: int
    num_bytes_garbage: int
    staying: tuple[Staying, ...]
    foreign: tuple[Path, ...]


def look_for_runs(path: Path, names: Sequence[str]) -> RemovedRuns:
    """What `remove_runs` would do, by now; removes nothing.

    Raises:
        StoreError: there is no such run; a run writes to the home, there is none, or its ledger is damaged.
    """
    with locked(path) as lock:
        return _look(lock, names)[0]


def remove_runs(path: Path, names: Sequence[str]) -> RemovedRuns:
    """Forgets runs with their views, and removes all that is referred to by them alone; returns what that was.

    What nothing refers to even now goes first, as it needs no record. Then the ledger forgets the runs in one
    transaction; then the objects go, each in one rename, and in the end the views. Cut off before the transaction, the
    runs are whole, and after it they are gone; the same call does the rest, as does `collect_garbage`, but for views.

    Raises:
        OutOfSpace: there is no room to record that the runs are gone: those that `status` shows are whole.
        StoreError: as for `look_for_runs`.
    """
    with locked(path) as lock:
        found, removal, garbage = _look(lock, names)
        remove_unrecorded(lock, garbage)
        try:
            with disk_errors(lock.home), Home.open(lock.home, lock=lock) as home:
                # The directory goes last: as long as it is there, the same call knows what is left to do.
                directories = [home.run_dir(name) for name in found.runs]
                home.ledger.forget_runs(removal.runs, removal.keys, removal.makings, removal.heirs)
                for key, step, _ in garbage.states:
                    home.ledger.forget_state(key, step)
                for digest in free_objects(lock.home, home.ledger, Holdings(home.ledger, ()).needed_without(NOTHING)):
                    home.objects.delete(digest)
                for directory in directories:
                    _remove_views(directory)
        except OutOfSpace as error:
            raise OutOfSpace(
                "no space is left on the disk to record which runs are gone; what nothing refers to was removed",
                fix="free a few megabytes elsewhere on that disk, then run the same command again",
                where=error.where,
            ) from error
    return found


def _look(lock: WriterLock, names: Sequence[str]) -> tuple[RemovedRuns, Removal, Garbage]:
    """What is to be removed, for the user and for the ledger, and what nothing refers to as it is."""
    with closing(sound_ledger(lock.home)) as ledger:
        sizes = object_sizes(lock.home)
        holdings = Holdings(ledger, sizes)
        runs = tuple(dict.fromkeys(names))
        _require_known(runs, holdings, lock.home)
        removal = holdings.removal([name for name in runs if name in holdings.runs])
        needed = holdings.needed_without(removal)
        garbage = garbage_of(lock.home, ledger)
        free = holdings.needed_without(NOTHING).intersection(free_objects(lock.home, ledger, needed))
        going = free.difference(garbage.objects)
    directories = [lock.home / RUNS / name for name in runs]
    views = [path for directory in directories for path in own_entries(directory)]
    found = RemovedRuns(
        runs=runs,
        stages=len({key.split("/")[0] for key in removal.keys}),
        num_bytes=sum(sizes[digest] for digest in going) + sum(map(size_below, views)),
        num_bytes_garbage=garbage.num_bytes,
        staying=tuple(sorted(_staying(removal, holdings, sizes, going), key=lambda it: (-it.num_bytes, it.what))),
        foreign=tuple(path for directory in directories for path in entries(directory) if path not in views),
    )
    return found, removal, garbage


def _require_known(names: Sequence[str], holdings: Holdings, home: Path) -> None:
    """Checks that the ledger knows these runs, or that they have the views of one that it forgot."""
    directories = [path for path in entries(home / RUNS) if is_directory(path)]
    half_gone = {path.name for path in directories if own_entries(path) or not entries(path)}
    known = holdings.runs.keys() | half_gone
    for name in names:
        if name not in known:
            raise unknown_run(name, known, home)


def _staying(
    removal: Removal, holdings: Holdings, sizes: Mapping[str, int], going: AbstractSet[str]
) -> Iterator[Staying]:
    """What these runs have that does not go, each object once."""
    others = {name: holdings.reached(name) for name in holdings.runs if name not in removal.runs}
    told = set(going)
    for run in (holdings.runs[name] for name in removal.runs):
        parts = [(stage.name, holdings.of_stage(stage.key)) for stage in (*run.stages, *run.earlier)]
        for what, digests in [*parts, ("what its stages were made from", holdings.reached(run.name))]:
            staying = (digests & sizes.keys()) - told
            told |= staying
            if staying:
                readers = tuple(name for name, reached in others.items() if reached & staying)
                yield Staying(run.name, what, sum(sizes[digest] for digest in staying), readers)


def _remove_views(directory: Path) -> None:
    """Removes the views of a run, and the directory if the user has nothing else in it."""
    if own_entries(directory):
        replace_directory(directory / MODEL, None)  # out of sight in one rename
    for path in own_entries(directory):
        disk.unlink(path, "removed run")
    if not entries(directory):
        disk.remove_tree(directory, "removed run")
