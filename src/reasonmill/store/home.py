"""The home: one directory with everything that reasonmill has made, one writer at a time and any number of readers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType

from reasonmill.errors import StoreError
from reasonmill.store.commit import disk_errors, fsync_directory
from reasonmill.store.full_disk import WhenFull
from reasonmill.store.ledger import Ledger
from reasonmill.store.objects import ObjectStore

_LEDGER = "ledger.sqlite"
_DIRECTORIES = ("objects", "runs", "tmp")


class Home:
    """An open home: `objects` holds the artifacts and `ledger` says where each came from."""

    def __init__(self, path: Path, ledger: Ledger, lock: WriterLock | None) -> None:
        self.path = path
        self.objects = ObjectStore(path / "objects", path / "tmp", write=lock is not None)
        self.ledger = ledger
        self._lock = lock

    @classmethod
    def open(cls, path: Path | str, *, write: bool = True) -> Home:
        """Opens a home: for writing (made if missing, locked against other writers) or for reading beside a writer.

        Raises:
            StoreError: the home can't be written, is in use by another writer, or is missing and opened for reading.
        """
        path = Path(path).absolute()
        if path.exists() and not path.is_dir():
            raise StoreError("the home is not a directory", fix="name a directory as the home", where=str(path))
        if write:
            return cls._open_for_writing(path)
        if not (path / _LEDGER).is_file():
            raise StoreError(
                "there is no home here to read from", fix="check the path, or run a recipe first", where=str(path)
            )
        return cls(path, Ledger(path / _LEDGER, write=False), lock=None)

    @classmethod
    def _open_for_writing(cls, path: Path) -> Home:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(path)
        ledger = None
        try:
            with disk_errors(path):
                if not (path / _LEDGER).exists():
                    _require_no_content(path)
                # The ledger first: directories without a ledger are then never those of a home that was cut short.
                ledger = Ledger(path / _LEDGER, write=True)
                for name in _DIRECTORIES:
                    (path / name).mkdir(exist_ok=True)
                fsync_directory(path)
                for leftover in (path / "tmp").iterdir():
                    if leftover.is_dir() and not leftover.is_symlink():
                        shutil.rmtree(leftover)
                    else:
                        leftover.unlink()
        except BaseException:
            if ledger is not None:
                ledger.close()
            lock.release()
            raise
        return cls(path, ledger, lock)

    def run_dir(self, name: str) -> Path:
        """Directory of a run's views and logs; it exists after this call if the home is open for writing."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise StoreError(
                f"{name!r} can't name a run's directory", fix="use letters, digits, '-' and '_'", where="run"
            )
        path = self.path / "runs" / name
        if self._lock is not None:
            with disk_errors(path):
                path.mkdir(exist_ok=True)
        return path

    def free_bytes(self) -> int:
        """Bytes that can still be written to the home's disk."""
        with disk_errors(self.path):
            return shutil.disk_usage(self.path).free

    @contextmanager
    def waiting_when_full(self, when_full: WhenFull) -> Iterator[None]:
        """In the block, what is committed to a full disk waits for room instead of failing with OutOfSpace."""
        self.objects.when_full = self.ledger.when_full = when_full
        try:
            yield
        finally:
            self.objects.when_full = self.ledger.when_full = None

    def close(self) -> None:
        """Closes the ledger and lets go of the lock; closing twice does nothing."""
        self.ledger.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Home:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class WriterLock:
    """The right to write to a home, held by at most one process; the system takes it back when the process dies."""

    def __init__(self, home: Path) -> None:
        """Takes the lock, or raises StoreError that says who holds it."""
        path = home / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"another run writes to this home: {_holder(descriptor)}",
                    fix="wait until it ends or stop it, or use another home",
                    where=str(path),
                ) from None
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor: int | None = descriptor
        _held_locks.add(self)

    def release(self) -> None:
        """Lets the lock go; a second call does nothing."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            # Unlock and not just close: a process that is being forked right now has the descriptor, too.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def drop_in_child(self) -> None:
        """Closes a forked child's copy, which would keep the lock alive after its parent was killed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _drop_inherited_locks() -> None:
    for lock in list(_held_locks):
        lock.drop_in_child()


os.register_at_fork(after_in_child=_drop_inherited_locks)


def _holder(descriptor: int) -> str:
    """Who wrote the lock file; another process may be writing it this moment."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has only just started"


def _require_no_content(path: Path) -> None:
    """A home without a ledger must be new: otherwise foreign files in tmp/ would be removed as leftovers."""
    for name in _DIRECTORIES:
        directory = path / name
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise StoreError(
                f"this directory has a {name!r} of its own but no ledger, so it is no home of reasonmill",
                fix=f"use another directory, or put the home's {_LEDGER} back",
                where=str(directory),
            )
