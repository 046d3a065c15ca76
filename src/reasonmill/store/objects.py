"""Content-addressed objects: directories that never change, named by the digest of what they hold."""

import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from reasonmill.activity import phase
from reasonmill.errors import StoreError
from reasonmill.store.commit import damaged_file, disk_errors, fsync_directory, publish, seal
from reasonmill.store.full_disk import WhenFull, waits_for_room

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ObjectStore:
    """The objects below `root`. `tmp` is on the same file system; what is in it after a crash is worthless."""

    def __init__(self, root: Path, tmp: Path, *, write: bool) -> None:
        self._root = root
        self._tmp = tmp
        self._write = write
        self._verified: set[str] = set()
        self.when_full: WhenFull | None = None

    @phase("saving")
    @waits_for_room
    def put(self, write: Callable[[Path], None]) -> str:
        """Commits what `write` puts into the empty directory that it is given; returns the object's digest.

        When this returns, the object is durable. When it raises, the store is as it was, or holds the whole object.
        Where an equal object exists already, that one stays.

        Raises:
            OutOfSpace, StoreError: the disk failed, or the equal object that exists already is damaged.
            ValueError: `write` wrote nothing, or something that is not a plain file.
        """
        self._require_write()
        staging = self._tmp / f"put-{uuid.uuid4().hex}"
        try:
            with disk_errors(self._root):
                staging.mkdir()
            with disk_errors(self._root, foreign_code=True):
                write(staging)
            with disk_errors(self._root):
                digest = seal(staging)
                is_new = publish(staging, self._root / digest)
        finally:
            # What can't be removed now is removed when the next writer opens the home.
            shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            self._verified.add(digest)
        else:
            self.path(digest)
        return digest

    @phase("reading")
    def path(self, digest: str) -> Path:
        """Directory of an object, to be read only. The first call in a process checks every file's digest.

        Raises:
            StoreError: there is no such object, or a file of it is damaged; the message names the file.
        """
        path = self._existing(digest)
        if digest not in self._verified:
            with disk_errors(path):
                damaged = damaged_file(path, digest)
            if damaged is not None:
                raise StoreError(
                    f"object {digest[:12]} is damaged: its file {damaged!r} is not what was committed",
                    fix="restore the object's directory from a copy, or move it away to have it made again",
                    where=str(path / damaged),
                )
            self._verified.add(digest)
        return path

    def exists(self, digest: str) -> bool:
        """Whether the store has the object; says nothing about damage."""
        return _DIGEST.fullmatch(digest) is not None and (self._root / digest).is_dir()

    def delete(self, digest: str) -> None:
        """Removes an object that nothing refers to any more.

        Raises:
            StoreError: there is no such object, or the disk failed.
        """
        self._require_write()
        path = self._existing(digest)
        self._verified.discard(digest)
        # Out of sight in one rename: a crash while its files are removed leaves no half object.
        doomed = self._tmp / f"deleted-{uuid.uuid4().hex}"
        with disk_errors(path):
            os.rename(path, doomed)
            fsync_directory(self._root)
            shutil.rmtree(doomed)

    def digests(self) -> list[str]:
        """Digests of all objects, sorted."""
        with disk_errors(self._root):
            return sorted(entry.name for entry in self._root.iterdir() if _DIGEST.fullmatch(entry.name))

    def _existing(self, digest: str) -> Path:
        if not self.exists(digest):
            raise StoreError(
                f"the home has no object {digest!r}",
                fix="run the recipe that makes it again, or check that this is the right home",
                where=str(self._root),
            )
        return self._root / digest

    def _require_write(self) -> None:
        if not self._write:
            raise StoreError(
                "the home is open for reading only", fix="open it for writing", where=str(self._root.parent)
            )
