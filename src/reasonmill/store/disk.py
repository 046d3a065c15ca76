"""All that the store does to a disk: each change is one small function here, and nothing else in the store makes any.

Each operation has a name, and goes through `around`, which performs it. Tests put a function of their own in that
place: it sees every operation before and after, and may fail it, do half of it, leave it out or end the process.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

# What changes the bytes of files, the names in directories, and a database.
BytesVerb = Literal["write", "copy", "fill", "fsync"]
NameVerb = Literal["fsync directory", "rename", "replace", "make directory", "unlink", "remove directory"]
DatabaseVerb = Literal["start log", "commit", "commit unsynced", "empty log", "close"]
Verb = Literal[BytesVerb, NameVerb, DatabaseVerb]


@dataclass(frozen=True)
class Operation:
    """One change of the disk: what is done, for what, and where.

    `path` is the file or directory that is changed, and `target` its new name where it gets one. `data` are the bytes
    of a write. An operation that a library does (`fill`, `commit`, `empty log` and the like) counts as one.
    """

    verb: Verb
    what: str
    path: Path
    target: Path | None = None
    data: bytes | None = None

    @property
    def name(self) -> str:
        """Verb and purpose: the same in every run, and of one place in the code."""
        return f"{self.verb} {self.what}"


def _perform(operation: Operation, perform: Callable[[], object]) -> None:
    perform()


# There is no setting that replaces it: only code that imports this module can.
around: Callable[[Operation, Callable[[], object]], None] = _perform


def write_file(path: Path, data: bytes, what: str) -> None:
    """Makes a file of these bytes, or replaces what is in it; it is durable after `fsync_file`."""
    around(Operation("write", what, path, data=data), lambda: path.write_bytes(data))


def copy_file(source: Path, path: Path, what: str) -> None:
    """Makes a copy of a file's bytes at `path`."""
    around(Operation("copy", what, path), lambda: shutil.copyfile(source, path))


def fill_directory(path: Path, write: Callable[[Path], object], what: str) -> None:
    """Lets `write`, which is not the store's, put files into a directory."""
    around(Operation("fill", what, path), lambda: write(path))


def fsync_file(path: Path, what: str) -> None:
    """Makes a file's bytes durable, but not its name."""
    around(Operation("fsync", what, path), lambda: _fsync(path, os.O_RDONLY))


def fsync_directory(path: Path, what: str) -> None:
    """Makes the names in a directory durable."""
    around(Operation("fsync directory", what, path), lambda: _fsync(path, os.O_RDONLY | os.O_DIRECTORY))


def rename(path: Path, target: Path, what: str) -> None:
    """Moves a file or directory to a new name, which nothing has."""
    around(Operation("rename", what, path, target), lambda: os.rename(path, target))


def replace(path: Path, target: Path, what: str) -> None:
    """Moves a file over another."""
    around(Operation("replace", what, path, target), lambda: os.replace(path, target))


def make_directory(path: Path, what: str) -> None:
    """Makes a directory whose parent exists."""
    around(Operation("make directory", what, path), lambda: os.mkdir(path))


def unlink(path: Path, what: str) -> None:
    """Removes a file."""
    around(Operation("unlink", what, path), lambda: os.unlink(path))


def remove_tree(path: Path, what: str) -> None:
    """Removes a file, or a directory with all that is in it, name by name; links are removed and not followed."""
    if path.is_symlink() or not path.is_dir():
        unlink(path, what)
        return
    for directory, directories, files in os.walk(path, topdown=False, onerror=_raise):
        for name in sorted(files):
            unlink(Path(directory, name), what)
        for name in sorted(directories):
            if os.path.islink(os.path.join(directory, name)):
                unlink(Path(directory, name), what)
        around(Operation("remove directory", what, Path(directory)), partial(os.rmdir, directory))


def start_log(database: sqlite3.Connection, path: Path, what: str) -> None:
    """Turns a database's write-ahead log on, where the file system can hold one."""
    around(Operation("start log", what, path), lambda: database.execute("PRAGMA journal_mode = WAL"))


def begin(database: sqlite3.Connection, *, synced: bool) -> None:
    """Begins a transaction. Its commit waits until it is durable if `synced`, and else for nothing."""
    database.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
    database.execute("BEGIN IMMEDIATE")


def commit(database: sqlite3.Connection, path: Path, what: str, *, synced: bool) -> None:
    """Commits the transaction that `begin` began, with the same `synced`."""
    operation = Operation("commit" if synced else "commit unsynced", what, path)
    around(operation, lambda: database.execute("COMMIT"))


def empty_log(database: sqlite3.Connection, path: Path, what: str) -> bool:
    """Moves what is in a database's log into the file and makes the file durable, but not the log's emptiness.

    Returns False where a reader was in the way.
    """
    answers: list[int] = []

    def perform() -> None:
        is_busy, *_ = database.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone()
        answers.append(is_busy)

    around(Operation("empty log", what, path), perform)
    return answers == [0]


def copy_database(database: sqlite3.Connection, path: Path) -> None:
    """Writes a copy of a database as it is now into a new file, for what `fill_directory` calls.

    Nobody takes up half a copy, and an object is made durable as a whole: so this has no journal and waits for nothing.
    """
    with closing(sqlite3.connect(path)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        database.backup(copy)


def close(database: sqlite3.Connection, path: Path, what: str) -> None:
    """Closes a database that was written to: SQLite moves what is in the log into the file, as far as it can."""
    around(Operation("close", what, path), database.close)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise(error: OSError) -> NoReturn:
    raise error
