"""Content-addressed objects: directories that never change, named by the digest of what they hold."""

import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from reasonmill.activity import phase
from reasonmill.errors import StoreError
from reasonmill.store import disk
from reasonmill.store.commit import damaged_files, disk_errors, publish, seal
from reasonmill.store.full_disk import waits_for_room
from reasonmill.store.incidents import Incident, Incidents
from reasonmill.store.looking import exists, is_directory

QUARANTINE, TMP = "quarantine", "tmp"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def quarantined(home: Path, name: str) -> Path:
    """A name in the quarantine that nothing has, for what had this name."""
    return home / QUARANTINE / f"{name}-{uuid.uuid4().hex[:8]}"


def put_aside(path: Path, kept: Path) -> None:
    """Moves what is damaged into the quarantine, durably: then something else can take its place."""
    if not is_directory(kept.parent):  # the user has emptied it meanwhile
        disk.make_directory(kept.parent, "quarantine")
        disk.fsync_directory(kept.parents[1], "home")
    disk.rename(path, kept, "damaged entry")
    disk.fsync_directory(kept.parent, "quarantine")


class ObjectStore:
    """The objects below `root`, a directory of the home.

    What is in the home's `tmp` after a crash is worthless. Damage that the store comes across while it is open for
    writing goes to `incidents`, and the damaged object into the home's quarantine.
    """

    def __init__(self, root: Path, *, write: bool, incidents: Incidents | None = None) -> None:
        self._root = root
        self._tmp = root.parent / TMP
        self._write = write
        self._incidents = incidents or Incidents()
        self._verified: set[str] = set()
        self._reported_missing: set[str] = set()

    @phase("saving")
    @waits_for_room
    def put(self, write: Callable[[Path], None]) -> str:
        """Commits what `write` puts into the empty directory that it is given; returns the object's digest.

        When this returns, the object is durable. When it raises, the store is as it was, or holds the whole object.
        Where an equal object exists already, that one stays, unless it is damaged.

        Raises:
            OutOfSpace, StoreError: the disk failed.
            ValueError: `write` wrote nothing, or something that is not a plain file.
        """
        self._require_write()
        staging = self._tmp / f"put-{uuid.uuid4().hex}"
        try:
            with disk_errors(self._root):
                disk.make_directory(staging, "object")
            with disk_errors(self._root, foreign_code=True):
                disk.fill_directory(staging, write, "object")
            with disk_errors(self._root):
                digest = seal(staging)
                is_new = publish(staging, self._root / digest)
            if not is_new and self.sound_path(digest, instead="the same object was just rebuilt") is None:
                with disk_errors(self._root):
                    publish(staging, self._root / digest)
        finally:
            # What can't be removed now is removed when the next writer opens the home.
            with suppress(OSError):
                if exists(staging):
                    disk.remove_tree(staging, "unfinished object")
        self._verified.add(digest)
        self._reported_missing.discard(digest)
        return digest

    def location(self, digest: str) -> Path:
        """Directory of an object, of which nothing is read.

        Raises:
            StoreError: there is no such object.
        """
        if not self.exists(digest):
            raise StoreError(
                f"the home has no object {digest!r}",
                fix="run the recipe that makes it, or check that this is the right home",
                where=str(self._root),
            )
        return self._root / digest

    @phase("reading")
    def path(self, digest: str) -> Path:
        """Directory of an object, to be read only. The first call in a process checks every file's digest.

        Raises:
            StoreError: there is no such object, or a file of it is damaged; the message names the file.
        """
        path = self.location(digest)
        damaged = self.damaged_files(digest)
        if damaged:
            raise StoreError(
                f"object {digest[:12]} is damaged: its file {damaged[0]!r} is not what was committed",
                fix="run the recipe that made it with --repair: the damaged object is put aside and rebuilt",
                where=str(path / damaged[0]),
            )
        return path

    def sound_path(self, digest: str, *, instead: str, read: bool = True) -> Path | None:
        """Like `path`, but None for an object that is missing or damaged. That is an incident, and a damaged object is
        moved to the quarantine, so that it can be rebuilt in its place.

        Each damaged file is one incident, however many ask for the object until it is rebuilt.

        Args:
            instead: what the one who asks first does without it, for the user and the ledger.
            read: False looks at the manifest and at the sizes of the files only.
        """
        self._require_write()
        path = self._root / digest
        if not self.exists(digest):
            if digest not in self._reported_missing:
                self._reported_missing.add(digest)
                self._report(digest, path, "is missing", instead)
            return None
        damaged = self.damaged_files(digest, read=read)
        if not damaged:
            return path
        kept = quarantined(self._root.parent, digest)
        # Recorded first: a crash in between may report it twice, but never not at all.
        for name in damaged:
            self._report(digest, path / name, f"is damaged and now in {QUARANTINE}/{kept.name}", instead)
        self._reported_missing.add(digest)
        with disk_errors(path):
            put_aside(path, kept)
        return None

    def damaged_files(self, digest: str, *, read: bool = True) -> list[str]:
        """Files of an object that are not what was committed; the first call for a whole object reads all of it.

        Args:
            read: False looks at the manifest and at the sizes of the files only.
        """
        if digest in self._verified:
            return []
        path = self._root / digest
        with disk_errors(path):
            damaged = damaged_files(path, digest, read=read)
        if read and not damaged:
            self._verified.add(digest)
        return damaged

    def exists(self, digest: str) -> bool:
        """Whether something has the object's name; says nothing about damage, and a file in its place is damage.

        Raises:
            StoreError: the disk does not say.
        """
        with disk_errors(self._root):
            return _DIGEST.fullmatch(digest) is not None and exists(self._root / digest)

    def delete(self, digest: str) -> None:
        """Removes an object that nothing refers to any more.

        Raises:
            StoreError: there is no such object, or the disk failed.
        """
        self._require_write()
        path = self.location(digest)
        self._verified.discard(digest)
        # Out of sight in one rename: a crash while its files are removed leaves no half object.
        doomed = self._tmp / f"deleted-{uuid.uuid4().hex}"
        with disk_errors(path):
            disk.rename(path, doomed, "deleted object")
            # Before any of its files is removed: the disk could keep its old name and lose its files.
            disk.fsync_directory(self._root, "objects without the deleted")
            disk.remove_tree(doomed, "deleted object")

    def digests(self) -> list[str]:
        """Digests of all objects, sorted."""
        with disk_errors(self._root):
            names = os.listdir(self._root) if is_directory(self._root) else []
        return sorted(name for name in names if _DIGEST.fullmatch(name))

    def _report(self, digest: str, path: Path, what: str, done: str) -> None:
        file = path.relative_to(self._root.parent).as_posix()
        self._incidents.add(Incident(file, digest, what, done))

    def _require_write(self) -> None:
        if not self._write:
            raise StoreError(
                "the home is open for reading only", fix="open it for writing", where=str(self._root.parent)
            )
