"""An SQLite file whose rows are sealed: each carries a digest of its content.

SQLite's own checks find pages that don't fit together. They do not find a digit that has become another one: the seals
do. Triggers write them, so that no statement can forget to.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from reasonmill.errors import StoreError
from reasonmill.store import disk
from reasonmill.store.commit import out_of_space
from reasonmill.store.looking import is_file

SEAL = "seal"
# What to do about a damaged ledger.
FALL_BACK = "run the recipe again: it restores the last backup of the ledger"
_BUSY_TIMEOUT_S = 30.0
# Both are called for each row, or for each text in it.
_encode = json.JSONEncoder(default=repr).encode
_text = partial(str, encoding="utf-8", errors="surrogateescape")

Row = dict[str, Any]


class OtherVersion(StoreError):
    """The file is of another version of reasonmill."""


class Unreachable(StoreError):
    """The file can't be read now, or SQLite can't make the files that it needs beside it: that is no damage."""


class SealedRows:
    """A file of tables, in WAL mode. Methods raise StoreError if it can't be read, and OutOfSpace on a full disk.

    Attributes:
        tables: the statements that make the tables, each of which has a column for the seal.
        version: that of the tables.
    """

    tables: ClassVar[Sequence[str]]
    version: ClassVar[int]

    def __init__(self, path: Path, *, write: bool, is_final: bool = False) -> None:
        """Opens the file; for writing, a missing one is made.

        Args:
            is_final: nobody writes to the file any more, such as a backup, and reading it must leave nothing beside it.

        Raises:
            OtherVersion: the file is of another version.
            StoreError: it is no such file, or is damaged.
        """
        self._path = path
        self._write = write
        with self._errors():
            # Transactions are begun by hand, so that what belongs together is visibly one.
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}{'&immutable=1' if is_final else ''}",
                uri=True,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
            )
            # Damaged text must come as far as its seal.
            self._db.text_factory = _text
            self._db.create_function("row_seal", -1, row_seal, deterministic=True)
        try:
            is_new = write and not self._rows("SELECT name FROM sqlite_master")
            if not is_new:
                self._require_version()
            if write:
                self._prepare_writing(is_new)
            self._columns = self._read_columns()
            if write:
                self._seal_what_is_written()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def is_blank(path: Path) -> bool:
        """Whether a file is missing or has no tables yet, because its maker is at it or was killed at it."""
        if not is_file(path):
            return True
        try:
            uri = f"{path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as database:
                return not database.execute("SELECT name FROM sqlite_master").fetchall()
        except sqlite3.Error as error:
            # A rollback journal, which the next writer rolls back: there is one only until the log is turned on.
            return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK

    def close(self) -> None:
        """Closes the file; closing twice does nothing."""
        if self._write:
            disk.close(self._db, self._path, "ledger")
        else:
            self._db.close()

    def copy_to(self, path: Path) -> None:
        """Writes a copy of the file as it is at this moment, while it stays open; whoever keeps it makes it durable."""
        with self._errors():
            disk.copy_database(self._db, path)

    def is_in_one_file(self) -> bool:
        """Moves what SQLite's log holds into the file itself; False where a reader is in the way of that."""
        with self._errors():
            return disk.empty_log(self._db, self._path, "ledger")

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """In the block, all that is read is what was there at its beginning, whatever a writer does meanwhile."""
        self._rows("BEGIN")
        try:
            yield
        finally:
            self._rows("ROLLBACK")  # of nothing: it only was read

    def damage(self) -> list[str]:
        """What is wrong with the file, each in a sentence: its pages, its tables, references to nothing, its rows.

        Raises:
            StoreError: it is too damaged to be looked at, or can't be.
        """
        found = self._broken_pages()
        if self._made_tables() != set(self.tables):
            found.append("its tables are not those of its version")
        found += [
            f"row {row[1]} of {row[0]!r} refers to a row of {row[2]!r} that is not there"
            for row in self._rows("PRAGMA foreign_key_check")
        ]
        return found + [broken for table in self._columns for _, broken in self._checked(table) if broken]

    def _read(self, table: str, condition: str = "TRUE", *values: str | int, order: str = "rowid") -> list[Row]:
        """The rows of a table that fulfil a condition; each is checked against its seal.

        Raises:
            StoreError: a row is not what was written.
        """
        rows = []
        for row, broken in self._checked(table, condition, *values, order=order):
            if broken:
                raise damaged_ledger(self._path, f"is damaged: {broken}")
            rows.append(row)
        return rows

    def _checked(
        self, table: str, condition: str = "TRUE", *values: str | int, order: str = "rowid"
    ) -> Iterator[tuple[Row, str]]:
        """Rows, each with what is wrong with it; that is empty where it fits its seal."""
        names = self._columns[table]
        query = f"SELECT {', '.join(names)}, {SEAL} FROM {table} WHERE {condition} ORDER BY {order}"
        for *content, seal in self._rows(query, *values):
            row = dict(zip(names, content, strict=True))
            yield row, "" if seal == row_seal(table, *content) else _broken_seal(table, row)

    def _insert(self, table: str, otherwise: str = "", /, **values: Any) -> int | None:
        """Adds a row, inside a transaction, and returns its number.

        Args:
            otherwise: what is done if there is such a row already, as SQL.
        """
        marks = ", ".join("?" * len(values))
        statement = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks}) {otherwise}"
        return self._db.execute(statement, tuple(values.values())).lastrowid

    def _read_columns(self) -> dict[str, list[str]]:
        """The columns of each table but the seal, by the table's name."""
        columns: dict[str, list[str]] = {}
        for table, column in self._rows(
            "SELECT made.name, of.name FROM sqlite_master AS made, pragma_table_info(made.name) AS of "
            "WHERE made.type = 'table' ORDER BY made.rowid, of.cid"
        ):
            columns.setdefault(table, [])
            if column != SEAL:
                columns[table].append(column)
        return columns

    def _seal_what_is_written(self) -> None:
        """Makes this connection seal each row that it writes."""
        with self._errors():
            self._db.execute("PRAGMA temp_store = MEMORY")
            for table, columns in self._columns.items():
                listed = ", ".join(columns)
                for event in ("INSERT", f"UPDATE OF {listed}"):
                    self._db.execute(
                        f"CREATE TEMP TRIGGER seal_{table}_{event[:6]} AFTER {event} ON main.{table} BEGIN "
                        f"UPDATE {table} SET {SEAL} = row_seal('{table}', {listed}) WHERE rowid = NEW.rowid; END"
                    )

    def _prepare_writing(self, is_new: bool) -> None:
        """Sets how the connection writes, and makes the tables of a new file."""
        with self._errors():
            disk.start_log(self._db, self._path, "ledger")
            mode = self._db.execute("PRAGMA journal_mode").fetchone()[0]
            self._db.execute("PRAGMA foreign_keys = ON")
        if mode != "wal":
            raise StoreError(
                "the home's file system can't hold the ledger: it lacks shared memory for SQLite's WAL mode",
                fix="use a home on a local disk",
                where=str(self._path),
            )
        if is_new:
            with self._transaction("tables"):
                for statement in self.tables:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {self.version}")

    def _require_version(self) -> None:
        """Looks closer where the version is another one: a damaged file may say anything."""
        version = self._rows("PRAGMA user_version")[0][0]
        if version == self.version:
            return
        made, broken = self._made_tables(), self._broken_pages()
        if made and made != set(self.tables) and not broken:
            raise OtherVersion(
                f"the ledger has version {version}, and this reasonmill reads version {self.version}",
                fix="use the version of reasonmill that made this home, or another home",
                where=str(self._path),
            )
        wrong_version = f"says that its version is {version}, and has the tables of version {self.version}"
        what = f"is damaged: {broken[0]}" if broken else wrong_version if made else "has no tables"
        raise damaged_ledger(self._path, what)

    def _made_tables(self) -> set[str]:
        """The statements that made the tables of the file."""
        return {row[0] for row in self._rows("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}

    def _broken_pages(self) -> list[str]:
        """What SQLite's check finds, each in a sentence."""
        return [f"SQLite finds: {row[0]}" for row in self._rows("PRAGMA integrity_check") if row[0] != "ok"]

    def _rows(self, query: str, *values: str | int) -> list[Any]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self, what: str, *, synced: bool = True) -> Iterator[None]:
        with self._errors():
            disk.begin(self._db, synced=synced)
            try:
                yield
                disk.commit(self._db, self._path, what, synced=synced)
            except BaseException:
                if self._db.in_transaction:  # SQLite has rolled back by itself after some errors, a full disk for one
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns SQLite's errors into the store's."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a wrong call, not a fault of the file
        except sqlite3.Error as error:
            exact_code = getattr(error, "sqlite_errorcode", 0)
            code = exact_code & 0xFF  # the low byte is the class of the error
            # What keeps SQLite from enlarging the index of its log is a full disk, which it does not say.
            if code == sqlite3.SQLITE_FULL or exact_code == sqlite3.SQLITE_IOERR_SHMSIZE:
                raise out_of_space(self._path) from error
            if code == sqlite3.SQLITE_CONSTRAINT:
                raise StoreError(
                    f"the ledger refuses a record: {error}",
                    fix="begin the run first, and commit each stage once",
                    where=str(self._path),
                ) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise damaged_ledger(self._path, f"is damaged: {error}") from error
            # Operational errors are of what is around the file, but for two that are a matter of the file: it ends too
            # early, or lacks what a statement speaks of.
            is_reached = code == sqlite3.SQLITE_ERROR or exact_code == sqlite3.SQLITE_IOERR_SHORT_READ
            is_away = isinstance(error, sqlite3.OperationalError) and not is_reached
            raise (Unreachable if is_away else StoreError)(
                f"the ledger can't be read or written: {error}",
                fix="check the disk and the permissions of the home, and that no other program has the file open",
                where=str(self._path),
            ) from error


def damaged_ledger(path: Path, what: str) -> StoreError:
    """The error for a ledger that is missing or damaged; `what` is wrong with it, to follow its name."""
    return StoreError(f"the ledger {what}", fix=FALL_BACK, where=str(path))


def row_seal(table: str, *values: Any) -> str:
    """The seal of a row with these values."""
    return hashlib.blake2b(_encode([table, *values]).encode(), digest_size=16).hexdigest()


def _broken_seal(table: str, row: Row) -> str:
    """Names a row by its first two columns, which identify rows of every table."""
    place = ", ".join(f"{name} {str(value)[:40]!r}" for name, value in list(row.items())[:2])
    return f"the row of table {table!r} with {place} is not what was written"
