"""The commit protocol: a directory becomes an object in one rename, after every byte of it has reached the disk.

An object is a directory whose name is the digest of its `manifest.json`, which lists the digest of every other file.
A crash at any point leaves either no object or a whole one. Nothing is ever overwritten.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reasonmill.content import file_digest
from reasonmill.errors import OutOfSpace, ReasonmillError, StoreError
from reasonmill.store import disk
from reasonmill.store.looking import exists, files_below, is_file, size, unless_lost

MANIFEST = "manifest.json"

_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# Libraries that write from native code raise their own errors, which have the system's message or number in their text.
_OUT_OF_SPACE_TEXTS = ("No space left on device", "Disk quota exceeded")
_NATIVE_NUMBER = re.compile(r"\(os error (\d+)\)")
_DISK_FAULTS = frozenset(
    {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENODEV, errno.ENXIO, errno.ENAMETOOLONG}
    # of network disks that are away
    | {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN}
)


def seal(directory: Path) -> str:
    """Hashes and fsyncs all files of a new object, writes its manifest last and returns the object's digest.

    The manifest holds nothing that depends on time or place, so equal files give the equal digest.

    Raises:
        ValueError: the directory holds no file, something that is not a plain file, or a file named like the manifest.
    """
    directories = [directory]
    entries = []
    for path in sorted(directory.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            directories.append(path)
            continue
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"an object holds plain files only, and {name!r} is none")
        if name == MANIFEST:
            raise ValueError(f"the name {MANIFEST!r} is kept for the object's manifest")
        entries.append({"path": name, "size": path.stat().st_size, "blake2b": file_digest(path)})
        disk.fsync_file(path, "object file")
    if not entries:
        raise ValueError("an object needs at least one file, and none was written")

    manifest = (json.dumps(sorted(entries, key=lambda entry: entry["path"]), indent=1, sort_keys=True) + "\n").encode()
    _write_durably(directory / MANIFEST, manifest, "manifest")
    for path in reversed(directories):  # a directory after those in it
        disk.fsync_directory(path, "object")
    return _digest(manifest)


def publish(directory: Path, target: Path) -> bool:
    """Renames a sealed object to its final name. Returns False, and changes nothing, where `target` exists already."""
    try:
        # The system refuses to rename over a directory that is not empty, and an object is never empty; or over a file.
        disk.rename(directory, target, "object")
        is_new = True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        is_new = False
    # Also when it existed: its writer may have been killed between its rename and this call.
    disk.fsync_directory(target.parent, "objects")
    return is_new


def damaged_files(directory: Path, digest: str, *, read: bool = True) -> list[str]:
    """Names of the files of an object that are not what the manifest says; none for a whole object.

    Beside a writer, an object may be removed while it is looked at: then it is damaged.

    Args:
        read: False reads nothing but the manifest, and takes a file of the right size for the right one.

    Raises:
        OSError: the disk does not say what the files hold.
    """
    manifest = content(directory / MANIFEST)
    if manifest is None or _digest(manifest) != digest:
        return [MANIFEST]  # which says what the others should be
    entries = {entry["path"]: entry for entry in json.loads(manifest)}
    damaged = [
        name
        for name, entry in entries.items()
        if not (holds(directory / name, entry["blake2b"]) if read else has_size(directory / name, entry["size"]))
    ]
    names = unless_lost(lambda: set(files_below(directory)))
    if names is None:
        return damaged or [MANIFEST]
    # A file that was added counts as damage: loaders of models look at every file that is there.
    return [*damaged, *sorted(names - entries.keys() - {MANIFEST})]


def holds(path: Path, digest: str) -> bool:
    """Whether a file has the content of this digest; one whose content is lost has not.

    Raises:
        OSError: the disk does not say what the file holds.
    """
    return unless_lost(lambda: is_file(path) and file_digest(path) == digest) or False


def has_size(path: Path, num_bytes: int) -> bool:
    """Whether there is a file of this size.

    Raises:
        OSError: the disk does not say.
    """
    return unless_lost(lambda: is_file(path) and size(path) == num_bytes) or False


def content(path: Path) -> bytes | None:
    """The bytes of a file; None where they are lost.

    Raises:
        OSError: the disk does not say what the file holds.
    """
    return unless_lost(lambda: path.read_bytes() if is_file(path) else None)


def is_unreadable(path: Path) -> bool:
    """Whether there is a file of which the disk can't read a part any more.

    Raises:
        OSError: the disk does not say.
    """
    is_read = unless_lost(lambda: not is_file(path) or bool(file_digest(path)))
    return not is_read and exists(path)  # beside a writer, a log may have gone by now


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a small view such as a run's summary, so that readers see the old bytes or the new ones.

    Raises:
        OutOfSpace, StoreError: the old file is then still there.
    """
    # One fixed name next to the file: what a crash leaves behind is overwritten by the next call.
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            _write_durably(temporary, data, "view")
            disk.replace(temporary, path, "view")
        except BaseException:
            with suppress(OSError):  # a disk that fails twice: the first error is the one to report
                if exists(temporary):
                    disk.unlink(temporary, "unfinished view")
            raise
        disk.fsync_directory(path.parent, "views")


def replace_directory(path: Path, source: Path | None) -> None:
    """Replaces a view that is a directory by a copy of `source` without its manifest; None only removes the old one.

    A crash leaves the old directory, the new one or none, but never a part of one.

    Raises:
        OutOfSpace, StoreError: the old directory may then be gone; the next call puts the new one in its place.
    """
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    with disk_errors(path):
        for leftover in (new, old):
            if exists(leftover):
                disk.remove_tree(leftover, "leftover view")
        if source is not None:
            _copy_durably(source, new, leaving_out=MANIFEST)
        if exists(path):
            disk.rename(path, old, "old view directory")
        if source is not None:
            disk.rename(new, path, "view directory")
        # Before anything of the old one is removed: the disk could keep its name and lose its files.
        disk.fsync_directory(path.parent, "view directories")
        if exists(old):
            disk.remove_tree(old, "old view directory")


@contextmanager
def disk_errors(where: Path, *, foreign_code: bool = False) -> Iterator[None]:
    """Turns errors of the disk into OutOfSpace or StoreError, and lets all others pass.

    Every OSError of the store's own steps is the disk's. Where `foreign_code` runs, an OSError may also be a bug (a
    file of its own that it does not find), so only errors that a disk reports count.
    """
    try:
        yield
    except ReasonmillError:
        raise
    except Exception as error:
        known = error_of_disk(error, where, foreign_code=foreign_code)
        if known is None:
            raise
        raise known from error


def error_of_disk(
    error: Exception, where: Path, *, foreign_code: bool = False, what: str = "the home"
) -> StoreError | None:
    """What an error says of the disk, see `disk_errors`; None where it is not the disk's.

    Args:
        what: could not be read or written.
    """
    chain = list(_chain(error))
    for link in chain:
        if _error_number(link) in _OUT_OF_SPACE or any(text in str(link) for text in _OUT_OF_SPACE_TEXTS):
            return out_of_space(where)
    for link in chain:
        if (isinstance(link, OSError) and not foreign_code) or _error_number(link) in _DISK_FAULTS:
            return StoreError(
                f"{what} can't be read or written: {getattr(link, 'strerror', None) or link}",
                fix="check the disk, the path and its permissions, then run the same command again",
                where=str(getattr(link, "filename", None) or where),
            )
    return None


def out_of_space(where: Path) -> OutOfSpace:
    """The error for a full disk."""
    return OutOfSpace(
        "no space is left on the disk; nothing that was committed is lost",
        fix="free some space and run the same command again: it resumes where it stopped",
        where=str(where),
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from or while handling, nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _error_number(error: BaseException) -> int | None:
    """The system's number of an error, also where native code put it into the text; None where there is none."""
    if isinstance(error, OSError):
        return error.errno
    found = _NATIVE_NUMBER.search(str(error))
    return int(found[1]) if found else None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _write_durably(path: Path, data: bytes, what: str) -> None:
    disk.write_file(path, data, what)
    disk.fsync_file(path, what)


def _copy_durably(source: Path, target: Path, *, leaving_out: str | None = None) -> None:
    """Copies a directory and makes all below `target` durable, but not the name of `target`."""
    disk.make_directory(target, "view")
    for path in sorted(source.iterdir()):
        if path.name == leaving_out:
            continue
        if path.is_dir():
            _copy_durably(path, target / path.name)
        else:
            disk.copy_file(path, target / path.name, "view")
            disk.fsync_file(target / path.name, "copied view")
    disk.fsync_directory(target, "copied view")
