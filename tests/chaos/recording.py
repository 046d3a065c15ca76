"""What happens to a home's disk, noted operation by operation: what `disk_model` works out the states of."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from chaos import condition, scenario
from chaos.sabotage import NEW_SEAL
from reasonmill.store.disk import Operation
from reasonmill.store.ledger_backup import BACKUPS, LEDGER, SIDE_FILES
from reasonmill.store.views import RUNS

LEDGER_PATH, LOG_PATH, INDEX_PATH = (f"{scenario.PLACE}/{name}" for name in (LEDGER, *SIDE_FILES))
SUMMARY_PATH = f"{scenario.PLACE}/{RUNS}/{scenario.RUN}/{scenario.SUMMARY}"
ROT = "rot"


class LedgerState(NamedTuple):
    ledger: bytes | None
    log: bytes | None
    rows: condition.Rows


class Event(NamedTuple):
    """An operation, or rot, as far as the model must know of it; paths are below the directory of all.

    Args:
        label: the operation's name, with what it is of where several have the same.
        part: the scenario's.
        files: what was written, or the ledger's file that is moved or replaced.
        kept: the ledger's state that is certain when its log has just been moved into its file; it has its old log.
        newest: the ledger's state afterwards.
        summary: that of the run's views.
    """

    label: str
    verb: str
    path: str
    target: str | None
    part: int
    files: tuple[tuple[str, bytes | None], ...]
    kept: int | None
    newest: int
    summary: bytes | None


class Recorder:
    """Stands in for the store's operations: performs them, leaves real fsyncs out, and notes all that happens."""

    def __init__(self, base: Path, part: int = 0) -> None:
        self._base = base
        self._home = base / scenario.PLACE
        self.part = part
        self.events: list[Event] = []
        self.ledger = [LedgerState(None, None, {})]
        self.made: set[str] = set()  # names of objects

    def __call__(self, operation: Operation, perform: Callable[[], object]) -> None:
        self._look_at_ledger()
        files = self._moved(operation)
        before = self.ledger[-1]
        if not operation.verb.startswith("fsync"):
            perform()
        kept = None
        if operation.verb in ("empty log", "close") and before.log:
            kept = self._append(self._bytes(LEDGER_PATH), before.log)
        self._look_at_ledger()
        if operation.verb in ("write", "copy"):
            files = self._read([operation.path])
        elif operation.verb == "fill":
            files = self._read(sorted(operation.path.rglob("*")))
        if operation.name == "rename object" and operation.target is not None:
            self.made.add(operation.target.name)
        target = self._name(operation.target) if operation.target is not None else None
        self._add(_label(operation), operation.verb, self._name(operation.path), target, files, kept)

    def rot(self, path: Path) -> None:
        """Notes that a file holds something else, is new, or is gone, without the store; also a directory that is."""
        self._look_at_ledger()
        is_seen = self._name(path) in (LEDGER_PATH, LOG_PATH) or not path.exists()
        files = () if is_seen else self._read([path])
        self._add(ROT, ROT, self._name(path), None, files, None)

    def _add(
        self,
        label: str,
        verb: str,
        path: str,
        target: str | None,
        files: tuple[tuple[str, bytes | None], ...],
        kept: int | None,
    ) -> None:
        newest, summary = len(self.ledger) - 1, self._bytes(SUMMARY_PATH)
        self.events.append(Event(label, verb, path, target, self.part, files, kept, newest, summary))

    def _moved(self, operation: Operation) -> tuple[tuple[str, bytes | None], ...]:
        """The ledger's file that an operation moves or replaces; SQLite made it, so the model has no name of it."""
        moved = [path for path in (operation.path, operation.target) if path is not None]
        names = [self._name(path) for path in moved if operation.verb in ("rename", "replace")]
        of_ledger = [name for name in names if name in (LEDGER_PATH, LOG_PATH, INDEX_PATH)]
        return tuple((name, data) for name in of_ledger if (data := self._bytes(name)) is not None)

    def _look_at_ledger(self) -> None:
        self._append(self._bytes(LEDGER_PATH), self._bytes(LOG_PATH))

    def _append(self, ledger: bytes | None, log: bytes | None) -> int:
        """Number of the ledger's newest state, which is this one."""
        newest = self.ledger[-1]
        if (ledger, log) != (newest.ledger, newest.log):
            self.ledger.append(LedgerState(ledger, log, condition.ledger_rows(self._home)))
        return len(self.ledger) - 1

    def _read(self, paths: Iterable[Path]) -> tuple[tuple[str, bytes | None], ...]:
        return tuple((self._name(path), path.read_bytes() if path.is_file() else None) for path in paths)

    def _bytes(self, name: str) -> bytes | None:
        path = self._base / name
        return path.read_bytes() if path.is_file() else None

    def _name(self, path: Path) -> str:
        return path.relative_to(self._base).as_posix()


def _label(operation: Operation) -> str:
    path = operation.path
    if path.name == NEW_SEAL or (operation.name == "fsync directory views" and path.name == Path(scenario.PLACE).name):
        return f"{operation.name} of the seal"
    return f"{operation.name} of backups" if path.name == BACKUPS else operation.name
