"""The ledger: which artifact came from which, what each run consists of and how far its stages are.

It is one SQLite file in WAL mode. Every write is one transaction that is durable when the method returns; other
processes read meanwhile. "Latest" is always a query here, never a look at the files of a directory.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reasonmill.errors import StoreError
from reasonmill.store.commit import out_of_space
from reasonmill.types import Artifact

SCHEMA_VERSION = 2

# The same content can be made twice, by stages of other names or from other parents: an artifact is one making, and
# its digest is not unique. Steps and states belong to stages that may not be finished, so they refer to no stage row.
_TABLES = (
    """CREATE TABLE artifacts (
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL, kind TEXT NOT NULL, stage TEXT NOT NULL,
        config_digest TEXT NOT NULL, metrics TEXT NOT NULL, created_s REAL NOT NULL)""",
    "CREATE INDEX artifacts_by_digest ON artifacts (digest)",
    """CREATE TABLE parents (
        child INTEGER NOT NULL REFERENCES artifacts (id), position INTEGER NOT NULL,
        parent INTEGER NOT NULL REFERENCES artifacts (id), PRIMARY KEY (child, position))""",
    "CREATE INDEX parents_by_parent ON parents (parent)",
    """CREATE TABLE runs (
        name TEXT PRIMARY KEY, recipe TEXT NOT NULL, started_s REAL NOT NULL)""",
    """CREATE TABLE run_stages (
        run TEXT NOT NULL REFERENCES runs (name), position INTEGER NOT NULL, name TEXT NOT NULL,
        kind TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (run, position))""",
    """CREATE TABLE stages (
        key TEXT PRIMARY KEY, run TEXT NOT NULL REFERENCES runs (name), name TEXT NOT NULL, kind TEXT NOT NULL,
        artifact INTEGER NOT NULL REFERENCES artifacts (id), seconds REAL NOT NULL, tokens INTEGER NOT NULL,
        finished_s REAL NOT NULL)""",
    """CREATE TABLE steps (
        stage_key TEXT NOT NULL, step INTEGER NOT NULL, groups_digest TEXT, metrics TEXT,
        PRIMARY KEY (stage_key, step))""",
    """CREATE TABLE states (
        stage_key TEXT NOT NULL, step INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (stage_key, step))""",
    """CREATE TABLE machines (
        stage_key TEXT NOT NULL, position INTEGER NOT NULL, machine TEXT NOT NULL,
        PRIMARY KEY (stage_key, position))""",
)

_BUSY_TIMEOUT_S = 30.0


class RunStage(NamedTuple):
    """A stage that a run consists of, finished or not: `Ledger.stage(key)` tells."""

    name: str
    kind: str
    key: str


@dataclass(frozen=True)
class RunRecord:
    """A run: its resolved recipe, when it was first started (seconds since the epoch) and its stages in order."""

    name: str
    recipe: Mapping[str, Any]
    started_s: float
    stages: tuple[RunStage, ...]


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: the run that finished it, what it made, and what it took in seconds and tokens."""

    key: str
    run: str
    name: str
    kind: str
    artifact: Artifact
    seconds: float
    tokens: int


class Ledger:
    """The ledger of a home. Methods raise StoreError if the file can't be read, and OutOfSpace on a full disk."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Opens the ledger; for writing, a missing file is made.

        Raises:
            StoreError: the file is no ledger, or one of another version of reasonmill.
        """
        self._path = path
        with self._errors():
            # Transactions are begun by hand, so that what belongs together is visibly one.
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}",
                uri=True,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
            )
        try:
            is_new = write and not self._rows("SELECT name FROM sqlite_master")
            if not is_new:
                self._require_version()
            if write:
                self._prepare_writing(is_new)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; closing twice does nothing."""
        self._db.close()

    def begin_run(self, name: str, recipe: Mapping[str, Any], stages: Sequence[tuple[str, str, str]]) -> None:
        """Records a run and its stages as (name, kind, key); a run that is begun again keeps its first start time."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO runs VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET recipe = excluded.recipe",
                (name, json.dumps(dict(recipe)), time.time()),
            )
            self._db.execute("DELETE FROM run_stages WHERE run = ?", (name,))
            self._db.executemany(
                "INSERT INTO run_stages VALUES (?, ?, ?, ?, ?)",
                [(name, position, *stage) for position, stage in enumerate(stages)],
            )

    def runs(self) -> list[RunRecord]:
        """All runs, the one that was started first comes first."""
        rows = self._rows("SELECT name, recipe, started_s FROM runs ORDER BY started_s, name")
        return [
            RunRecord(name, json.loads(recipe), started_s, self._run_stages(name)) for name, recipe, started_s in rows
        ]

    def begin_stage(self, stage_key: str, machine: str) -> tuple[str, ...]:
        """Records that a stage runs on a machine; returns the machines of `machines`, this one included.

        A stage of which nothing was committed yet begins anew: where it was tried before does not matter.
        """
        with self._transaction():
            kept = self._rows(
                "SELECT 1 FROM steps WHERE stage_key = ?1 AND groups_digest IS NOT NULL "
                "UNION ALL SELECT 1 FROM states WHERE stage_key = ?1 LIMIT 1",
                stage_key,
            )
            if not kept:
                self._db.execute("DELETE FROM machines WHERE stage_key = ?", (stage_key,))
            known = self.machines(stage_key)
            if machine not in known:
                self._db.execute("INSERT INTO machines VALUES (?, ?, ?)", (stage_key, len(known), machine))
            return self.machines(stage_key)

    def machines(self, stage_key: str) -> tuple[str, ...]:
        """The classes of machines on which a stage ran, the first one first."""
        rows = self._rows("SELECT machine FROM machines WHERE stage_key = ? ORDER BY position", stage_key)
        return tuple(row[0] for row in rows)

    def commit_stage(
        self, *, key: str, run: str, name: str, kind: str, artifact: Artifact, seconds: float, tokens: int
    ) -> None:
        """Records a finished stage and its artifact, whose object is in the store already.

        Raises:
            StoreError: the key is recorded already, the run was never begun or a parent is not in the ledger.
        """
        with self._transaction():
            self._db.execute(
                "INSERT INTO stages VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, run, name, kind, self._record_artifact(artifact), seconds, tokens, time.time()),
            )

    def stage(self, key: str) -> StageRecord | None:
        """The finished stage of this key, or None."""
        rows = self._rows("SELECT run, name, kind, artifact, seconds, tokens FROM stages WHERE key = ?", key)
        if not rows:
            return None
        run, name, kind, artifact, seconds, tokens = rows[0]
        return StageRecord(key, run, name, kind, self._artifact(artifact), seconds, tokens)

    def forget_stage(self, key: str) -> None:
        """Makes a stage count as not finished; its steps, its states and the record of its artifact stay."""
        with self._transaction():
            self._db.execute("DELETE FROM stages WHERE key = ?", (key,))

    def commit_step(self, stage_key: str, step: int, groups_digest: str) -> None:
        """Records the groups that a step is trained on, before it is.

        Raises:
            StoreError: other groups are recorded for this step.
        """
        with self._transaction():
            self._require_same(f"groups of step {step}", self.step_groups(stage_key, step), groups_digest)
            self._db.execute(
                "INSERT INTO steps (stage_key, step, groups_digest) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET groups_digest = excluded.groups_digest",
                (stage_key, step, groups_digest),
            )

    def step_groups(self, stage_key: str, step: int) -> str | None:
        """Digest of the groups of a step, or None if none were committed."""
        rows = self._rows("SELECT groups_digest FROM steps WHERE stage_key = ? AND step = ?", stage_key, step)
        return rows[0][0] if rows else None

    def record_metrics(self, stage_key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Records a step's metrics; a replayed step records them again.

        A power cut may lose the latest of them, which resuming makes again: the next commit of a state or of a
        step's groups waits for the disk, and takes all that came before with it.
        """
        with self._transaction(waits_for_disk=False):
            self._db.execute(
                "INSERT INTO steps (stage_key, step, metrics) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET metrics = excluded.metrics",
                (stage_key, step, json.dumps(dict(metrics))),
            )

    def metrics(self, stage_key: str) -> list[dict[str, Any]]:
        """Metrics of the steps that have any, in the order of steps, each with its "step"."""
        rows = self._rows(
            "SELECT step, metrics FROM steps WHERE stage_key = ? AND metrics IS NOT NULL ORDER BY step", stage_key
        )
        return [{"step": step, **json.loads(metrics)} for step, metrics in rows]

    def commit_state(self, stage_key: str, step: int, digest: str) -> None:
        """Records the learner's state, an object of the store, from which step `step` goes on.

        Raises:
            StoreError: another state is recorded for this step.
        """
        with self._transaction():
            self._require_same(f"state of step {step}", dict(self.states(stage_key)).get(step), digest)
            self._db.execute("INSERT OR IGNORE INTO states VALUES (?, ?, ?)", (stage_key, step, digest))

    def latest_state(self, stage_key: str) -> tuple[int, str] | None:
        """Step and digest of the last committed state, or None."""
        states = self.states(stage_key)
        return states[-1] if states else None

    def states(self, stage_key: str) -> list[tuple[int, str]]:
        """Step and digest of all committed states, in the order of steps."""
        return self._rows("SELECT step, digest FROM states WHERE stage_key = ? ORDER BY step", stage_key)

    def forget_state(self, stage_key: str, step: int) -> None:
        """Removes a state's record; do this before its object is deleted, so that no record lacks its object."""
        with self._transaction():
            self._db.execute("DELETE FROM states WHERE stage_key = ? AND step = ?", (stage_key, step))

    def is_state(self, digest: str) -> bool:
        """Whether an object is a state of any stage: equal states of two stages are one object."""
        return bool(self._rows("SELECT 1 FROM states WHERE digest = ? LIMIT 1", digest))

    def register(self, artifact: Artifact) -> None:
        """Records an artifact that no stage of a run made, such as an imported base; once is enough.

        Raises:
            StoreError: a parent is not in the ledger.
        """
        with self._transaction():
            self._record_artifact(artifact)

    def artifact(self, digest: str) -> Artifact:
        """The artifact of a digest, or of the beginning of one; of equal artifacts, the one that was made last.

        Raises:
            StoreError: no artifact begins like this, or several do; the message lists them.
        """
        rows = self._rows(
            "SELECT digest, max(id), stage FROM artifacts WHERE substr(digest, 1, length(?1)) = ?1 AND ?1 != '' "
            "GROUP BY digest ORDER BY digest",
            digest,
        )
        if not rows:
            raise StoreError(
                f"no artifact has a digest that begins with {digest!r}",
                fix="check the digest, and that this is the home it was made in",
                where=str(self._path),
            )
        exact = [row for row in rows if row[0] == digest]
        if len(rows) > 1 and not exact:
            candidates = ", ".join(f"{found[: len(digest) + 8]} ({stage})" for found, _, stage in rows[:8])
            more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
            raise StoreError(
                f"{len(rows)} artifacts have digests that begin with {digest!r}: {candidates}{more}",
                fix="give more digits",
                where=str(self._path),
            )
        return self._artifact((exact or rows)[0][1])

    def parents(self, artifact: Artifact) -> list[Artifact]:
        """What a recorded artifact was made from, in order; of equal artifacts, the making that was there at the time.

        Raises:
            StoreError: the ledger has no such artifact.
        """
        identity = (artifact.stage, artifact.config_digest, artifact.parents)
        for made in reversed(self._artifact_ids(artifact.digest)):
            found = self._artifact(made)
            if (found.stage, found.config_digest, found.parents) == identity:
                rows = self._rows("SELECT parent FROM parents WHERE child = ? ORDER BY position", made)
                return [self._artifact(row[0]) for row in rows]
        raise StoreError(
            f"the ledger has no artifact {artifact.digest[:12]} of stage {artifact.stage!r}",
            fix="check that this is the home it was made in",
            where=str(self._path),
        )

    def _run_stages(self, run: str) -> tuple[RunStage, ...]:
        rows = self._rows("SELECT name, kind, key FROM run_stages WHERE run = ? ORDER BY position", run)
        return tuple(RunStage(*row) for row in rows)

    def _artifact(self, artifact_id: int) -> Artifact:
        row = self._rows("SELECT digest, kind, stage, config_digest, metrics FROM artifacts WHERE id = ?", artifact_id)
        parents = self._rows(
            "SELECT digest FROM parents JOIN artifacts ON id = parent WHERE child = ? ORDER BY position", artifact_id
        )
        digest, kind, stage, config_digest, metrics = row[0]
        return Artifact(digest, kind, stage, tuple(parent[0] for parent in parents), config_digest, json.loads(metrics))

    def _record_artifact(self, artifact: Artifact) -> int:
        """Id of the artifact's row, which is added unless an equal one is there. Runs inside a transaction."""
        for made in self._artifact_ids(artifact.digest):
            if self._artifact(made) == artifact:
                return made
        parent_ids = []
        for parent in artifact.parents:
            known = self._artifact_ids(parent)
            if not known:
                raise StoreError(
                    f"the {artifact.kind} of stage {artifact.stage!r} has a parent that the ledger does not know",
                    fix="register the parent before the stage is committed",
                    where=parent,
                )
            parent_ids.append(known[-1])
        cursor = self._db.execute(
            "INSERT INTO artifacts (digest, kind, stage, config_digest, metrics, created_s) VALUES (?, ?, ?, ?, ?, ?)",
            (
                artifact.digest,
                artifact.kind,
                artifact.stage,
                artifact.config_digest,
                json.dumps(dict(artifact.metrics)),
                time.time(),
            ),
        )
        artifact_id = cursor.lastrowid
        assert artifact_id is not None  # an INSERT always sets it
        self._db.executemany(
            "INSERT INTO parents VALUES (?, ?, ?)",
            [(artifact_id, position, parent_id) for position, parent_id in enumerate(parent_ids)],
        )
        return artifact_id

    def _artifact_ids(self, digest: str) -> list[int]:
        return [row[0] for row in self._rows("SELECT id FROM artifacts WHERE digest = ? ORDER BY id", digest)]

    def _require_same(self, what: str, recorded: str | None, digest: str) -> None:
        if recorded not in (None, digest):
            raise StoreError(
                f"the {what} is recorded with other content: {recorded} instead of {digest}",
                fix="what the ledger has accepted stays: replay it, or forget it first",
                where=str(self._path),
            )

    def _prepare_writing(self, is_new: bool) -> None:
        """Sets how the connection writes, and makes the tables of a new ledger."""
        with self._errors():
            mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            self._db.execute("PRAGMA foreign_keys = ON")
        if mode != "wal":
            raise StoreError(
                "the home's file system can't hold the ledger: it lacks shared memory for SQLite's WAL mode",
                fix="use a home on a local disk",
                where=str(self._path),
            )
        if is_new:
            with self._transaction():
                for statement in _TABLES:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _require_version(self) -> None:
        version = self._rows("PRAGMA user_version")[0][0]
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the ledger has version {version}, and this reasonmill reads version {SCHEMA_VERSION}",
                fix="use the version of reasonmill that made this home, or another home",
                where=str(self._path),
            )

    def _rows(self, query: str, *values: str | int) -> list[Any]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self, *, waits_for_disk: bool = True) -> Iterator[None]:
        with self._errors():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if waits_for_disk else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
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
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the class of the error
            if code == sqlite3.SQLITE_FULL:
                raise out_of_space(self._path) from error
            if code == sqlite3.SQLITE_CONSTRAINT:
                raise StoreError(
                    f"the ledger refuses a record: {error}",
                    fix="begin the run first, and commit each stage once",
                    where=str(self._path),
                ) from error
            raise StoreError(
                f"the ledger can't be read or written: {error}",
                fix="check the disk and the permissions of the home, and that no other program has the file open",
                where=str(self._path),
            ) from error
