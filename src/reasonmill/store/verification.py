"""Verification: a look at every byte of a home, which changes nothing and needs no lock."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from reasonmill.store.accounts import misaccounts
from reasonmill.store.commit import disk_errors
from reasonmill.store.home import HOME_ENTRIES, OBJECTS, entries, require_home
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_backup import (
    BACKUPS,
    LEDGER,
    NO_BACKUP,
    SEAL,
    LedgerState,
    look_at_ledger,
    open_for_reading,
)
from reasonmill.store.looking import exists, is_directory
from reasonmill.store.objects import QUARANTINE, TMP, ObjectStore
from reasonmill.store.views import RUNS, damaged_views, file_names

_RERUN = "run the recipe again"
# A writer that commits all the time can keep two looks from agreeing; what every look finds stays in the end.
_LOOKS = 5


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Args:
        file: its path below the home.
        what: what is wrong with it, to follow the file's name.
        recovery: what brings it back.
        is_problem: False for what does no harm, such as leftovers of a run that was killed.
    """

    file: str
    what: str
    recovery: str
    is_problem: bool = True


@dataclass(frozen=True)
class Inspection:
    """A home that is looked at.

    Args:
        found: what is wrong with the ledger and its seal.
        ledger: the ledger; if it is damaged, the backup that would take its place, and None without one.
        files: those that are to be read, by their paths below the home; None for all.
        on_object: called with (objects that were read, objects in all).
    """

    home: Path
    objects: ObjectStore
    backups: ObjectStore
    found: LedgerState
    ledger: Ledger | None
    files: frozenset[str] | None
    on_object: Callable[[int, int], None]

    @cached_property
    def used(self) -> Mapping[str, str]:
        """What stages need: by digest, what it is."""
        return dict(_used_objects(self.ledger)) if self.ledger is not None else {}

    def is_read(self, file: str) -> bool:
        """Whether a file is to be read, or a file of this directory."""
        return self.files is None or any(f"{name}/".startswith(f"{file}/") for name in self.files)


Check = Callable[[Inspection], Iterable[Finding]]


@dataclass(frozen=True)
class Verification:
    """What `verify_home` found, and how many objects it read."""

    findings: tuple[Finding, ...]
    num_objects: int

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_problem)


def verify_home(path: Path, on_object: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Looks at all of a home, also while a run writes to it.

    What a writer changes meanwhile can seem wrong for a moment: only what two looks in a row find counts. A later look
    reads only the files that the one before found damaged.

    Args:
        on_object: called with (objects that were read, objects in all).

    Raises:
        StoreError: there is no home, or one of another version of reasonmill.
    """
    require_home(path)
    before, num_objects = _look(path, None, on_object)
    found = before
    for _ in range(_LOOKS - 1):
        if not before:
            break
        again, _ = _look(path, frozenset(finding.file for finding in before if finding.is_problem), on_object)
        found = [finding for finding in again if finding in before]
        if again == before:
            break
        before = again
    return Verification(tuple(found), num_objects)


def check_ledger(inspection: Inspection) -> Iterator[Finding]:
    """The ledger's file, its seal and its backups."""
    if inspection.found.is_seal_damaged:
        yield Finding(SEAL, "is damaged", f"{_RERUN}: the ledger is checked and sealed again")
    fall_back = f"{_RERUN}: it restores the last backup of the ledger, and rebuilds what that lacks"
    way_out = fall_back if inspection.ledger is not None else f"no sound backup of it is left: {NO_BACKUP}"
    yield from (Finding(LEDGER, what, way_out) for what in inspection.found.damage)
    for digest in inspection.backups.digests():
        if inspection.is_read(f"{BACKUPS}/{digest}"):
            for name in inspection.backups.damaged_files(digest):
                yield Finding(f"{BACKUPS}/{digest}/{name}", "is damaged", f"{_RERUN}: the ledger is backed up again")
    for digest in inspection.found.seal.backups if inspection.found.seal is not None else ():
        if not inspection.backups.exists(digest):
            yield Finding(f"{BACKUPS}/{digest}", "is missing", f"{_RERUN}: the ledger is backed up again")


def check_objects(inspection: Inspection) -> Iterator[Finding]:
    """Every byte of every object."""
    digests = [digest for digest in inspection.objects.digests() if inspection.is_read(f"{OBJECTS}/{digest}")]
    for done, digest in enumerate(digests, start=1):
        for name in inspection.objects.damaged_files(digest):
            yield Finding(f"{OBJECTS}/{digest}/{name}", "is damaged", _recovery(inspection, digest))
        inspection.on_object(done, len(digests))


def check_references(inspection: Inspection) -> Iterator[Finding]:
    """Every digest of the ledger: its object must be there."""
    if inspection.ledger is None or inspection.found.damage:  # a backup may know states that are gone by now
        return
    for digest, user in inspection.used.items():
        if not inspection.objects.exists(digest):
            yield Finding(f"{OBJECTS}/{digest}", f"is missing, the {user}", _remade(user))
    for artifact in inspection.ledger.artifacts():
        # Bases come from elsewhere; an artifact that no finished stage has was rebuilt with different content.
        is_needed = artifact.kind == "base" or artifact.digest in inspection.used
        if not is_needed and not inspection.objects.exists(artifact.digest):
            what = f"is missing, an earlier {artifact.kind} of stage {artifact.stage!r}"
            yield Finding(f"{OBJECTS}/{artifact.digest}", what, "no stage needs it any more", is_problem=False)


def check_steps(inspection: Inspection) -> Iterator[Finding]:
    """The steps of each stage: none is missing between the first and the last."""
    if inspection.ledger is None:
        return
    for key in inspection.ledger.begun_stages():
        steps = [step for step, _ in inspection.ledger.steps(key)]
        missing = sorted(set(range(len(steps))) - set(steps))
        if missing:
            yield Finding(LEDGER, f"lacks step {missing[0]} of stage key {key[:12]}", "use a copy of the home")


def check_accounts(inspection: Inspection) -> Iterator[Finding]:
    """The rollouts of each step that was trained on: each has one fate, and the committed groups say which."""
    if inspection.ledger is None or not inspection.is_read(LEDGER):
        return
    for key, step, complaint in misaccounts(inspection.ledger, inspection.objects):
        what = f"is wrong about step {step} of stage key {key[:12]}: {complaint}"
        yield Finding(LEDGER, what, "use a copy of the home, or run the recipe with another seed")


def check_views(inspection: Inspection) -> Iterator[Finding]:
    """The files of each run's directory."""
    if inspection.ledger is None:
        return
    for run in inspection.ledger.runs():
        directory = inspection.home / RUNS / run.name
        recorded = inspection.ledger.views(run.name)
        looked_at = {name: it for name, it in recorded.items() if inspection.is_read(f"{RUNS}/{run.name}/{name}")}
        for name in damaged_views(directory, looked_at):
            what = "is damaged" if exists(directory / name) else "is missing"
            recovery = f"run the recipe {run.name!r} again with --repair: it is written again"
            yield Finding(f"{RUNS}/{run.name}/{name}", what, recovery)
        if recorded:
            for name in file_names(directory):
                if name not in recorded:
                    file = f"{RUNS}/{run.name}/{name}"
                    yield Finding(file, "is not of reasonmill", "move it elsewhere", is_problem=False)
        elif is_directory(directory):
            what = "was not written to its end, or is not what a backup of the ledger knew: it can't be checked"
            yield Finding(f"{RUNS}/{run.name}", what, f"{_RERUN}: it is written again", is_problem=False)


def check_leftovers(inspection: Inspection) -> Iterator[Finding]:
    """What is in the home and belongs to nothing."""
    for path in entries(inspection.home / TMP):
        recovery = "`reasonmill gc` or the next run removes it"
        yield Finding(f"{TMP}/{path.name}", "was left by a run that was cut off", recovery, is_problem=False)
    for store, room in ((inspection.objects, OBJECTS), (inspection.backups, BACKUPS)):
        strange = {path.name for path in entries(inspection.home / room)} - set(store.digests())
        for name in sorted(strange):
            yield Finding(f"{room}/{name}", "is not named like an object", "move it elsewhere")
    for path in entries(inspection.home):
        if path.name not in HOME_ENTRIES:
            yield Finding(path.name, "is not of reasonmill", "move it elsewhere", is_problem=False)
    for path in entries(inspection.home / QUARANTINE):
        what = "was put aside because it was damaged"
        yield Finding(f"{QUARANTINE}/{path.name}", what, "delete it if you do not need it", is_problem=False)


def list_incidents(inspection: Inspection) -> Iterator[Finding]:
    """What was damaged before, and what was done about it."""
    for incident in inspection.ledger.incidents() if inspection.ledger is not None else ():
        when = datetime.fromtimestamp(incident.at_s).astimezone().isoformat(timespec="seconds")
        yield Finding(incident.file, f"{incident.what} (met {when})", incident.done, is_problem=False)


CHECKS: tuple[Check, ...] = (
    check_ledger,
    check_references,
    check_steps,
    check_accounts,
    check_views,
    check_leftovers,
    check_objects,
    list_incidents,
)


def _look(home: Path, files: frozenset[str] | None, on_object: Callable[[int, int], None]) -> tuple[list[Finding], int]:
    """What all checks find, reading these files or all, and how many objects there are."""
    objects = ObjectStore(home / OBJECTS, write=False)
    backups = ObjectStore(home / BACKUPS, write=False)
    with disk_errors(home):
        found = look_at_ledger(home)
        with _readable_ledger(home, found) as ledger:
            inspection = Inspection(home, objects, backups, found, ledger, files, on_object)
            findings = [finding for check in CHECKS for finding in check(inspection)]
    return findings, len(objects.digests())


def _readable_ledger(home: Path, found: LedgerState) -> AbstractContextManager[Ledger | None]:
    """The ledger, or in place of a damaged one the backup that a run would take; None without one."""
    if not found.damage:
        return closing(open_for_reading(home))
    if found.backup is None:
        return nullcontext()
    return closing(Ledger(found.backup / LEDGER, write=False, is_final=True))


def _used_objects(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """What stages need, as (digest, what it is)."""
    known = [(run.name, stage) for run in ledger.runs() for stage in (*run.earlier, *run.stages)]
    names = {stage.key: f"stage {stage.name!r} of run {run!r}" for run, stage in known}
    for key in ledger.begun_stages():
        # What a judge said is beside its stage.
        name = names.get(key.split("/")[0], f"the stage with key {key[:12]}")
        yield from ((digest, f"state before step {step} of {name}") for step, digest in ledger.states(key))
        for step, digest in ledger.steps(key):
            if digest is not None:
                yield digest, f"groups of step {step} of {name}"
    for record in ledger.stages():
        yield record.artifact.digest, f"{record.artifact.kind} of stage {record.name!r} of run {record.run!r}"


def _recovery(inspection: Inspection, digest: str) -> str:
    """What brings a damaged object back."""
    if digest in inspection.used:
        return _remade(inspection.used[digest])
    if inspection.found.damage:
        return f"{_RERUN} with --repair: what needs it is not known, as the ledger is damaged, and is rebuilt then"
    old = "unless it is from before a backup took the place of the ledger; then move it elsewhere"
    return f"nothing needs it: `reasonmill gc` removes it, {old}"


def _remade(user: str) -> str:
    return f"run the recipe that needs the {user} again with --repair: it resumes from what is good, and rebuilds this"
