"""The home: one directory with everything that reasonmill has made, one writer at a time and any number of readers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import weakref
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path

from reasonmill.errors import StoreError
from reasonmill.store import disk
from reasonmill.store.commit import disk_errors
from reasonmill.store.full_disk import waits_for_room
from reasonmill.store.incidents import Incidents
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_backup import BACKUPS, LEDGER, LEDGER_FILES, LedgerKeeper, is_home, open_for_reading
from reasonmill.store.looking import exists, is_directory, is_file
from reasonmill.store.objects import QUARANTINE, TMP, ObjectStore
from reasonmill.store.plans import PLANS
from reasonmill.store.views import RUNS, forget_lost_views, in_the_way

OBJECTS = "objects"
_DIRECTORIES = (OBJECTS, RUNS, TMP, BACKUPS, QUARANTINE)
_LOCK = "lock"
_PID = "pid"  # what the lock's file says first
# What the system says where it can't lock a directory: network file systems lock only what can be written.
_NO_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOTSUP})
# The names of all that a home has, and of what is on its way to one of them.
HOME_ENTRIES = LEDGER_FILES | {*_DIRECTORIES, _LOCK, PLANS}


class Home(AbstractContextManager["Home"]):
    """An open home: `objects` holds the artifacts and `ledger` says where each came from.

    Damage that is met while the home is open for writing goes to `incidents`: recorded in the ledger, and reported to
    the user.
    """

    def __init__(
        self, path: Path, ledger: Ledger, incidents: Incidents, keeper: LedgerKeeper | None, lock: WriterLock | None
    ) -> None:
        self.path = path
        self.objects = ObjectStore(path / OBJECTS, write=keeper is not None, incidents=incidents)
        self.ledger = ledger
        self.incidents = incidents
        self._keeper = keeper
        self._lock = lock

    @classmethod
    def open(cls, path: Path | str, *, write: bool = True, lock: WriterLock | None = None) -> Home:
        """Opens a home: for writing (made if missing, locked against other writers) or for reading beside a writer.

        Args:
            lock: the home's, where the caller has it already; the home lets go of it in the end.

        Raises:
            StoreError: the home can't be written, is in use by another writer, or is missing and opened for reading.
        """
        path = Path(path).absolute()
        incidents = Incidents()
        if not write:
            require_home(path)
            return cls(path, open_for_reading(path), incidents, None, None)
        _require_directory(path)
        with disk_errors(path):
            if not exists(path / LEDGER):
                _make_durably(path)
            lock = lock or WriterLock(path)
        keeper = LedgerKeeper(path, incidents)
        try:
            with disk_errors(path):
                keeper.require_this_version()
                # Before anything is written: they may be what fills the disk.
                for leftover in entries(path / TMP):
                    disk.remove_tree(leftover, "leftover")
                for name in _DIRECTORIES:
                    if not is_directory(path / name):
                        disk.make_directory(path / name, name)
                # Also when they existed, see above: damaged files go into one of them even before the seal is written.
                disk.fsync_directory(path, "home")
                return cls(path, keeper.open(), incidents, keeper, lock)
        except BaseException:
            lock.close()
            raise

    @property
    def is_writable(self) -> bool:
        """Whether it is open for writing."""
        return self._keeper is not None

    @waits_for_room
    def back_up_ledger(self) -> None:
        """Keeps a copy of the ledger as it is now, to restore if its file is damaged."""
        if self._keeper is not None:
            self._keeper.back_up(self.ledger)

    def run_dir(self, name: str) -> Path:
        """Directory of a run's views and logs; it exists after this call if the home is open for writing."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise StoreError(
                f"{name!r} can't name a run's directory", fix="use letters, digits, '-' and '_'", where="run"
            )
        path = self.path / RUNS / name
        if self._keeper is not None:
            if in_the_way(path):
                forget_lost_views(self.path, name, self.ledger, self.incidents, "is damaged")
            with disk_errors(path):
                if not is_directory(path):
                    disk.make_directory(path, "run")
                # Also when it existed: its maker may have been killed before this.
                disk.fsync_directory(path.parent, "runs")
        return path

    def scratch(self, name: str) -> Path:
        """A place for what is worth nothing once the home is closed: the next writer removes it."""
        return self.path / TMP / name

    def free_bytes(self) -> int:
        """Bytes that can still be written to the home's disk."""
        with disk_errors(self.path):
            return shutil.disk_usage(self.path).free

    def close(self, *, at_once: bool = False) -> None:
        """Closes the ledger and lets go of the lock; closing twice does nothing.

        Args:
            at_once: without a backup of the ledger and its seal, which the next writer catches up on, as after a kill.
        """
        keeper, self._keeper = self._keeper, None
        try:
            if keeper is None or at_once:
                self.ledger.close()
            else:
                keeper.close(self.ledger)
        finally:
            if self._lock is not None:
                self._lock.close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))  # a second Ctrl-C


class WriterLock:
    """The right to write to a home, held by at most one process; the system takes it back when the process dies.

    It is a lock of the home's directory itself, which nobody can remove while there is a home. The file `lock` only
    says who holds it.
    """

    def __init__(self, home: Path) -> None:
        """Takes the lock, or raises StoreError that says who holds it, or why this can't be a home."""
        _require_own_entries(home)
        path = home / _LOCK
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock_directory(descriptor, path)
            if not is_home(home):
                _require_no_content(home)
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            holder = {_PID: os.getpid(), "host": socket.gethostname(), "started": started}
            with suppress(OSError):  # a full disk must not keep the writer from removing leftovers
                disk.write_file(path, json.dumps(holder).encode(), "lock")
        except BaseException:
            os.close(descriptor)
            raise
        self.home = home
        self._path = path
        self._descriptor: int | None = descriptor
        _held_locks.add(self)

    def close(self) -> None:
        """Lets the lock go; a second call does nothing."""
        if self._descriptor is not None:
            with suppress(OSError):  # what the file says counts only while the home is locked
                disk.write_file(self._path, b"", "released lock")
            # Unlock and not just close: a process that is being forked right now has the descriptor, too.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.drop()

    def drop(self) -> None:
        """Closes this process's copy of the lock, and no other: a forked child's would outlive its parent's."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _drop_inherited_locks() -> None:
    for lock in list(_held_locks):
        lock.drop()


os.register_at_fork(after_in_child=_drop_inherited_locks)


def _lock_directory(descriptor: int, lock_file: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(
            f"another run writes to this home: {_holder(lock_file)}",
            fix="wait until it ends or stop it, or use another home",
            where=str(lock_file),
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise StoreError(
            f"the home's file system can't lock a directory, so that two runs could write to it: {error.strerror}",
            fix="use a home on a local disk",
            where=str(lock_file.parent),
        ) from error


def _holder(path: Path) -> str:
    """Who wrote the lock file; another process may be writing it this moment, or somebody has removed it."""
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder[_PID]} on {holder['host']}, since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not left its name"


def entries(directory: Path) -> list[Path]:
    """What is in a directory of a home; nothing where the user has removed it."""
    return sorted(directory.iterdir()) if is_directory(directory) else []


def is_new(path: Path) -> bool:
    """Whether there is no home yet, and a run would make one here.

    Raises:
        StoreError: there is none, and none can be made, or the disk does not say.
    """
    _require_directory(path)
    if is_home(path):
        return False
    with disk_errors(path):
        _require_own_entries(path)
        _require_no_content(path)
    return True


def require_home(path: Path) -> None:
    """Checks that there is a home to read from.

    Raises:
        StoreError: there is none.
    """
    _require_directory(path)
    if not is_home(path):
        raise StoreError(
            "there is no home here to read from", fix="check the path, or run a recipe first", where=str(path)
        )


def _require_directory(path: Path) -> None:
    with disk_errors(path):
        is_other = exists(path) and not is_directory(path)
    if is_other:
        raise StoreError("the home is not a directory", fix="name a directory as the home", where=str(path))


def _make_durably(path: Path) -> None:
    """Makes the directory of a new home and the parents that it lacks, so that a power cut does not take its name."""
    if not is_directory(path):
        if not is_directory(path.parent):
            _make_durably(path.parent)
        disk.make_directory(path, "home")
    # Also when it existed: its maker may have been killed before this.
    disk.fsync_directory(path.parent, "above the home")


def _require_own_entries(path: Path) -> None:
    """A writer empties and fills the home's directories, and the lock's file: none may lead out of the home."""
    for name in (*_DIRECTORIES, _LOCK):
        entry = path / name
        kind, is_own = ("file", is_file) if name == _LOCK else ("directory", is_directory)
        if entry.is_symlink() or (exists(entry) and not is_own(entry)):
            raise StoreError(
                f"{name!r} of this home is {'a link' if entry.is_symlink() else f'no {kind}'}, and what a run does to "
                "it would be done to something else",
                fix=f"put a plain {kind} in its place; to have a home on another disk, name a directory there as the "
                "home",
                where=str(entry),
            )


def _require_no_content(path: Path) -> None:
    """What is no home yet must be new: otherwise foreign files in tmp/ would be removed as leftovers, or a foreign
    `lock` emptied."""
    foreign = [name for name in _DIRECTORIES if entries(path / name)]
    if exists(path / _LOCK) and not _names_a_holder(path / _LOCK):
        foreign.append(_LOCK)
    if foreign:
        raise StoreError(
            f"this directory has a {foreign[0]!r} of its own but no ledger, so it is no home of reasonmill",
            fix=f"use another directory, or put the home's {LEDGER} back",
            where=str(path / foreign[0]),
        )


def _names_a_holder(path: Path) -> bool:
    """Whether a lock's file is a writer's, of which a crash may have left the beginning, zeros or nothing."""
    beginning = f'{{"{_PID}"'.encode()
    with path.open("rb") as file:
        data = file.read(4096).strip(b"\0")
    return beginning.startswith(data[: len(beginning)])
