"""What a disk may hold when the power goes: the model behind `power_loss`.

- A file's bytes are certain after an fsync of the file; before, it may have its old bytes or none, the first half of
  its new ones, zeros in their place, or all of them.
- A name that is made, moved or removed is certain after an fsync of its directory, and of either directory for a move
  between two; before, it may have happened or not, whatever happened to other names, but not before an earlier
  change of the same name.
- The ledger is as after the last commit that waited for the disk, or as after any later one, or has a torn log.
  SQLite's own fsyncs are believed, and so is that it makes the names of the files that it makes durable with them.
- A log that was moved into the ledger's file may come back until it has been fsynced, or its directory if it is gone:
  SQLite fsyncs the file, but not the log once it is empty.
- What rots is certain at once.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple

from chaos import condition, scenario
from chaos.crash_points import drawn, half_of_the_change
from chaos.sabotage import NEW_SEAL
from reasonmill.store.disk import Operation
from reasonmill.store.home import TMP
from reasonmill.store.ledger_backup import BACKUPS, LEDGER, SIDE_FILES
from reasonmill.store.objects import QUARANTINE

ALL_SUBSETS = 5  # pending operations up to which every legal choice of them is taken
NUM_DRAWN = 6  # choices that are drawn where there are more
LEDGER_PATH, LOG_PATH, INDEX_PATH = (f"{scenario.PLACE}/{name}" for name in (LEDGER, *SIDE_FILES))
SUMMARY_PATH = f"{scenario.PLACE}/runs/{scenario.RUN}/{scenario.SUMMARY}"
ROOT = 0  # the directory above all, which was there before
ROT = "rot"

Tree = dict[str, bytes | None]  # files by their paths; None for a directory


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

    def __init__(self, base: Path, home: Path) -> None:
        self._base = base
        self._home = home
        self.part = 0
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
        if operation.verb in ("write", "copy", "create"):
            files = self._read([operation.path])
        elif operation.verb == "fill":
            files = self._read(sorted(operation.path.rglob("*")))
        if operation.name == "rename object" and operation.target is not None:
            self.made.add(operation.target.name)
        target = self._name(operation.target) if operation.target is not None else None
        self._add(_label(operation), operation.verb, self._name(operation.path), target, files, kept)

    def rot(self, path: Path) -> None:
        """Notes that a file holds something else, is new, or is gone, without the store."""
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
        return tuple((name, self._bytes(name)) for name in names if name in (LEDGER_PATH, LOG_PATH, INDEX_PATH))

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


class Change(NamedTuple):
    """A change of names: `node` gets the name `new`, and loses `old`; None for what is made or removed."""

    node: int
    old: tuple[int, str] | None
    new: tuple[int, str] | None

    @property
    def names(self) -> set[tuple[int, str]]:
        return {name for name in (self.old, self.new) if name is not None}


class Changes:
    """Changes in their order, and for each the earlier ones that it can't do without: those of its names."""

    def __init__(self) -> None:
        self.all: list[Change] = []
        self._needed: list[frozenset[int]] = []
        self._latest: dict[tuple[int, str], int] = {}  # by the name

    def append(self, change: Change) -> None:
        number = len(self.all)
        self.all.append(change)
        earlier = [self._needed[self._latest[name]] for name in change.names if name in self._latest]
        self._needed.append(frozenset({number}).union(*earlier))
        self._latest |= dict.fromkeys(change.names, number)

    def with_earlier(self, chosen: Iterable[int]) -> frozenset[int]:
        """The chosen changes and all that have to come before them."""
        return frozenset().union(*(self._needed[number] for number in chosen))

    def without(self, dropped: int, pending: Iterable[int]) -> set[int]:
        """The pending changes but one, and but those that can't be without it."""
        return {number for number in pending if dropped not in self._needed[number]}


@dataclass
class FileBytes:
    """All that a file held one after the other; what is certain is `versions[synced]`, or no bytes where it is -1."""

    versions: list[bytes] = field(default_factory=list)
    synced: int = -1


class Moment(NamedTuple):
    """Between two operations: what has been done, and what of it is certain."""

    after: str  # the operation's label
    part: int
    num_changes: int
    certain: frozenset[int]  # numbers of changes
    files: dict[int, tuple[int, int]]  # for each: the certain and the newest version
    database: int | None  # the node of the ledger's file, where the store has put one in its place
    ledger: tuple[int, int]  # the certain and the newest state
    accepted: int  # the ledger's state that the store has promised
    summaries: tuple[int, int]  # the promised and the newest one
    put_aside: frozenset[str]  # what the store has promised to be in the quarantine


class Disk:
    """What is certain of all that was recorded, moment for moment.

    Args:
        events: what happened.
        ledger: the states that the events speak of.
        forgotten: the label of operations whose fsync is left out.
    """

    def __init__(self, events: Iterable[Event], ledger: list[LedgerState], forgotten: str | None = None) -> None:
        self.ledger = ledger
        self._forgotten = forgotten
        self._entries: dict[int, dict[str, int]] = {ROOT: {}}  # as they are now
        self._certain: set[int] = set()
        self._database: int | None = None
        self._ledger_certain = 0
        self._accepted = 0
        self._summary_accepted = 0
        self._put_aside: frozenset[str] = frozenset()
        self.directories = {ROOT}
        self.changes = Changes()
        self.worthless: set[int] = set()  # changes of what is on its way out
        self.files: dict[int, FileBytes] = {}
        self.summaries: list[bytes | None] = [None]
        self.moments: list[Moment] = []
        for event in events:
            self._note(event)
            self._note_ledger(event)
            self._note_promises(event)
            if event.verb == ROT:  # in the midst of which there is no power cut
                continue
            files = {node: (file.synced, len(file.versions) - 1) for node, file in self.files.items()}
            self.moments.append(
                Moment(
                    event.label,
                    event.part,
                    len(self.changes.all),
                    frozenset(self._certain),
                    files,
                    self._database,
                    (self._ledger_certain, event.newest),
                    self._accepted,
                    (self._summary_accepted, len(self.summaries) - 1),
                    self._put_aside,
                )
            )

    def _note(self, event: Event) -> None:
        """Files and names."""
        is_forgotten = event.label == self._forgotten
        match event.verb:
            case "write" | "copy" | "create" | "fill":
                for name, data in event.files:
                    self._write(name, data)
            case "rot":
                for name, data in event.files:
                    self._hold(name, data)
                if not event.files and event.path not in (LEDGER_PATH, LOG_PATH):
                    self._certain.add(len(self.changes.all))
                    self._move(self._place(event.path), None)
            case "make directory":
                self._write(event.path, None)
            case "rename" | "replace":
                assert event.target is not None
                for name, data in event.files:
                    self._hold(name, data)
                node = self._move(self._place(event.path), self._place(event.target))
                if event.target == LEDGER_PATH:
                    self._database = node
            case "unlink" | "remove directory":
                if event.path.startswith(f"{scenario.PLACE}/{TMP}/"):
                    self.worthless.add(len(self.changes.all))
                self._move(self._place(event.path), None)
            case "fsync" if not is_forgotten and event.path != LOG_PATH:
                file = self.files[self._node(event.path)]
                file.synced = len(file.versions) - 1
            case "fsync directory" if not is_forgotten:
                self._sync_directory(self._node(event.path))

    def _note_ledger(self, event: Event) -> None:
        """What is certain of the ledger, and what the store has promised."""
        newest, is_forgotten = event.newest, event.label == self._forgotten
        if event.verb in ("start log", "commit"):
            self._accepted = newest
            if not is_forgotten:
                self._ledger_certain = newest
        elif event.kept is not None:
            self._accepted = self._ledger_certain = event.kept
        elif event.verb == ROT:
            self._accepted = self._ledger_certain = newest
        elif event.target == LEDGER_PATH or (event.path == LOG_PATH and not is_forgotten):
            # Another file, whose fsync and name count; or the log is fsynced, or moved under a name that counts.
            self._ledger_certain = newest
        elif (event.verb, event.path) == ("fsync directory", scenario.PLACE) and self.ledger[newest].log is None:
            self._ledger_certain = self._ledger_certain if is_forgotten else newest

    def _note_promises(self, event: Event) -> None:
        if event.summary != self.summaries[-1]:
            self.summaries.append(event.summary)
        if event.label == "fsync directory views" or event.verb == ROT:
            self._summary_accepted = len(self.summaries) - 1
        if event.verb == "fsync directory" and event.path == f"{scenario.PLACE}/{QUARANTINE}":
            self._put_aside = frozenset(self._entries[self._node(event.path)])

    def _write(self, name: str, data: bytes | None) -> int:
        """Gives a file these bytes, or makes a directory; returns its node."""
        *above, last = name.split("/")
        directory = ROOT
        for number, part in enumerate(above):
            if part not in self._entries[directory]:  # rot makes them, too
                self._write("/".join(above[: number + 1]), None)
            directory = self._entries[directory][part]
        node = self._entries[directory].get(last)
        if node is None:
            node = len(self.directories) + len(self.files)
            self._entries[directory][last] = node
            self.changes.append(Change(node, None, (directory, last)))
            if data is None:
                self.directories.add(node)
                self._entries[node] = {}
            else:
                self.files[node] = FileBytes()
        if data is not None:
            self.files[node].versions.append(data)
        return node

    def _hold(self, name: str, data: bytes | None) -> None:
        """Gives a file bytes that are certain, and so is its name: it rotted, or SQLite wrote it."""
        if data is None:
            return
        first = len(self.changes.all)
        file = self.files[self._write(name, data)]
        file.synced = len(file.versions) - 1
        self._certain |= set(range(first, len(self.changes.all)))

    def _move(self, old: tuple[int, str], new: tuple[int, str] | None) -> int:
        node = self._entries[old[0]].pop(old[1])
        if new is not None:
            self._entries[new[0]][new[1]] = node
        self.changes.append(Change(node, old, new))
        return node

    def _sync_directory(self, node: int) -> None:
        ours = {n for n, change in enumerate(self.changes.all) if any(name[0] == node for name in change.names)}
        self._certain |= self.changes.with_earlier(ours)

    def _node(self, name: str) -> int:
        node = ROOT
        for part in name.split("/") if name != "." else []:
            node = self._entries[node][part]
        return node

    def _place(self, name: str) -> tuple[int, str]:
        above, _, last = name.rpartition("/")
        return self._node(above or "."), last


def choices(disk: Disk, moment: Moment) -> list[frozenset[int]]:
    """Legal choices of the changes that have happened when the power goes, those first that lose most.

    What the store removes piece by piece has lost its name before, so its pieces are not chosen one by one.
    """
    pending = [number for number in range(moment.num_changes) if number not in moment.certain]
    removed = disk.worthless.intersection(pending)
    single = [number for number in pending if number not in removed]
    if len(single) <= ALL_SUBSETS:
        subsets: list[set[int]] = [set(it) for size in range(len(single) + 1) for it in combinations(single, size)]
    else:
        alone = [{number} for number in single]
        all_but = [disk.changes.without(number, pending) for number in single]
        some = [set(drawn(f"{moment.after} {moment.num_changes} {n}", len(single), 3)) for n in range(NUM_DRAWN)]
        subsets = [set(), *alone, *all_but, *({single[place] for place in places} for places in some)]
    subsets += [set(pending) - removed, set(pending)]
    return list(dict.fromkeys(moment.certain | disk.changes.with_earlier(subset) for subset in subsets))


class Left(NamedTuple):
    """What a power cut left: the files, and the ledger's state or, where its log is torn, its two."""

    tree: Tree
    ledger: tuple[int, ...]


# What may be on the disk of a file that was not fsynced: of the certain bytes and the newest ones.
DATA: tuple[Callable[[bytes, bytes], bytes], ...] = (
    lambda old, new: old,
    lambda old, new: new[: len(new) // 2],
    lambda old, new: bytes(len(new)),
    lambda old, new: new,
)


def states(disk: Disk, moment: Moment) -> Iterator[Left]:
    """The legal states at a moment: all choices of names, in turn with those of bytes and of the ledger."""
    names = [list(_names(disk, chosen)) for chosen in choices(disk, moment)]
    first, last = moment.ledger
    ledgers: list[tuple[int, ...]] = [(state,) for state in range(first, last + 1)]
    ledgers += [(state, state + 1) for state in range(first, last)]
    extremes = [(laid_out, kind, ledger) for laid_out in (names[0], names[-1]) for kind in DATA for ledger in ledgers]
    between = [(laid_out, DATA[n % len(DATA)], ledgers[n % len(ledgers)]) for n, laid_out in enumerate(names)]
    for laid_out, kind, ledger in chain(extremes, between):
        yield Left(_tree(disk, moment, laid_out, kind, ledger), ledger)


def _names(disk: Disk, chosen: frozenset[int]) -> Iterator[tuple[str, int]]:
    """All paths after the chosen changes, each with what has this name; a directory before what is in it."""
    entries: dict[int, dict[str, int]] = {node: {} for node in disk.directories}
    for number in sorted(chosen):
        node, old, new = disk.changes.all[number]
        if old is not None:
            entries[old[0]].pop(old[1], None)
        if new is not None:
            entries[new[0]][new[1]] = node
    todo = [(name, node) for name, node in sorted(entries[ROOT].items(), reverse=True)]
    while todo:
        path, node = todo.pop()
        yield path, node
        if node in disk.directories:
            todo += [(f"{path}/{name}", below) for name, below in sorted(entries[node].items(), reverse=True)]


def _tree(
    disk: Disk,
    moment: Moment,
    names: Iterable[tuple[str, int]],
    kind: Callable[[bytes, bytes], bytes],
    ledger: tuple[int, ...],
) -> Tree:
    tree: Tree = {}
    database, log = _ledger_files(disk, ledger)
    for path, node in names:
        if node in disk.directories:
            tree[path] = None
            continue
        versions, (synced, newest) = disk.files[node].versions, moment.files[node]
        latest = database if node == moment.database and database is not None else versions[newest]
        tree[path] = latest if synced == newest else kind(versions[synced] if synced >= 0 else b"", latest)
    if tree.get(scenario.PLACE, b"") is None:  # the home's directory is there
        if database is not None and moment.database is None:
            tree[LEDGER_PATH] = database
        if log is not None:
            tree[LOG_PATH] = log
    return tree


def _ledger_files(disk: Disk, ledger: tuple[int, ...]) -> tuple[bytes | None, bytes | None]:
    """The ledger's file and its log."""
    before, after = disk.ledger[ledger[0]], disk.ledger[ledger[-1]]
    if before == after or not before.log or after.log is None or before.ledger is None or after.ledger is None:
        return before.ledger, before.log
    if before.ledger == after.ledger:
        return before.ledger, half_of_the_change(before.log, after.log)
    if before.log == after.log:  # which is being moved into the file
        return half_of_the_change(before.ledger, after.ledger), before.log
    return before.ledger, before.log  # another file
