"""What must hold of the scenario's home, whatever happened to the process, to the power and to the files."""

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chaos.scenario import LOG, MODEL, MODELS, PLANNED, RUN, SUMMARY, Mark, carry_out, content_digest, mark_of
from reasonmill.errors import StoreError
from reasonmill.store.commit import damaged_files
from reasonmill.store.home import OBJECTS
from reasonmill.store.ledger_backup import BACKUPS, LEDGER, SEAL, Seal, encode_seal, ledger_damage
from reasonmill.store.objects import QUARANTINE, TMP
from reasonmill.store.plans import PLANS, KeptPlans, read_plans
from reasonmill.store.verification import verify_home
from reasonmill.store.views import RUNS

# Columns that are times, or that cover them.
UNEQUAL = ("started_s", "created_s", "finished_s", "at_s", "seal")
# Names of quarantined files are drawn, and damage may be met a second time after a crash.
INCIDENTS = "incidents"
REFUSED = "refused"  # the seal of a ledger that is being replaced

Rows = dict[str, list[tuple[Any, ...]]]


class Contents(NamedTuple):
    """All that a home holds.

    Args:
        rows: those of the ledger, without times.
        ledger, log, seal: bytes of the files; None for one that is missing.
        row_damage: what a look at the rows of the ledger finds.
        objects, backups: the files of each that are not what its manifest says.
        views: what is below runs/ for somebody to look at; what is half made has a name that begins with a dot.
        plans: what is kept of plans; None where the file is missing.
        quarantine: digests of all files in it.
        marks: the damage that was done.
    """

    rows: Rows
    ledger: bytes | None
    log: bytes | None
    seal: bytes | None
    row_damage: list[str]
    objects: dict[str, list[str]]
    backups: dict[str, list[str]]
    views: dict[str, bytes | None]
    plans: KeptPlans | None
    quarantine: set[str]
    marks: list[Mark]


def contents(home_path: Path, parts: range) -> Contents:
    """What a home holds after the last of these parts, or in it."""
    ledger, log, seal = (_bytes(home_path / name) for name in (LEDGER, LOG, SEAL))
    rows, row_damage = look_at_ledger(home_path)
    quarantined = [path for path in (home_path / QUARANTINE).rglob("*") if path.is_file()]
    return Contents(
        rows,
        ledger,
        log,
        seal,
        row_damage,
        objects_of(home_path / OBJECTS),
        objects_of(home_path / BACKUPS),
        views_of(home_path / RUNS),
        read_plans(home_path) if (home_path / PLANS).exists() else None,
        {content_digest(path.read_bytes()) for path in quarantined},
        [mark for part in parts for mark in marks_in(_bytes(mark_of(home_path, part)))],
    )


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def marks_in(data: bytes | None) -> list[Mark]:
    return [] if data is None else [Mark(*fields) for fields in json.loads(data)]


def ledger_rows(home_path: Path) -> Rows:
    """Rows of all tables without their times; no rows where there is no ledger, or one that was only just begun."""
    if not (home_path / LEDGER).exists():
        return {}
    with _copy_of_ledger(home_path) as copy:
        return _rows_of(f"{(copy / LEDGER).absolute().as_uri()}?mode=ro")


def look_at_ledger(home_path: Path) -> tuple[Rows, list[str]]:
    """Rows as `ledger_rows` has them, and what a look at each finds, if there are tables already."""
    if not (home_path / LEDGER).exists():
        return {}, []
    with _copy_of_ledger(home_path) as copy:
        rows = _rows_of(f"{(copy / LEDGER).absolute().as_uri()}?mode=ro")
        return rows, ledger_damage(copy, None) if rows else []


@contextlib.contextmanager
def _copy_of_ledger(home_path: Path) -> Iterator[Path]:
    """A directory with the ledger alone: SQLite makes files beside what it reads, which are none of the store's."""
    with tempfile.TemporaryDirectory(dir=home_path.parent) as copy:
        for name in (LEDGER, LOG):
            if (home_path / name).exists():
                shutil.copyfile(home_path / name, Path(copy, name))
        yield Path(copy)


def _rows_of(uri: str) -> Rows:
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        kept: dict[str, list[str]] = {}
        for table, column in database.execute(
            "SELECT made.name, of.name FROM sqlite_master AS made, pragma_table_info(made.name) AS of "
            "WHERE made.type = 'table' ORDER BY made.name, of.cid"
        ):
            kept.setdefault(table, [])
            if column not in UNEQUAL:
                kept[table].append(column)
        rows: Rows = {
            table: sorted(database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall(), key=repr)
            for table, columns in kept.items()
        }
    return rows


def objects_of(directory: Path) -> dict[str, list[str]]:
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return {name: damaged_files(directory / name, name) for name in names}


def views_of(directory: Path) -> dict[str, bytes | None]:
    """None stands for a directory."""
    paths = list(directory.rglob("*")) if directory.is_dir() else []
    names = {path: path.relative_to(directory).as_posix() for path in paths}
    return {
        name: path.read_bytes() if path.is_file() else None
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


def referred(rows: Rows) -> set[str]:
    """Digests of the objects that the ledger says are there: artifacts but for bases, groups and states."""
    artifacts = {row[1] for row in rows.get("artifacts", []) if row[2] != "base"}
    groups = {row[2] for row in rows.get("steps", []) if row[2] is not None}
    return artifacts | groups | {row[2] for row in rows.get("states", [])}


def wrong(found: Contents) -> Iterator[str]:
    """What is wrong with a home that a crash left, one line each, whatever the run had come to."""
    damaged = {mark.file for mark in found.marks}
    for place, objects in ((OBJECTS, found.objects), (BACKUPS, found.backups)):
        files = {f"{place}/{name}/{file}" for name, files in objects.items() for file in files}
        yield from (f"{file} is not what was committed" for file in sorted(files - damaged))
    for digest in sorted(referred(found.rows) - found.objects.keys()):
        if not any(file.startswith(f"{OBJECTS}/{digest}/") for file in damaged):
            yield f"the ledger refers to object {digest[:12]}, which is not there"
    yield from _wrong_ledger(found, damaged)
    for file, what in incidents_in(found.rows):
        # Whether it is the view or the ledger's backup that is wrong about it can't be told.
        is_doubtful = what.endswith("newer than the backup of the ledger") and LEDGER in damaged
        if not is_doubtful and not any(_covers(file, name) for name in damaged):
            yield f"nobody damaged {file}, and an incident says that it {what}"
    if found.plans not in (None, PLANNED):
        yield "what is kept of plans is torn"
    yield from _lost(found)
    yield from _wrong_views(found, damaged)


def _wrong_ledger(found: Contents, damaged: set[str]) -> Iterator[str]:
    """The ledger, its seal and its backups must agree, unless they were damaged and this was not met yet."""
    rotten = {mark.digest for mark in found.marks if mark.file in (LEDGER, LOG, SEAL)}

    def is_rotten(data: bytes | None) -> bool:
        return data is not None and content_digest(data) in rotten

    if found.seal is not None and not is_rotten(found.seal):
        seal = seal_in(found.seal)
        if seal is None:
            yield "the seal is not what was written"
            return
        for digest in seal.backups:
            if digest not in found.backups and not any(file.startswith(f"{BACKUPS}/{digest}/") for file in damaged):
                yield f"the seal knows a backup {digest[:12]} that is not there"
        if seal.ledger == REFUSED:
            if LEDGER not in damaged:
                yield "the ledger is refused, and was not damaged"
            if not any(not found.backups.get(digest, [""]) for digest in seal.backups):
                yield "the ledger is refused, and there is no sound backup"
            return
        if found.ledger is None:
            yield "the ledger is missing"
        is_closed = seal.ledger is not None and not is_rotten(found.ledger) and not is_rotten(found.log)
        if is_closed and found.ledger is not None:
            if content_digest(found.ledger) != seal.ledger:
                yield "the ledger is sealed as closed, and is another one"
            if found.log:
                yield "the ledger is sealed as closed, and its log would change it"
        if not found.rows and not is_rotten(found.ledger):
            yield "the ledger has a seal, and no tables"
    elif found.backups and found.ledger is None:
        yield "the ledger is missing"
    if not is_rotten(found.ledger):
        yield from found.row_damage


def seal_in(data: bytes) -> Seal | None:
    """The seal of these bytes; None if they are none."""
    try:
        fields = json.loads(data.splitlines()[0])
        seal = Seal(fields["ledger"], tuple(fields["backups"]))
    except (ValueError, LookupError, TypeError):
        return None
    return seal if encode_seal(seal) == data else None


def incidents_in(rows: Rows) -> list[tuple[str, str]]:
    """File and what was wrong with it, of all incidents."""
    return [(row[1], row[3]) for row in rows.get(INCIDENTS, [])]


def _covers(told: str, file: str) -> bool:
    """Whether an incident with one name speaks of a file; where an object is missing, it has the directory's."""
    return file == told or file.startswith(f"{told}/")


def _lost(found: Contents) -> Iterator[str]:
    """What was damaged is never deleted: it is where it was, or in the quarantine. Seals and views are written anew."""
    for mark in found.marks:
        place, *below = mark.file.split("/")
        if place in (OBJECTS, BACKUPS):
            objects = found.objects if place == OBJECTS else found.backups
            stays = "/".join(below[1:]) in objects.get(below[0], [])
        elif place in (LEDGER, LOG):
            data = found.ledger if place == LEDGER else found.log
            stays = data is not None and content_digest(data) == mark.digest
        else:
            continue
        if not stays and mark.digest not in found.quarantine:
            yield f"the damaged {mark.file} is gone"


def _wrong_views(found: Contents, damaged: set[str]) -> Iterator[str]:
    summary = found.views.get(f"{RUN}/{SUMMARY}")
    if summary is not None and f"{RUNS}/{RUN}/{SUMMARY}" not in damaged:
        try:
            json.loads(summary)
        except ValueError:
            yield "the summary is torn"
    # Half a model in its place would never be made again.
    place = f"{RUN}/{MODEL}"
    model = {name.removeprefix(place): data for name, data in found.views.items() if name.startswith(place)}
    if model and model not in MODELS:
        yield "the view of the model is not whole"


def unfinished(found: Contents, expected: Contents, home_path: Path, known_objects: frozenset[str]) -> Iterator[str]:
    """How a home differs from one whose run was not interrupted, after the run went on to the same place.

    An object that was forgotten and not yet removed may be left over; it must be one that the run had made.
    """
    for table in sorted((found.rows.keys() | expected.rows.keys()) - {INCIDENTS}):
        if found.rows.get(table) != expected.rows.get(table):
            yield f"table {table} is {found.rows.get(table)} and not {expected.rows.get(table)}"
    missing, foreign = expected.objects.keys() - found.objects.keys(), found.objects.keys() - known_objects
    if missing or foreign:
        yield f"objects {sorted(missing)} are missing, and the run did not make {sorted(foreign)}"
    if found.views != expected.views:
        yield f"the views are {found.views} and not {expected.views}"
    if found.plans != expected.plans:
        yield f"the plans are {found.plans} and not {expected.plans}"
    leftovers = [path.name for path in (home_path / TMP).iterdir()]
    leftovers += [path.name for path in (home_path / RUNS / RUN).iterdir() if path.name.startswith(".")]
    if leftovers:
        yield f"left over: {leftovers}"
    yield from _untold(found, home_path)
    yield from (f"verify finds that {finding.file} {finding.what}" for finding in verify_home(home_path).problems)


def _untold(found: Contents, home_path: Path) -> Iterator[str]:
    """Damage that no incident tells of: none in the ledger, and none in those that are in the quarantine."""
    told = incidents_in(found.rows)
    for path in (home_path / QUARANTINE).glob("ledger-*"):
        with contextlib.suppress(sqlite3.DatabaseError):  # damaged, or half of one: its copying was cut off
            told += incidents_in(_rows_of(f"{path.absolute().as_uri()}?mode=ro&immutable=1"))
    files = {file for file, _ in told}
    for mark in found.marks:
        speaks_for = {mark.file, LEDGER} if mark.file in (LOG, SEAL) else {mark.file}
        # A damaged seal makes way for one that refuses the damaged ledger, before there is a ledger to record it in.
        if not any(_covers(file, name) for file in files for name in speaks_for):
            yield f"nothing tells that {mark.file} was damaged"


def continued(home_path: Path, parts: range, expected: Contents, known_objects: frozenset[str]) -> Iterator[str]:
    """What is wrong after the run goes on from where a crash left it, in the first of these parts, to their end."""
    try:
        carry_out(home_path, parts)
    except (StoreError, OSError, sqlite3.Error, AssertionError) as error:
        yield f"the run can't go on: {error!r}"
        return
    found = contents(home_path, range(parts.stop))
    yield from wrong(found)
    yield from unfinished(found, expected, home_path, known_objects)


def reported(find: Callable[[], Iterator[str]]) -> Sequence[str]:
    """All problems that `find` yields; an error of its own is one, too."""
    try:
        return list(find())
    except Exception as error:
        return [f"the home can't be looked at: {error!r}"]
