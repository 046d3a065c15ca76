"""What a disk may hold when the power goes: the model behind `power_loss`.

- A file's bytes are certain after an fsync of the file; before, it may have its old bytes or none, the first half of
  its new ones, zeros in their place, or all of them.
- A name that is made, moved or removed is certain after an fsync of its directory, and of either directory for a move
  between two; before, it may have happened or not, whatever happened to other names, but not before an earlier
  change of the same name.
- The ledger is as after the last commit that waited for the disk, or as after any later one, or has a torn log.
  SQLite's own fsyncs are believed, and so is that it makes the names of its files durable with them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple

from chaos import scenario
from chaos.crash_points import drawn, half_of_the_change
from reasonmill.store.disk import Operation

ALL_SUBSETS = 5  # pending operations up to which every legal choice of them is taken
NUM_DRAWN = 6  # choices that are drawn where there are more
LEDGER_FILES = ("ledger.sqlite", "ledger.sqlite-wal")
ROOT = 0  # the directory above all, which was there before

Tree = dict[str, bytes | None]  # files by their paths; None for a directory


class Change(NamedTuple):
    """A change of names: `node` gets the name `new`, and loses `old`; None for what is made or removed."""

    node: int
    old: tuple[int, str] | None
    new: tuple[int, str] | None

    @property
    def names(self) -> set[tuple[int, str]]:
        return {name for name in (self.old, self.new) if name is not None}


class LedgerState(NamedTuple):
    files: tuple[bytes | None, ...]
    rows: scenario.Rows


@dataclass
class FileBytes:
    """All that a file held one after the other; what is certain is `versions[synced]`, or no bytes where it is -1."""

    versions: list[bytes] = field(default_factory=list)
    synced: int = -1


class Moment(NamedTuple):
    """Between two operations: what has been done, and what of it is certain."""

    after: str  # the operation
    num_changes: int
    certain: frozenset[int]  # numbers of changes
    files: dict[int, tuple[int, int]]  # for each: the certain and the newest version
    ledger: tuple[int, int]  # the certain and the newest state
    accepted: int  # the ledger's state that the store has promised
    summaries: tuple[int, int]  # the promised and the newest one


class Recorder:
    """Stands in for the store's operations: performs them, leaves real fsyncs out, and notes what would be certain.

    Args:
        base: the directory in which everything happens.
        forgotten: the name of an operation whose fsync is left out.
    """

    def __init__(self, base: Path, home: Path, forgotten: str | None = None) -> None:
        self._base = base
        self._home = home
        self._forgotten = forgotten
        self._entries: dict[int, dict[str, int]] = {ROOT: {}}  # as they are now
        self._certain: set[int] = set()
        self._ledger_certain = 0
        self._accepted = 0
        self._summary_accepted = 0
        self.directories = {ROOT}
        self.changes: list[Change] = []
        self.files: dict[int, FileBytes] = {}
        self.ledger = [LedgerState((None, None), {})]
        self.summaries: list[bytes | None] = [None]
        self.made: set[str] = set()  # names of objects
        self.moments: list[Moment] = []

    def __call__(self, operation: Operation, perform: Callable[[], object]) -> None:
        self._look_at_ledger()
        if not operation.verb.startswith("fsync"):
            perform()
        self._look_at_ledger()
        self._note(operation)
        ledger = (self._ledger_certain, len(self.ledger) - 1)
        files = {node: (file.synced, len(file.versions) - 1) for node, file in self.files.items()}
        summaries = (self._summary_accepted, len(self.summaries) - 1)
        certain = frozenset(self._certain)
        self.moments.append(
            Moment(operation.name, len(self.changes), certain, files, ledger, self._accepted, summaries)
        )

    def _note(self, operation: Operation) -> None:
        is_forgotten = operation.name == self._forgotten
        match operation.verb:
            case "write" | "copy" | "create":
                self._note_file(operation.path)
            case "fill":
                for path in sorted(operation.path.rglob("*")):
                    if path.is_dir():
                        self._make(path, is_directory=True)
                    else:
                        self._note_file(path)
            case "make directory":
                self._make(operation.path, is_directory=True)
            case "rename" | "replace":
                assert operation.target is not None
                self._move(self._place(operation.path), self._place(operation.target))
            case "unlink" | "remove directory":
                self._move(self._place(operation.path), None)
            case "fsync" if not is_forgotten:
                file = self.files[self._node(operation.path)]
                file.synced = len(file.versions) - 1
            case "fsync directory" if not is_forgotten:
                self._sync_directory(self._node(operation.path))
            case "start log" | "commit" | "close":
                self._accepted = len(self.ledger) - 1
                if not is_forgotten:
                    self._ledger_certain = self._accepted
        if operation.name == "rename object" and operation.target is not None:
            self.made.add(operation.target.name)
        summary = self._home / "runs" / scenario.RUN / scenario.SUMMARY
        if summary.exists() and summary.read_bytes() != self.summaries[-1]:
            self.summaries.append(summary.read_bytes())
        if operation.name == "fsync directory views":
            self._summary_accepted = len(self.summaries) - 1

    def _look_at_ledger(self) -> None:
        paths = [self._home / name for name in LEDGER_FILES]
        files = tuple(path.read_bytes() if path.exists() else None for path in paths)
        if files != self.ledger[-1].files:
            self.ledger.append(LedgerState(files, scenario.ledger_rows(self._home)))

    def _note_file(self, path: Path) -> None:
        place = self._place(path)
        node = self._entries[place[0]].get(place[1])
        if node is None:
            node = self._make(path, is_directory=False)
        self.files[node].versions.append(path.read_bytes())

    def _make(self, path: Path, *, is_directory: bool) -> int:
        node = len(self.directories) + len(self.files)
        if is_directory:
            self.directories.add(node)
            self._entries[node] = {}
        else:
            self.files[node] = FileBytes()
        directory, name = self._place(path)
        self._entries[directory][name] = node
        self.changes.append(Change(node, None, (directory, name)))
        return node

    def _move(self, old: tuple[int, str], new: tuple[int, str] | None) -> None:
        node = self._entries[old[0]].pop(old[1])
        if new is not None:
            self._entries[new[0]][new[1]] = node
        self.changes.append(Change(node, old, new))

    def _sync_directory(self, node: int) -> None:
        ours = {n for n, change in enumerate(self.changes) if any(name[0] == node for name in change.names)}
        self._certain |= with_earlier(self.changes, ours)

    def _node(self, path: Path) -> int:
        node = ROOT
        for name in path.relative_to(self._base).parts:
            node = self._entries[node][name]
        return node

    def _place(self, path: Path) -> tuple[int, str]:
        return self._node(path.parent), path.name


def with_earlier(changes: list[Change], chosen: set[int]) -> set[int]:
    """The chosen changes and all that have to come before them: earlier ones of the same names."""
    names: set[tuple[int, str]] = set()
    found: set[int] = set()
    for number in range(max(chosen, default=-1), -1, -1):
        if number in chosen or names & changes[number].names:
            found.add(number)
            names |= changes[number].names
    return found


def without_later(changes: list[Change], pending: list[int], dropped: int) -> set[int]:
    """The pending changes but one, and but those that can't be without it."""
    return {number for number in pending if dropped not in with_earlier(changes[: number + 1], {number})}


def choices(recorder: Recorder, moment: Moment) -> list[set[int]]:
    """Legal choices of the changes that have happened when the power goes, those first that lose most."""
    changes = recorder.changes[: moment.num_changes]
    pending = [number for number in range(len(changes)) if number not in moment.certain]
    if len(pending) <= ALL_SUBSETS:
        subsets: list[set[int]] = [
            set(subset) for size in range(len(pending) + 1) for subset in combinations(pending, size)
        ]
    else:
        alone = [{number} for number in pending]
        all_but = [without_later(changes, pending, number) for number in pending]
        some = [set(drawn(f"{moment.after} {moment.num_changes} {n}", len(pending), 3)) for n in range(NUM_DRAWN)]
        subsets = [set(), *alone, *all_but, *({pending[place] for place in places} for places in some), set(pending)]
    legal = [frozenset(moment.certain | with_earlier(changes, subset)) for subset in subsets]
    return [set(chosen) for chosen in dict.fromkeys(legal)]


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


def states(recorder: Recorder, moment: Moment) -> Iterator[Left]:
    """The legal states at a moment: all choices of names, in turn with those of bytes and of the ledger."""
    subsets = choices(recorder, moment)
    first, last = moment.ledger
    ledgers: list[tuple[int, ...]] = [(state,) for state in range(first, last + 1)]
    ledgers += [(state, state + 1) for state in range(first, last)]
    extremes = [(chosen, kind, ledger) for chosen in (subsets[0], subsets[-1]) for kind in DATA for ledger in ledgers]
    between = [(chosen, DATA[n % len(DATA)], ledgers[n % len(ledgers)]) for n, chosen in enumerate(subsets)]
    for chosen, kind, ledger in chain(extremes, between):
        yield Left(_tree(recorder, moment, chosen, kind, ledger), ledger)


def _tree(
    recorder: Recorder,
    moment: Moment,
    chosen: set[int],
    kind: Callable[[bytes, bytes], bytes],
    ledger: tuple[int, ...],
) -> Tree:
    entries: dict[int, dict[str, int]] = {node: {} for node in recorder.directories}
    for number in sorted(chosen):
        node, old, new = recorder.changes[number]
        if old is not None:
            entries[old[0]].pop(old[1], None)
        if new is not None:
            entries[new[0]][new[1]] = node
    tree: Tree = {}

    def lay_out(directory: int, prefix: str) -> None:
        for name, node in sorted(entries[directory].items()):
            if node in recorder.directories:
                tree[prefix + name] = None
                lay_out(node, f"{prefix}{name}/")
            else:
                versions, (synced, newest) = recorder.files[node].versions, moment.files[node]
                certain = versions[synced] if synced >= 0 else b""
                tree[prefix + name] = certain if synced == newest else kind(certain, versions[newest])

    lay_out(ROOT, "")
    if tree.get(scenario.PLACE, b"") is None:  # the home's directory is there
        for name, data in zip(LEDGER_FILES, _ledger_files(recorder, ledger), strict=True):
            if data is not None:
                tree[f"{scenario.PLACE}/{name}"] = data
    return tree


def _ledger_files(recorder: Recorder, ledger: tuple[int, ...]) -> tuple[bytes | None, ...]:
    before, after = (recorder.ledger[state].files for state in (ledger[0], ledger[-1]))
    if before[0] != after[0] or before[1] is None or after[1] is None:
        return before  # more than the log changed: SQLite has fsynced it in between
    return (before[0], half_of_the_change(before[1], after[1]) if len(ledger) > 1 else before[1])
