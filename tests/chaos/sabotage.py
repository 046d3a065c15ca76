"""Wrong stores, made from the right one by reordering its operations: what the chaos tests must notice.

Each takes what performs an operation and gives what performs it wrongly; only tests put it in the store's way.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reasonmill.content import file_digest
from reasonmill.store.commit import MANIFEST
from reasonmill.store.disk import Operation
from reasonmill.store.home import OBJECTS
from reasonmill.store.ledger_backup import LEDGER, SEAL, encode_seal, read_seal

NEW_SEAL = f".{SEAL}.tmp"  # on its way to its name

Around = Callable[[Operation, Callable[[], object]], None]
Sabotage = Callable[[Around], Around]


def manifest_after_rename(perform_right: Around) -> Around:
    """An object gets its final name first and its manifest last."""
    manifest: list[bytes] = []

    def around(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.name == "write manifest":
            assert operation.data is not None
            manifest[:] = [operation.data]
        elif operation.name == "rename object":
            perform_right(operation, perform)
            assert operation.target is not None
            path, data = operation.target / MANIFEST, manifest[0]
            perform_right(Operation("write", "manifest", path, data=data), lambda: path.write_bytes(data))
            perform_right(Operation("fsync", "manifest", path), lambda: None)
            perform_right(Operation("fsync directory", "object", operation.target), lambda: None)
        elif operation.name != "fsync manifest":
            perform_right(operation, perform)

    return around


def rename_before_fsync(perform_right: Around) -> Around:
    """An object gets its final name first, and is made durable then."""
    late: list[Operation] = []

    def around(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.name in ("fsync object file", "fsync manifest", "fsync directory object"):
            late.append(operation)
            return
        if operation.name != "rename object":
            perform_right(operation, perform)
            return
        fsyncs = late[:]
        late.clear()
        perform_right(operation, perform)
        assert operation.target is not None
        for fsync in fsyncs:
            path = operation.target / fsync.path.relative_to(operation.path)
            perform_right(replace(fsync, path=path), lambda: None)

    return around


def commit_before_object(perform_right: Around) -> Around:
    """The ledger refers to an object before that has its name."""
    late: list[tuple[Operation, Callable[[], object]]] = []
    kept: list[Path] = []  # what the store removes, because it believes that it has been renamed

    def around(operation: Operation, perform: Callable[[], object]) -> None:
        if _is_new_object(operation):
            late.append((operation, perform))
            kept.append(operation.path)
        elif operation.what == "unfinished object" and any(operation.path.is_relative_to(path) for path in kept):
            pass
        elif operation.verb == "commit" and late:
            perform_right(operation, perform)
            while late:
                perform_right(*late.pop(0))
        else:
            perform_right(operation, perform)

    return around


def _is_new_object(operation: Operation) -> bool:
    if operation.name != "rename object" or operation.target is None:
        return False
    return operation.target.parent.name == OBJECTS and not operation.target.exists()


def view_in_place(perform_right: Around) -> Around:
    """A view is written over the old one, which is not kept until the new one is whole."""

    def around(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.what != "view" or operation.verb not in ("write", "fsync", "replace"):
            perform_right(operation, perform)
            return
        name, data = operation.path.name.removeprefix(".").removesuffix(".tmp"), operation.data
        path = operation.path.with_name(name)
        if operation.verb == "write" and data is not None:
            perform_right(replace(operation, path=path), lambda: path.write_bytes(data))
        elif operation.verb == "fsync":
            perform_right(replace(operation, path=path), lambda: None)

    return around


def seal_before_close(perform_right: Around) -> Around:
    """The ledger's seal says that it is closed before its log is moved into it."""

    def around(operation: Operation, perform: Callable[[], object]) -> None:
        if operation.verb == "empty log":
            home = operation.path.parent
            seal = read_seal(home)
            assert seal is not None
            path, temporary = home / SEAL, home / NEW_SEAL
            data = encode_seal(replace(seal, ledger=file_digest(operation.path)))
            perform_right(Operation("write", "view", temporary, data=data), lambda: temporary.write_bytes(data))
            perform_right(Operation("fsync", "view", temporary), lambda: None)
            perform_right(Operation("replace", "view", temporary, path), lambda: temporary.replace(path))
            perform_right(Operation("fsync directory", "views", home), lambda: None)
        perform_right(operation, perform)

    return around


def seal_stays_closed(perform_right: Around) -> Around:
    """The ledger's seal says that it is closed while a writer has it open."""
    skipped: list[str] = []  # the rest of what opens the seal

    def around(operation: Operation, perform: Callable[[], object]) -> None:
        home = operation.path.parent
        if operation.path.name == NEW_SEAL and operation.verb == "write" and (home / SEAL).exists():
            assert operation.data is not None
            if json.loads(operation.data.splitlines()[0])["ledger"] is None and is_closed(home):
                skipped[:] = ["fsync view", "replace view", "fsync directory views"]
                return
        if skipped and operation.name == skipped[0]:
            del skipped[0]
            return
        perform_right(operation, perform)

    def is_closed(home: Path) -> bool:
        seal = read_seal(home)
        return seal is not None and seal.ledger == file_digest(home / LEDGER)

    return around


REORDERED: dict[str, Sabotage] = {
    "the manifest is not last": manifest_after_rename,
    "the rename comes before the fsync": rename_before_fsync,
    "the ledger's commit comes before the object": commit_before_object,
    "the view is written in place": view_in_place,
    "the seal is closed before the ledger": seal_before_close,
    "the seal stays closed while the ledger is open": seal_stays_closed,
}
# What needs no power cut to do harm: a kill is enough.
SEEN_BY_KILLS = [
    "the manifest is not last",
    "the ledger's commit comes before the object",
    "the view is written in place",
    "the seal is closed before the ledger",
    "the seal stays closed while the ledger is open",
]
