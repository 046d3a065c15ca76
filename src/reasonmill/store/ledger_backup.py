"""The ledger's file: opened only if it is what was closed, backed up while it is written, sealed when it is closed.

`ledger.seal` holds the digest of the closed ledger, so that not a bit of it can change unnoticed. While a writer has it
open, and after that writer was killed, the seal is open, too; SQLite's checks and the seals of the rows then stand in
for it. Backups are objects of a store of their own, which checks them like all others.
"""

import hashlib
import json
import uuid
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reasonmill.content import file_digest
from reasonmill.errors import OutOfSpace, StoreError
from reasonmill.store import disk
from reasonmill.store.commit import content, disk_errors, holds, is_unreadable, replace_file
from reasonmill.store.incidents import Incident, Incidents
from reasonmill.store.ledger import Ledger
from reasonmill.store.looking import changed_ns, exists, is_directory, is_file, is_lost, size
from reasonmill.store.objects import QUARANTINE, TMP, ObjectStore, put_aside, quarantined
from reasonmill.store.sealed_rows import OtherVersion, Unreachable, damaged_ledger
from reasonmill.store.views import forget_lost_views

LEDGER = "ledger.sqlite"
SEAL = "ledger.seal"
BACKUPS = "backups"
# What SQLite keeps next to an open file: its log, and an index of that.
SIDE_FILES = (f"{LEDGER}-wal", f"{LEDGER}-shm")
# The last is the seal that is on its way to its name.
LEDGER_FILES = frozenset({LEDGER, *SIDE_FILES, SEAL, f".{SEAL}.tmp"})
# What to do about a damaged ledger where no sound backup is left.
NO_BACKUP = "restore the home from a copy, or use another home: the recipe then rebuilds everything"
# The one before the last is for the case that ledger and last backup are damaged together.
_KEPT_BACKUPS = 2
# The seal of a ledger that is being replaced: no file has this digest.
_REFUSED = "refused"


@dataclass(frozen=True)
class Seal:
    """What the home says of its ledger: the digest of its closed file, or None while a writer has it open, and the
    digests of its backups, the latest first."""

    ledger: str | None
    backups: tuple[str, ...]


class DamagedSeal(StoreError):
    """The seal is not what was written: nothing is known of how the ledger was closed."""


def encode_seal(seal: Seal) -> bytes:
    """The bytes of a seal, which carry their own digest."""
    content = json.dumps(asdict(seal))
    return f"{content}\n{hashlib.blake2b(content.encode(), digest_size=32).hexdigest()}\n".encode()


def read_seal(home: Path) -> Seal | None:
    """The home's seal; None where there is none yet.

    Raises:
        DamagedSeal: it is not what was written.
        StoreError: the disk does not say what it is.
    """
    path = home / SEAL
    with disk_errors(path):
        if not exists(path):
            return None
        data = content(path)
    with suppress(ValueError, LookupError, TypeError):
        fields = json.loads((data or b"").splitlines()[0])
        seal = Seal(fields["ledger"], tuple(fields["backups"]))
        if encode_seal(seal) == data:
            return seal
    raise DamagedSeal(
        "the seal of the ledger is damaged",
        fix="run the recipe again: the ledger is checked row by row and sealed anew",
        where=str(path),
    )


def is_home(path: Path) -> bool:
    """Whether there is a home: a ledger with tables, or what says that there was one.

    A directory is none yet while its first writer is at making the tables, or if it was killed at that.

    Raises:
        StoreError: the disk does not say.
    """
    backups = ObjectStore(path / BACKUPS, write=False)
    with disk_errors(path):
        return not Ledger.is_blank(path / LEDGER) or exists(path / SEAL) or bool(backups.digests())


def ledger_damage(home: Path, seal: Seal | None) -> list[str]:
    """What is wrong with the ledger's file, each to follow its name; nothing for a sound one.

    Raises:
        OtherVersion: the file is of another version of reasonmill.
        StoreError: it can't be looked at.
    """
    path, log = home / LEDGER, home / SIDE_FILES[0]
    with disk_errors(path):
        if not is_file(path):
            return [_absence(path)]
        if seal is not None and seal.ledger is not None:
            if not holds(path, seal.ledger):
                return ["is not what it was when it was closed"]
            return [f"was closed, and {log.name} would change it"] if size(log) > 0 else []
        # SQLite does not say why it can't read: it may be that the file is only out of reach.
        unreadable = [file.name for file in (path, log) if is_unreadable(file)]
        if unreadable:
            return [f"is damaged: the disk can't read {unreadable[0]}"]
    return _rows_damage(path, is_final=False)


def _absence(path: Path) -> str:
    """What is wrong where there is no file."""
    return "is no file" if exists(path) else "is missing"


def _rows_damage(path: Path, *, is_final: bool = True) -> list[str]:
    """What a look at every row of a ledger's file finds; see `ledger_damage`."""
    try:
        with closing(Ledger(path, write=False, is_final=is_final)) as ledger:
            return [f"is damaged: {what}" for what in ledger.damage()]
    except (OtherVersion, Unreachable, OutOfSpace):
        raise
    except StoreError as error:
        return [f"is damaged: {error.what}"]


def backups_in_order(home: Path, backups: ObjectStore, seal: Seal | None) -> list[str]:
    """The digests of the backups, in the order in which they are tried for a damaged ledger.

    Those that the seal names come first, the latest of them first; the others follow by their age.
    """
    known = seal.backups if seal is not None else ()
    others = [digest for digest in backups.digests() if digest not in known]
    return [*known, *sorted(others, key=lambda digest: changed_ns(home / BACKUPS / digest), reverse=True)]


@dataclass(frozen=True)
class LedgerState:
    """What a look at a home's ledger finds.

    Args:
        seal: None where there is none or it is damaged.
        damage: what is wrong with the ledger, each to follow its name.
        backup: the directory of the backup that a run would put in the place of a damaged ledger; None where the ledger
            is sound, or no sound backup is left.
    """

    seal: Seal | None
    is_seal_damaged: bool
    damage: tuple[str, ...]
    backup: Path | None


def look_at_ledger(home: Path) -> LedgerState:
    """Looks at a home's ledger and its seal, and changes nothing.

    Raises:
        OtherVersion: the ledger is of another version of reasonmill.
        StoreError: it can't be looked at.
    """
    seal, is_seal_damaged = None, False
    try:
        seal = read_seal(home)
    except DamagedSeal:
        is_seal_damaged = True  # then the ledger is checked row by row
    damage = ledger_damage(home, seal)
    backups = ObjectStore(home / BACKUPS, write=False)
    tried = [digest for digest in backups_in_order(home, backups, seal) if backups.exists(digest)] if damage else []
    sound = next((home / BACKUPS / digest for digest in tried if not backups.damaged_files(digest)), None)
    return LedgerState(seal, is_seal_damaged, tuple(damage), sound)


def open_for_reading(home: Path) -> Ledger:
    """The ledger of a home, to be read beside a writer.

    SQLite needs files beside it for that. Where it can't make them, on a read-only or a full disk, a closed ledger is
    read as it is.

    Raises:
        StoreError: it is missing or damaged, or can't be read.
    """
    with disk_errors(home):
        if not is_file(home / LEDGER):
            raise damaged_ledger(home / LEDGER, _absence(home / LEDGER))
    try:
        return Ledger(home / LEDGER, write=False)
    except (Unreachable, OutOfSpace):
        seal = read_seal(home)
        if seal is None or seal.ledger is None or ledger_damage(home, seal):
            raise
        return _ClosedLedger(home, seal)


class _ClosedLedger(Ledger):
    """A closed ledger that is read with nothing to hold a writer back, which may be on another mount of the disk.

    A writer opens the seal before it touches the ledger: so what was read before the seal changed is right.
    """

    def __init__(self, home: Path, seal: Seal) -> None:
        self._home = home
        self._seal = seal
        super().__init__(home / LEDGER, write=False, is_final=True)

    def _rows(self, query: str, *values: str | int) -> list[Any]:
        try:
            return super()._rows(query, *values)
        finally:  # also where a change made it fail
            if read_seal(self._home) != self._seal:
                raise Unreachable(
                    "a run has opened the home while it was read", fix="try again", where=str(self._home / SEAL)
                )


class LedgerKeeper:
    """Opens a home's ledger for its writer, backs it up and closes it. The writer's lock must be held."""

    def __init__(self, home: Path, incidents: Incidents) -> None:
        self._home = home
        self._incidents = incidents
        self._backups = ObjectStore(home / BACKUPS, write=True, incidents=incidents)
        self._seal = Seal(None, ())

    def require_this_version(self) -> None:
        """Looks at the ledger's file alone, for which nothing needs to be written, and accepts a damaged one.

        Raises:
            OtherVersion: the file is of another version of reasonmill, whose home nothing must change.
        """
        try:
            Ledger(self._home / LEDGER, write=False, is_final=True).close()
        except OtherVersion:
            raise
        except StoreError:
            return  # `open` looks closer

    def open(self) -> Ledger:
        """The ledger; a damaged one is put into quarantine, and its last sound backup takes its place.

        Raises:
            StoreError: the ledger is damaged, and no backup is left.
        """
        found = look_at_ledger(self._home) if is_home(self._home) else LedgerState(None, False, (), None)
        if found.is_seal_damaged:
            what = f"is no file and goes to {QUARANTINE}/" if is_directory(self._home / SEAL) else "is damaged"
            self._incidents.add(Incident(SEAL, "", what, "the ledger is checked row by row and sealed again"))
        seal, damage = found.seal, found.damage
        was_closed = not damage and seal is not None and seal.ledger is not None
        if damage:
            self._fall_back(found)
        elif seal is not None:
            # Before the ledger changes: a closed one that is not what it was counts as damaged.
            self._write_seal(replace(seal, ledger=None))
        ledger = Ledger(self._home / LEDGER, write=True)
        try:
            # Before the seal changes, which shows the damage: a crash in between may report it twice.
            self._incidents.record(ledger.record_incident)
            if damage:
                what = "is damaged, or newer than the backup of the ledger"
                for run in ledger.runs():
                    forget_lost_views(self._home, run.name, ledger, self._incidents, what)
            left = Seal(None, self._backups_left(self._seal))
            if left != self._seal or seal is None:
                self._write_seal(left)
            if not was_closed or not left.backups:
                self.back_up(ledger)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def back_up(self, ledger: Ledger) -> None:
        """Keeps a copy of the ledger as it is now; only the last few are kept.

        Raises:
            StoreError: the ledger is damaged: its copy must not take the place of sound ones.
        """
        digest = self._backups.put(lambda target: self._copy(ledger, target / LEDGER))
        backups = tuple(dict.fromkeys((digest, *self._seal.backups)))[:_KEPT_BACKUPS]
        self._write_seal(replace(self._seal, backups=backups))
        for old in self._backups.digests():
            if old not in backups:
                self._backups.delete(old)

    def close(self, ledger: Ledger) -> None:
        """Closes the ledger, and seals it if it is sound and the disk lets it.

        An open seal is no loss: the next writer looks at the ledger row by row, and backs it up or restores a backup. A
        sealed one promises that all rows are sound, and that there is a backup of this very ledger.
        """
        is_whole = False
        with suppress(StoreError):
            self.back_up(ledger)
            is_whole = ledger.is_in_one_file()  # after the backup, which records damage that it meets
        ledger.close()
        if not is_whole:
            return
        with suppress(StoreError), disk_errors(self._home):
            if not _rows_damage(self._home / LEDGER):  # as it is on the disk now, which SQLite may have read long ago
                # A log that comes back after a power cut would count as a change of the closed ledger.
                log = self._home / SIDE_FILES[0]
                if exists(log):  # a reader has it open
                    disk.fsync_file(log, "empty log")
                else:
                    disk.fsync_directory(self._home, "removed log")
                self._write_seal(replace(self._seal, ledger=file_digest(self._home / LEDGER)))

    def _copy(self, ledger: Ledger, path: Path) -> None:
        ledger.copy_to(path)
        damage = _rows_damage(path)
        if damage:
            raise damaged_ledger(self._home / LEDGER, damage[0])

    def _write_seal(self, seal: Seal) -> None:
        path = self._home / SEAL
        with disk_errors(path):
            if is_directory(path):  # over which no file can be written
                put_aside(path, quarantined(self._home, SEAL))
        replace_file(path, encode_seal(seal))
        self._seal = seal

    def _backups_left(self, seal: Seal) -> tuple[str, ...]:
        """The sound backups, in the order in which they are tried. All are looked at, those that a damaged seal named
        too, so that damaged ones are replaced in time."""
        return tuple(
            digest
            for digest in backups_in_order(self._home, self._backups, seal)
            if self._backups.sound_path(digest, instead="the ledger is backed up again") is not None
        )

    def _fall_back(self, found: LedgerState) -> None:
        """Puts the last sound backup in the place of the ledger, which goes into the quarantine."""
        sealed, damage = found.seal or Seal(None, ()), found.damage[0]
        backups = self._backups_left(sealed)
        if not backups:
            what = f"the ledger {damage}, and no sound backup of it is left"
            raise StoreError(what, fix=NO_BACKUP, where=str(self._home / LEDGER))
        path, kept = self._home / LEDGER, quarantined(self._home, "ledger")
        with disk_errors(self._home):
            is_there = exists(path)
        incident = Incident(
            LEDGER,
            "" if sealed.ledger in (None, _REFUSED) else sealed.ledger,
            f"{damage}; it is now in {QUARANTINE}/{kept.name}" if is_there else damage,
            "its last backup takes its place: what was recorded since is rebuilt",
        )
        restored = self._home / TMP / f"restored-{uuid.uuid4().hex}.sqlite"
        try:
            with disk_errors(self._home):
                disk.copy_file(self._backups.path(backups[0]) / LEDGER, restored, "restored ledger")
                disk.fsync_file(restored, "restored ledger")
                # From here on the ledger counts as damaged, until the incident is recorded in the new one; also if the
                # log is gone and what is left looks sound.
                self._write_seal(Seal(_REFUSED, sealed.backups or backups[:1]))
                # For readers, the ledger stays in its place, too, until another one takes it.
                if is_there and not _is_copied(path, kept):
                    disk.rename(path, kept, "unreadable ledger")
                for name in SIDE_FILES:  # a log of the old ledger must not be read into the new one
                    if exists(self._home / name):
                        kept_log = kept.with_name(kept.name + name.removeprefix(LEDGER))
                        disk.rename(self._home / name, kept_log, "damaged ledger's log")
                disk.fsync_directory(kept.parent, "damaged ledger")
                disk.replace(restored, path, "restored ledger")
                disk.fsync_directory(self._home, "restored ledger")
        finally:
            with suppress(OSError):  # it may be what fills the disk
                if exists(restored):
                    disk.unlink(restored, "unused restored ledger")
        self._incidents.add(incident)


def _is_copied(path: Path, copy: Path) -> bool:
    """Copies a damaged ledger's file durably; False where that is no file, or one that the disk can't read."""
    if not is_file(path):
        return False
    try:
        disk.copy_file(path, copy, "damaged ledger")
        disk.fsync_file(copy, "damaged ledger")
    except OSError as error:
        with suppress(OSError):  # half a copy is worth nothing, and may be what fills the disk
            disk.unlink(copy, "half of a damaged ledger")
        if not is_lost(error):
            raise
        return False
    return True
