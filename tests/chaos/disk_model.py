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
- What the lock says counts for nothing once its writer is gone: its bytes are uncertain only until the next operation.
- What rots is certain at once.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from itertools import combinations, product
from operator import itemgetter
from typing import NamedTuple

from chaos import scenario
from chaos.crash_points import drawn, half_of_the_change
from chaos.recording import LEDGER_PATH, LOG_PATH, ROT, Event, LedgerState
from reasonmill.store.objects import QUARANTINE, TMP

ALL_SUBSETS = 7  # pending operations up to which every legal choice of them is taken
NUM_DRAWN = 6  # choices that are drawn where there are more
TMP_PATH = f"{scenario.PLACE}/{TMP}/"
LOCK_PATH = f"{scenario.PLACE}/lock"
ROOT = 0  # the directory above all, which was there before

Tree = dict[str, bytes | None]  # files by their paths; None for a directory
Entries = dict[int, dict[str, int]]  # names in each directory, and what has them


class Change(NamedTuple):
    """A change of names: `node` gets the name `new`, and loses `old`; None for what is made or removed."""

    node: int
    old: tuple[int, str] | None
    new: tuple[int, str] | None


class Changes:
    """Changes in their order, and for each the earlier ones that it can't do without: those of its names."""

    def __init__(self) -> None:
        self.all: list[Change] = []
        self.directories: list[frozenset[int]] = []  # of each change, those in which it changes a name
        self._needed: list[frozenset[int]] = []
        self._latest: dict[tuple[int, str], int] = {}  # by the name

    def append(self, change: Change) -> None:
        number = len(self.all)
        names = [name for name in (change.old, change.new) if name is not None]
        self.all.append(change)
        self.directories.append(frozenset(directory for directory, _ in names))
        earlier = [self._needed[self._latest[name]] for name in names if name in self._latest]
        self._needed.append(frozenset({number}).union(*earlier))
        self._latest |= dict.fromkeys(names, number)

    def with_earlier(self, chosen: Iterable[int]) -> frozenset[int]:
        """The chosen changes and all that have to come before them."""
        return frozenset().union(*(self._needed[number] for number in chosen))

    def without(self, dropped: set[int], pending: Iterable[int]) -> set[int]:
        """The pending changes but for some, and but for those that can't be without them."""
        return {number for number in pending if not dropped & self._needed[number]}


class Moment(NamedTuple):
    """Between two operations: what has been done, and what of it is certain."""

    after: str  # the operation's label
    part: int
    num_changes: int
    certain: frozenset[int]  # numbers of changes
    files: dict[int, tuple[int, int]]  # for each the version that is certain, or -1 for no bytes, and the newest one
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
        self._entries: Entries = {ROOT: {}}  # as they are now
        self._certain: set[int] = set()
        self._pending: list[int] = []  # changes that are not, but for those since the last fsync of a directory
        self._num_looked_at = 0
        self._gone: set[int] = set()  # nodes that have certainly lost their name
        self._scratch: set[int] = set()  # changes within the work directory
        self._database: int | None = None
        self._lock: int | None = None
        self._ledger_certain = 0
        self._accepted = 0
        self._summary_accepted = 0
        self._put_aside: frozenset[str] = frozenset()
        self._listed: dict[frozenset[int], list[tuple[str, int]]] = {}  # names, by the changes that have happened
        self._of_certain: tuple[frozenset[int], Entries] = (frozenset(), {})
        self.directories = {ROOT}
        self.changes = Changes()
        # By the change that removes something from the work directory: it and those that brought that there.
        self.worthless: dict[int, frozenset[int]] = {}
        self.files: dict[int, list[bytes]] = {}  # all that each held, one after the other
        self._versions: dict[int, tuple[int, int]] = {}  # the certain one of these, or -1 for none, and the newest
        self.summaries: list[bytes | None] = [None]
        self.moments: list[Moment] = []
        for event in events:
            self._note(event)
            self._note_ledger(event)
            self._note_promises(event)
            if event.verb == ROT:  # in the midst of which there is no power cut
                continue
            self.moments.append(
                Moment(
                    event.label,
                    event.part,
                    len(self.changes.all),
                    frozenset(self._certain),
                    dict(self._versions),
                    self._database,
                    (self._ledger_certain, event.newest),
                    self._accepted,
                    (self._summary_accepted, len(self.summaries) - 1),
                    self._put_aside,
                )
            )

    def _note(self, event: Event) -> None:
        """Files and names."""
        first = len(self.changes.all)
        is_forgotten = event.label == self._forgotten
        if self._lock is not None:
            self._sync(self._lock)
        match event.verb:
            case "write" | "copy" | "fill":
                for name, data in event.files:
                    node = self._write(name, data)
                    if name == LOCK_PATH:
                        self._lock = node
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
                self._move(self._place(event.path), None)
                if event.path.startswith(TMP_PATH):
                    number = len(self.changes.all) - 1
                    self.worthless[number] = self.changes.with_earlier({number}) & self._scratch | {number}
            case "fsync" if not is_forgotten and event.path != LOG_PATH:
                self._sync(self._node(event.path))
            case "fsync directory" if not is_forgotten:
                self._sync_directory(self._node(event.path))
        if event.path.startswith(TMP_PATH) and (event.target or TMP_PATH).startswith(TMP_PATH):
            self._scratch |= set(range(first, len(self.changes.all)))

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
                self.files[node], self._versions[node] = [], (-1, -1)
        if data is not None:
            self.files[node].append(data)
            self._versions[node] = self._versions[node][0], len(self.files[node]) - 1
        return node

    def _hold(self, name: str, data: bytes | None) -> None:
        """Gives a file bytes that are certain, and so is its name: it rotted, was there before or SQLite wrote it."""
        first = len(self.changes.all)
        node = self._write(name, data)
        if data is not None:
            self._sync(node)
        self._certain |= set(range(first, len(self.changes.all)))

    def _sync(self, node: int) -> None:
        newest = self._versions[node][1]
        self._versions[node] = newest, newest

    def _move(self, old: tuple[int, str], new: tuple[int, str] | None) -> int:
        node = self._entries[old[0]].pop(old[1])
        if new is not None:
            self._entries[new[0]][new[1]] = node
        self.changes.append(Change(node, old, new))
        return node

    def _sync_directory(self, node: int) -> None:
        new = range(self._num_looked_at, len(self.changes.all))
        self._num_looked_at = new.stop
        pending = [number for number in (*self._pending, *new) if number not in self._certain]
        ours = {number for number in pending if node in self.changes.directories[number]}
        certain: Set[int] = self.changes.with_earlier(ours)
        while certain:
            self._certain |= certain
            self._gone |= {self.changes.all[number].node for number in certain if self.changes.all[number].new is None}
            # What became of the names in a directory that is certainly gone makes no difference.
            pending = [number for number in pending if number not in self._certain]
            certain = {number for number in pending if self.changes.directories[number] <= self._gone}
        self._pending = pending

    def names_after(self, certain: frozenset[int], chosen: frozenset[int]) -> list[tuple[str, int]]:
        """The names that there are after the certain changes and the chosen ones, as `_names` lists them.

        From one moment to the next, most of what may have happened is the same.
        """
        happened = certain | chosen
        if happened not in self._listed:
            # The changes of a name come one after the other, so none that is certain comes after one that is not.
            if self._of_certain[0] != certain:
                self._of_certain = certain, _after(self, {}, certain)
            self._listed[happened] = _names(_after(self, self._of_certain[1], chosen), ROOT, "")
        return self._listed[happened]

    def _node(self, name: str) -> int:
        node = ROOT
        for part in name.split("/") if name != "." else []:
            node = self._entries[node][part]
        return node

    def _place(self, name: str) -> tuple[int, str]:
        above, _, last = name.rpartition("/")
        return self._node(above or "."), last


def choices(disk: Disk, moment: Moment) -> list[frozenset[int]]:
    """Legal choices of the changes that have happened besides the certain ones when the power goes.

    What the store removes from the work directory piece by piece is not chosen piece by piece: with each choice of the
    others, none of it or all that can be has happened.
    """
    pending = {number for number in range(moment.num_changes) if number not in moment.certain}
    removed = frozenset().union(*(disk.worthless.get(number, ()) for number in pending)) & pending
    single = sorted(pending - removed)
    if len(single) <= ALL_SUBSETS:
        subsets: list[set[int]] = [set(it) for size in range(len(single) + 1) for it in combinations(single, size)]
    else:
        alone = [{number} for number in single]
        all_but = [disk.changes.without({number}, single) for number in single]
        some = [set(drawn(f"{moment.after} {moment.num_changes} {n}", len(single), 3)) for n in range(NUM_DRAWN)]
        subsets = [set(), *alone, *all_but, *({single[place] for place in places} for places in some), set(single)]
    legal = [disk.changes.with_earlier(subset) - moment.certain for subset in subsets]
    legal += [chosen | disk.changes.without(set(single) - chosen, removed) for chosen in legal]
    return list(dict.fromkeys(legal))


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
    """The legal states at a moment: all choices of names, with all of bytes and of the ledger."""
    first, last = moment.ledger
    ledgers: list[tuple[int, ...]] = [(state,) for state in range(first, last + 1)]
    ledgers += [(state, state + 1) for state in range(first, last)]
    unsynced = {node for node, (synced, newest) in moment.files.items() if synced != newest}
    for chosen in choices(disk, moment):
        names = disk.names_after(moment.certain, chosen)
        kinds = DATA if any(node in unsynced for _, node in names) else DATA[:1]
        for kind, ledger in product(kinds, ledgers):
            yield Left(_tree(disk, moment, names, kind, ledger), ledger)


def _after(disk: Disk, entries: Entries, chosen: frozenset[int]) -> Entries:
    """What the directories hold after the chosen changes."""
    entries = {node: dict(names) for node, names in entries.items() if names}
    for number in sorted(chosen):
        node, old, new = disk.changes.all[number]
        if old is not None:
            entries.get(old[0], {}).pop(old[1], None)
        if new is not None:
            entries.setdefault(new[0], {})[new[1]] = node
    return entries


def _names(entries: Entries, directory: int, prefix: str) -> list[tuple[str, int]]:
    """All paths below a directory, each with what has this name; a directory before what is in it, old before new."""
    found = []
    for name, node in sorted(entries.get(directory, {}).items(), key=itemgetter(1)):
        found.append((prefix + name, node))
        if node in entries:
            found += _names(entries, node, f"{prefix}{name}/")
    return found


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
        versions, (synced, newest) = disk.files[node], moment.files[node]
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
