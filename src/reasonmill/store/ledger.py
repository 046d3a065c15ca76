"""The ledger: which artifact came from which, what each run consists of and how far its stages are.

It is one SQLite file in WAL mode. Every write is one transaction that is durable when the method returns; other
processes read meanwhile. "Latest" is always a query here, never a look at the files of a directory. Every row that is
read is checked against its seal.
"""

import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from reasonmill.errors import StoreError
from reasonmill.store.full_disk import waits_for_room
from reasonmill.store.incidents import Incident
from reasonmill.store.ledger_runs import LedgerOfRuns
from reasonmill.store.sealed_rows import Row, damaged_ledger
from reasonmill.types import Artifact

Record = TypeVar("Record", Incident, Artifact, "StageRecord")


def _tables() -> list[str]:
    """The statements that make the tables, as SQLite keeps them in a file."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
        return [row[0] for row in database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]


# What the metrics of an artifact call where it was adopted from (see `mill/adoption.py`), and which ancestors were.
ADOPTED, FROM_ADOPTED = "adopted", "made_from_adopted"
# What they call the models that a stage kept on its way (their digests by step); and, of one of these, the key of the
# stage and the step.
MODELS, OF_STAGE, AT_STEP = "kept_models", "of_stage", "at_step"


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: the run that finished it, what it made, and what it took in seconds and tokens.

    `machines` are the classes of machines on which it ran: several where it was resumed on another one.
    """

    key: str
    run: str
    name: str
    kind: str
    artifact: Artifact
    seconds: float
    tokens: int
    machines: tuple[str, ...]

    @property
    def log_key(self) -> str:
        """The key under which its steps are in the ledger: its own or, if it was adopted, that of the other code."""
        origin = self.artifact.metrics.get(ADOPTED)
        return origin["key"] if origin else self.key


class OtherContent(StoreError):
    """What is to be recorded is recorded already, with different content."""


class Ledger(LedgerOfRuns):
    """The ledger of a home. Methods raise StoreError if it can't be read or is damaged, OutOfSpace on a full disk."""

    tables = _tables()
    version = 2

    @waits_for_room
    def begin_stage(self, stage_key: str, machine: str) -> tuple[str, ...]:
        """Records that a stage runs on a machine; returns the machines of `machines`, this one included.

        A stage of which nothing was committed yet starts over: where it was tried before does not matter.
        """
        with self._transaction("machine"):
            kept = self._rows(
                "SELECT 1 FROM steps WHERE stage_key = ?1 AND groups_digest IS NOT NULL "
                "UNION ALL SELECT 1 FROM states WHERE stage_key = ?1 LIMIT 1",
                stage_key,
            )
            if not kept:
                self._db.execute("DELETE FROM machines WHERE stage_key = ?", (stage_key,))
            known = self.machines(stage_key)
            if machine not in known:
                self._insert("machines", stage_key=stage_key, position=len(known), machine=machine)
            return self.machines(stage_key)

    def machines(self, stage_key: str) -> tuple[str, ...]:
        """The classes of machines on which a stage ran, the first one first."""
        rows = self._read("machines", "stage_key = ?", stage_key, order="position")
        return tuple(row["machine"] for row in rows)

    @waits_for_room
    def commit_stage(
        self, *, key: str, run: str, name: str, kind: str, artifact: Artifact, seconds: float, tokens: int
    ) -> StageRecord:
        """Records a finished stage and its artifact, whose object is in the store already.

        Raises:
            StoreError: the key is recorded already, the run was never begun or a parent is not in the ledger.
        """
        took = {"seconds": seconds, "tokens": tokens, "finished_s": time.time()}
        with self._transaction("stage"):
            made = self._record_artifact(artifact)
            self._insert("stages", key=key, run=run, name=name, kind=kind, artifact=made, **took)
            self._db.execute("DELETE FROM run_stages WHERE run = ? AND name = ? AND position < 0", (run, name))
            return self._stage(self._read("stages", "key = ?", key)[0])

    def stage(self, key: str) -> StageRecord | None:
        """The finished stage of this key, or None."""
        rows = self._read("stages", "key = ?", key)
        return self._stage(rows[0]) if rows else None

    def stages(self) -> list[StageRecord]:
        """All finished stages, in the order in which they were finished."""
        return [self._stage(row) for row in self._read("stages", order="finished_s")]

    @waits_for_room
    def forget_stage(self, key: str) -> None:
        """Makes a stage count as not finished; its steps, its states and the record of its artifact stay."""
        with self._transaction("forgotten stage"):
            self._db.execute("DELETE FROM stages WHERE key = ?", (key,))

    @waits_for_room
    def commit_step(self, stage_key: str, step: int, groups_digest: str) -> None:
        """Records the groups that a step is trained on, before it is; verdicts of a judge are recorded in the same way.

        Raises:
            OtherContent: other groups are recorded for this step.
        """
        with self._transaction("groups"):
            self._require_same(f"groups of step {step}", self.step_groups(stage_key, step), groups_digest)
            otherwise = "ON CONFLICT DO UPDATE SET groups_digest = excluded.groups_digest"
            self._insert("steps", otherwise, stage_key=stage_key, step=step, groups_digest=groups_digest)

    def step_groups(self, stage_key: str, step: int) -> str | None:
        """Digest of the groups of a step, or None if none were committed."""
        rows = self._read("steps", "stage_key = ? AND step = ?", stage_key, step)
        return rows[0]["groups_digest"] if rows else None

    def steps(self, stage_key: str) -> list[tuple[int, str | None]]:
        """The steps of a stage in their order, each with the digest of its groups, or None if it has none."""
        rows = self._read("steps", "stage_key = ?", stage_key, order="step")
        return [(row["step"], row["groups_digest"]) for row in rows]

    @waits_for_room
    def forget_groups(self, stage_key: str, step: int) -> None:
        """Leaves a step without groups: those that it had are lost, and others may be committed.

        The step stays, and so do its metrics, which were made from what is lost.
        """
        with self._transaction("forgotten groups"):
            self._db.execute(
                "UPDATE steps SET groups_digest = NULL WHERE stage_key = ? AND step = ?", (stage_key, step)
            )

    @waits_for_room
    def forget_steps(self, stage_key: str, start: int) -> None:
        """Forgets groups and metrics of all steps from `start` on, which are then run again."""
        with self._transaction("forgotten steps"):
            self._db.execute("DELETE FROM steps WHERE stage_key = ? AND step >= ?", (stage_key, start))

    @waits_for_room
    def record_metrics(self, stage_key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Records a step's metrics; a replayed step records them again. A finished stage keeps those it was made with.

        A power cut may lose the latest of them, which resuming restores: the next commit of a state or of a
        step's groups waits for the disk, and takes all that came before with it.
        """
        with self._transaction("metrics", synced=False):
            if self._read("stages", "key = ?", stage_key):
                return
            otherwise = "ON CONFLICT DO UPDATE SET metrics = excluded.metrics"
            self._insert("steps", otherwise, stage_key=stage_key, step=step, metrics=json.dumps(dict(metrics)))

    def metrics(self, stage_key: str) -> list[dict[str, Any]]:
        """Metrics of the steps that have any, in the order of steps, each with its "step"."""
        rows = self._read("steps", "stage_key = ? AND metrics IS NOT NULL", stage_key, order="step")
        return [{"step": row["step"], **json.loads(row["metrics"])} for row in rows]

    @waits_for_room
    def commit_state(self, stage_key: str, step: int, digest: str) -> None:
        """Records the learner's state, an object of the store, from which step `step` resumes.

        Raises:
            OtherContent: another state is recorded for this step.
        """
        with self._transaction("state"):
            self._require_same(f"state of step {step}", dict(self.states(stage_key)).get(step), digest)
            self._insert("states", "ON CONFLICT DO NOTHING", stage_key=stage_key, step=step, digest=digest)

    @waits_for_room
    def carry_over(self, stage_key: str, from_key: str, steps: int) -> None:
        """Gives a stage that has nothing yet all steps of another one, its machines, and its state of step `steps`."""
        with self._transaction("carried steps"):
            self._db.execute("DELETE FROM machines WHERE stage_key = ?", (stage_key,))
            found = {table: self._read(table, "stage_key = ?", from_key) for table in ("steps", "machines")}
            found["states"] = self._read("states", "stage_key = ? AND step = ?", from_key, steps)
            for table, rows in found.items():
                for row in rows:
                    self._insert(table, **{**row, "stage_key": stage_key})

    def latest_state(self, stage_key: str) -> tuple[int, str] | None:
        """Step and digest of the last committed state, or None."""
        states = self.states(stage_key)
        return states[-1] if states else None

    def states(self, stage_key: str) -> list[tuple[int, str]]:
        """Step and digest of all committed states, in the order of steps."""
        rows = self._read("states", "stage_key = ?", stage_key, order="step")
        return [(row["step"], row["digest"]) for row in rows]

    @waits_for_room
    def forget_state(self, stage_key: str, step: int) -> None:
        """Removes a state's record; do this before its object is deleted, so that no record lacks its object."""
        with self._transaction("forgotten state"):
            self._db.execute("DELETE FROM states WHERE stage_key = ? AND step = ?", (stage_key, step))

    def refers_to(self, digest: str) -> bool:
        """Whether an object is an artifact, or a state or the groups of any stage: equal ones are one object."""
        return bool(
            self._rows(
                "SELECT 1 FROM states WHERE digest = ?1 UNION ALL SELECT 1 FROM artifacts WHERE digest = ?1 "
                "UNION ALL SELECT 1 FROM steps WHERE groups_digest = ?1 LIMIT 1",
                digest,
            )
        )

    def begun_stages(self) -> list[str]:
        """Keys of all stages that have steps or states, finished or not."""
        return [row[0] for row in self._rows("SELECT stage_key FROM steps UNION SELECT stage_key FROM states")]

    @waits_for_room
    def register(self, artifact: Artifact) -> None:
        """Records an artifact that no stage of a run made, such as an imported base; once is enough.

        Raises:
            StoreError: a parent is not in the ledger.
        """
        with self._transaction("artifact"):
            self._record_artifact(artifact)

    def intermediates(self, stage_key: str) -> dict[int, Artifact]:
        """The models that a stage, finished or not, has kept on its way, by the steps that it had taken."""
        found = [self._made(row) for row in self._read("artifacts", "instr(stage, '@') > 0", order="id")]
        own = {a.metrics[AT_STEP]: a for a in found if a.metrics.get(OF_STAGE) == stage_key}
        return dict(sorted(own.items()))

    def knows(self, digest: str) -> bool:
        """Whether there is an artifact with this digest."""
        return bool(self._makings(digest))

    def artifact(self, digest: str) -> Artifact:
        """The artifact of a digest, or of the beginning of one; of equal artifacts, the one that was made last.

        Raises:
            StoreError: no artifact begins like this, or several do; the message lists them.
        """
        found = self._read("artifacts", "substr(digest, 1, length(?1)) = ?1 AND ?1 != ''", digest, order="digest, id")
        latest = {row["digest"]: row for row in found}
        if not latest:
            raise StoreError(
                f"no artifact has a digest that begins with {digest!r}",
                fix="check the digest, and that this is the home it was made in",
                where=str(self._path),
            )
        if len(latest) > 1 and digest not in latest:
            candidates = [f"{row['digest'][: len(digest) + 8]} ({row['stage']})" for row in latest.values()]
            more = f" and {len(latest) - 8} more" if len(latest) > 8 else ""
            raise StoreError(
                f"{len(latest)} artifacts have digests that begin with {digest!r}: {', '.join(candidates[:8])}{more}",
                fix="give more digits",
                where=str(self._path),
            )
        return self._made(latest.get(digest) or next(iter(latest.values())))

    def parents(self, artifact: Artifact) -> list[Artifact]:
        """What a recorded artifact was made from, in order; of equal artifacts, the one that was there at the time.

        Raises:
            StoreError: the ledger has no such artifact.
        """
        identity = _identity(artifact)
        for row in reversed(self._makings(artifact.digest)):
            if _identity(self._made(row)) == identity:
                return [self._made(parent) for parent in self._parents(row["id"])]
        raise StoreError(
            f"the ledger has no artifact {artifact.digest[:12]} of stage {artifact.stage!r}",
            fix="check that this is the home it was made in",
            where=str(self._path),
        )

    def artifacts(self) -> list[Artifact]:
        """All artifacts that were ever recorded, in this order."""
        return [self._made(row) for row in self._read("artifacts", order="id")]

    @waits_for_room
    def record_views(self, run: str, digests: Mapping[str, str]) -> None:
        """Records what the files of a run's directory hold, by their paths below it, in place of what was recorded."""
        with self._transaction("views"):
            self._db.execute("DELETE FROM views WHERE run = ?", (run,))
            for path, digest in digests.items():
                self._insert("views", run=run, path=path, digest=digest)

    def views(self, run: str) -> dict[str, str]:
        """What `record_views` recorded; nothing while the run's directory is being written, or if that was cut off."""
        return {row["path"]: row["digest"] for row in self._read("views", "run = ?", run, order="path")}

    @waits_for_room
    def record_incident(self, incident: Incident) -> None:
        """Records damage and what was done about it."""
        with self._transaction("incident"):
            self._insert("incidents", **asdict(incident))

    def incidents(self) -> list[Incident]:
        """All incidents, in the order in which they were recorded."""
        return [_record(Incident, row) for row in self._read("incidents", order="id")]

    def _stage(self, row: Row) -> StageRecord:
        artifact = self._made(self._artifact_row(row["artifact"]))
        record = _record(StageRecord, {**row, "artifact": artifact, "machines": ()})
        return replace(record, machines=self.machines(record.log_key))

    def _artifact_row(self, artifact_id: int) -> Row:
        rows = self._read("artifacts", "id = ?", artifact_id)
        if not rows:
            what = f"is damaged: it refers to artifact number {artifact_id}, which it does not have"
            raise damaged_ledger(self._path, what)
        return rows[0]

    def _made(self, row: Row) -> Artifact:
        parents = tuple(parent["digest"] for parent in self._parents(row["id"]))
        return _record(Artifact, {**row, "parents": parents, "metrics": json.loads(row["metrics"])})

    def _parents(self, artifact_id: int) -> list[Row]:
        """The rows of the artifacts that one was made from, in order."""
        links = self._read("parents", "child = ?", artifact_id, order="position")
        return [self._artifact_row(link["parent"]) for link in links]

    def _record_artifact(self, artifact: Artifact) -> int:
        """Id of the artifact's row, which is added unless an equal one is there. Runs inside a transaction."""
        for row in self._makings(artifact.digest):
            if self._made(row) == artifact:
                return int(row["id"])
        parent_ids = []
        for parent in artifact.parents:
            known = self._makings(parent)
            if not known:
                raise StoreError(
                    f"the {artifact.kind} of stage {artifact.stage!r} has a parent that the ledger does not know",
                    fix="register the parent before the stage is committed",
                    where=parent,
                )
            parent_ids.append(known[-1]["id"])
        plain = {name: getattr(artifact, name) for name in ("digest", "kind", "stage", "config_digest")}
        metrics = json.dumps(dict(artifact.metrics))
        artifact_id = self._insert("artifacts", **plain, metrics=metrics, created_s=time.time())
        assert artifact_id is not None  # an INSERT always sets it
        for position, parent_id in enumerate(parent_ids):
            self._insert("parents", child=artifact_id, position=position, parent=parent_id)
        return artifact_id

    def _makings(self, digest: str) -> list[Row]:
        """The rows of equal artifacts, in the order in which they were recorded."""
        return self._read("artifacts", "digest = ?", digest, order="id")

    def _require_same(self, what: str, recorded: str | None, digest: str) -> None:
        if recorded not in (None, digest):
            raise OtherContent(
                f"the {what} is recorded with other content: {recorded} instead of {digest}",
                fix="what the ledger has accepted stays; what was damaged can only be rebuilt by the machine, the "
                "number of threads and the server that made it: run there, restore the object from a copy of the home, "
                "or start over with another seed",
                where=str(self._path),
            )


def _record(kind: type[Record], values: Row) -> Record:
    """A record of those of the values that it has fields for."""
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def _identity(artifact: Artifact) -> tuple[Any, ...]:
    """What distinguishes artifacts of equal content. An adopted one differs from the one it was adopted from."""
    marks = [artifact.metrics.get(name) for name in (ADOPTED, FROM_ADOPTED)]
    return artifact.stage, artifact.config_digest, artifact.parents, marks
