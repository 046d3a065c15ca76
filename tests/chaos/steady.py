"""What is the same in every case is done once.

A run that does the same twice writes the same bytes twice, because times and drawn names depend on the case alone. So
two crashes can be seen to have left the same home, from which a run goes on in the same way. And groups have the same
bytes wherever they are: Parquet, about which nothing is found out here, is asked once.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

from chaos.scenario import LOG, PLACE
from reasonmill.store import accounts, steps
from reasonmill.store.disk import Operation
from reasonmill.store.groups import read_groups, write_groups
from reasonmill.store.home import OBJECTS
from reasonmill.store.incidents import Incident
from reasonmill.store.ledger import Ledger
from reasonmill.store.ledger_backup import BACKUPS, SIDE_FILES
from reasonmill.types import Group

ATTEMPT_S = 10_000  # from one start to the next
# What is in the lock counts for nothing once its writer is gone, and SQLite makes the index of its log anew.
OF_NO_WORTH = (f"{PLACE}/lock", *(f"{PLACE}/{name}" for name in SIDE_FILES if name != LOG))
# Sizes of SQLite's log, and where it has what is drawn and the sums over that.
LOG_HEADER, DRAWN_IN_HEADER, FRAME_HEADER, DRAWN_IN_FRAME = 32, slice(16, 32), 24, slice(8, 24)
PAGE_SIZE = slice(8, 12)


@contextmanager
def steady(start: int) -> Iterator[None]:
    """Times, and names that the store draws, depend on the number of the start and on what came before in it."""
    ticks, draws, record = count(start * ATTEMPT_S), count(), Ledger.record_incident

    def now() -> float:
        return float(next(ticks))

    def name() -> uuid.UUID:
        return uuid.UUID(bytes=hashlib.blake2b(f"{start} {next(draws)}".encode(), digest_size=16).digest())

    def record_now(self: Ledger, incident: Incident) -> None:
        record(self, replace(incident, at_s=now()))

    # Incidents have kept the right clock since their class was made.
    clock, names = patch.object(time, "time", now), patch.object(uuid, "uuid4", name)
    with clock, names, patch.object(Ledger, "record_incident", record_now):
        yield


@contextmanager
def groups_known() -> Iterator[None]:
    """Groups are encoded and decoded once, and then known by their content; what can't be decoded is asked again."""
    encoded: dict[str, bytes] = {}
    decoded: dict[bytes, list[Group]] = {}

    def write(path: Path, groups: Sequence[Group]) -> None:
        known = repr(groups)
        if known not in encoded:
            write_groups(path, groups)
            encoded[known] = path.read_bytes()
        path.write_bytes(encoded[known])

    def read(path: Path) -> list[Group]:
        data = path.read_bytes() if path.is_file() else b""
        if data not in decoded:
            decoded[data] = read_groups(path)
        return decoded[data]

    reads = [patch.object(module, "read_groups", read) for module in (accounts, steps)]
    with reads[0], reads[1], patch.object(steps, "write_groups", write):
        yield


def date(operation: Operation) -> None:
    """Gives an object the time of now, once it has its name: the store compares it with other times."""
    if operation.name == "rename object" and operation.target is not None:
        now = time.time()
        os.utime(operation.target, (now, now))


def fingerprint(base: Path) -> str:
    """A digest of all files below a directory, and of when objects were dated: equal ones are the same home."""
    digest = hashlib.blake2b()
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base).as_posix()
        if name in OF_NO_WORTH:
            continue
        if path.is_dir():
            dated = path.stat().st_mtime if path.parent.name in (OBJECTS, BACKUPS) else ""
            digest.update(f"{name}/ {dated}\0".encode())
        else:
            data = path.read_bytes()
            parts = _without_salts(data) if name == f"{PLACE}/{LOG}" else [data]
            digest.update(f"{name} {len(data)}\0".encode() + b"".join(parts))
    return digest.hexdigest()


def _without_salts(log: bytes) -> Iterator[bytes]:
    """A log of SQLite without the salts that it draws and the sums over them; whether a frame has the log's salt
    tells whether it counts."""
    page_size = int.from_bytes(log[PAGE_SIZE], "big")
    header = log[:LOG_HEADER]
    yield header[: DRAWN_IN_HEADER.start]
    salt = header[DRAWN_IN_HEADER][:8]
    for start in range(LOG_HEADER, len(log), FRAME_HEADER + page_size):
        frame = log[start : start + FRAME_HEADER + page_size]
        yield frame[: DRAWN_IN_FRAME.start] + bytes([frame[DRAWN_IN_FRAME][:8] == salt]) + frame[DRAWN_IN_FRAME.stop :]
