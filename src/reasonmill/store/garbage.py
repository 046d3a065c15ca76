"""Garbage: objects that nothing refers to, such as those of a run that was killed before its ledger knew them."""

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk
from reasonmill.store.commit import disk_errors
from reasonmill.store.home import OBJECTS, Home, WriterLock, entries, require_home
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_backup import LEDGER, NO_BACKUP, look_at_ledger, open_for_reading
from reasonmill.store.looking import changed_ns, is_directory, size_below
from reasonmill.store.objects import QUARANTINE, TMP, ObjectStore
from reasonmill.store.views import RUNS, half_written_views

State = tuple[str, int, str]  # (stage key, step, digest)


@dataclass(frozen=True)
class Garbage:
    """What is, or was, garbage.

    Args:
        objects: digests of objects that nothing refers to, or only as one of `states`.
        states: those of finished stages, which only an unfinished one needs; and, if these are to go, the last ones of
            finished stages and those of abandoned ones.
        leftovers: paths of what runs that were cut off left in their work directories.
        num_bytes: the size of all this.
        num_bytes_abandoned: the size of the states that stay and that no run would resume from: their stages are
            unfinished, and no run has them any more.
        num_bytes_last: the size of the states that stay because finished stages could resume from them if their `steps`
            were raised.
        num_bytes_quarantined: the size of what was put aside because it was damaged, which is never removed.
        num_bytes_kept: the size of all other objects.
    """

    objects: tuple[str, ...]
    states: tuple[State, ...]
    leftovers: tuple[Path, ...]
    num_bytes: int
    num_bytes_abandoned: int
    num_bytes_last: int
    num_bytes_quarantined: int
    num_bytes_kept: int

    def staying(self) -> dict[str, int]:
        """The sizes of what stays, by what it is and what removes it."""
        sizes = {
            "states of unfinished stages that no run has any more, as their settings or their code were changed; "
            "gc --abandoned removes them": self.num_bytes_abandoned,
            "the last states of finished stages, from which they resume when their steps are raised; "
            "gc --last-states removes them": self.num_bytes_last,
            "what runs have, and what it was made from; rm RUN removes what no other run has": self.num_bytes_kept,
            "in quarantine/, which only you remove": self.num_bytes_quarantined,
        }
        return {what: num_bytes for what, num_bytes in sizes.items() if num_bytes}


def look_for_garbage(path: Path, *, abandoned: bool = False, last_states: bool = False) -> Garbage:
    """What `collect_garbage` would remove, by now; removes nothing.

    Raises:
        StoreError: a run writes to the home, there is none, or its ledger is damaged.
    """
    with locked(path) as lock, closing(sound_ledger(lock.home)) as ledger:
        return garbage_of(lock.home, ledger, abandoned=abandoned, last_states=last_states)


def collect_garbage(path: Path, *, abandoned: bool = False, last_states: bool = False) -> Garbage:
    """Removes objects and leftovers that nothing refers to, and returns what they were.

    What the ledger refers to stays: artifacts, whether a stage still has them or not, and with them all that they were
    made from; the groups of all steps, those of finished stages too, because the report shows them and a damaged
    artifact is rebuilt from them; the states of unfinished stages, and the last ones of finished stages. A crash leaves
    each object whole or gone.

    What needs no record goes first, and without writing anything: that works on a full disk, too.

    Args:
        abandoned: the states of stages that no run has any more, as their settings, their code or what they read was
            changed, go, too. A run that goes back to these then trains again, on the groups that are committed.
        last_states: the last states of finished stages go, too. If their `steps` are raised, they start from the first.

    Raises:
        OutOfSpace: there is no room to record that states are gone; all else is removed.
        StoreError: a run writes to the home, there is none, or its ledger is damaged.
    """
    with locked(path) as lock:
        with closing(sound_ledger(lock.home)) as ledger:
            garbage = garbage_of(lock.home, ledger, abandoned=abandoned, last_states=last_states)
        remove_unrecorded(lock, garbage)
        if garbage.states:
            _remove_states(lock, garbage)
    return garbage


def remove_unrecorded(lock: WriterLock, garbage: Garbage) -> None:
    """Removes what the ledger knows nothing of, which works on a full disk, too."""
    for leftover in garbage.leftovers:
        disk.remove_tree(leftover, "leftover")
    if not is_directory(lock.home / TMP):  # where objects are moved to
        disk.make_directory(lock.home / TMP, TMP)
    objects = ObjectStore(lock.home / OBJECTS, write=True)
    recorded = {digest for _, _, digest in garbage.states}
    for digest in garbage.objects:
        if digest not in recorded:
            objects.delete(digest)


def _remove_states(lock: WriterLock, garbage: Garbage) -> None:
    """Removes the states that are garbage: first the ledger forgets them."""
    try:
        with Home.open(lock.home, lock=lock) as home:
            for key, step, _ in garbage.states:
                home.ledger.forget_state(key, step)
            for digest in garbage.objects:
                if home.objects.exists(digest):
                    home.objects.delete(digest)
    except OutOfSpace as error:
        raise OutOfSpace(
            "no space is left on the disk to record which states are gone, so these stay; all else that nothing refers "
            "to was removed",
            fix="free a few megabytes elsewhere on that disk, then run gc again for these states; quarantine/ takes "
            f"{garbage.num_bytes_quarantined:,} bytes of it",
            where=error.where,
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[WriterLock]:
    """The right to write to a home that is there; what the disk does wrong meanwhile is an error of the store."""
    path = path.absolute()
    require_home(path)
    with disk_errors(path), closing(WriterLock(path)) as lock:
        yield lock


def garbage_of(home: Path, ledger: Ledger, *, abandoned: bool = False, last_states: bool = False) -> Garbage:
    """What `collect_garbage` would remove. Beside a run that writes, what it is just writing counts as garbage."""
    idle, last = _states_of_finished_stages(ledger)
    left_behind = _states_of_abandoned_stages(ledger)
    states = [*idle, *(left_behind if abandoned else []), *(last if last_states else [])]
    objects = _unreferenced(home, ledger, states)
    staying_abandoned = set(_unreferenced(home, ledger, [*states, *left_behind])) - set(objects)
    staying_last = set(_unreferenced(home, ledger, [*states, *last])) - set(objects)
    leftovers = (*entries(home / TMP), *_cut_off_views(home))
    sizes = object_sizes(home)
    kept = sizes.keys() - objects - staying_abandoned - staying_last
    return Garbage(
        objects=tuple(objects),
        states=tuple(states),
        leftovers=leftovers,
        num_bytes=sum(sizes.get(digest, 0) for digest in objects) + sum(map(size_below, leftovers)),
        num_bytes_abandoned=sum(sizes.get(digest, 0) for digest in staying_abandoned),
        num_bytes_last=sum(sizes.get(digest, 0) for digest in staying_last),
        num_bytes_quarantined=size_below(home / QUARANTINE),
        num_bytes_kept=sum(sizes[digest] for digest in kept),
    )


def object_sizes(home: Path) -> dict[str, int]:
    """Bytes of each object, by its digest."""
    return {
        digest: size_below(home / OBJECTS / digest) for digest in ObjectStore(home / OBJECTS, write=False).digests()
    }


def sound_ledger(home: Path) -> Ledger:
    """The ledger, for reading. What a damaged one does not refer to any more may well be needed.

    Raises:
        StoreError: it is damaged.
    """
    found = look_at_ledger(home)
    if found.damage:
        fall_back = "run a recipe of this home first: it puts the last backup of the ledger in its place"
        raise StoreError(
            f"the ledger {found.damage[0]}, so it is not known what is needed: nothing was removed",
            fix=fall_back if found.backup is not None else f"no sound backup of it is left: {NO_BACKUP}",
            where=str(home / LEDGER),
        )
    return open_for_reading(home)


def _unreferenced(home: Path, ledger: Ledger, doomed: Collection[State]) -> list[str]:
    """Digests of the objects that the ledger does not refer to, or only as a state that is to go."""
    needed = {artifact.digest for artifact in ledger.artifacts()}
    going = set(doomed)
    for key in ledger.begun_stages():
        needed |= {digest for _, digest in ledger.steps(key) if digest is not None}
        needed |= {digest for step, digest in ledger.states(key) if (key, step, digest) not in going}
    return free_objects(home, ledger, needed)


def free_objects(home: Path, ledger: Ledger, needed: Collection[str]) -> list[str]:
    """Digests of the objects that are not needed.

    What is older than a backup's taking the place of a damaged ledger stays: the records that were lost may be of it.
    """
    fell_back_s = max((incident.at_s for incident in ledger.incidents() if incident.file == LEDGER), default=0.0)
    objects = ObjectStore(home / OBJECTS, write=False)
    free = [digest for digest in objects.digests() if digest not in needed]
    return [digest for digest in free if changed_ns(home / OBJECTS / digest) / 1e9 > fell_back_s]


def _states_of_finished_stages(ledger: Ledger) -> tuple[list[State], list[State]]:
    """Those that nothing needs; and those behind the last step, which only stages have that could resume from there."""
    finished = [key for key in ledger.begun_stages() if ledger.stage(key) is not None]
    states = [(key, step, digest) for key in finished for step, digest in ledger.states(key)]
    ends = {key: len(ledger.steps(key)) for key in finished}
    return [it for it in states if it[1] < ends[it[0]]], [it for it in states if it[1] >= ends[it[0]]]


def _states_of_abandoned_stages(ledger: Ledger) -> list[State]:
    """Those of unfinished stages that no run has.

    A run that was changed and changed back does not have them either, until it reaches the stage again: that is
    why they only go if they are asked to.
    """
    had = {stage.key for run in ledger.runs() for stage in run.stages}
    abandoned = [key for key in ledger.begun_stages() if key not in had and ledger.stage(key) is None]
    return [(key, step, digest) for key in abandoned for step, digest in ledger.states(key)]


def _cut_off_views(home: Path) -> list[Path]:
    """What the writing of views left in the directories of runs."""
    return [path for run in entries(home / RUNS) if is_directory(run) for path in half_written_views(run)]
