"""The part of the ledger that knows runs: of which stages each consists, and what it had finished earlier."""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reasonmill.errors import StoreError, suggestion
from reasonmill.store.full_disk import waits_for_room
from reasonmill.store.sealed_rows import SealedRows

# Where the recorded recipe keeps the seed and the settings of stages that were finished under an earlier recipe.
_EARLIER = "earlier"
# What a recipe has besides the tables in which it defines tasks, rewards and the like.
_NO_TABLES = frozenset({"name", "seed", "result", "watchdog", "models", "stage"})


class RunStage(NamedTuple):
    """A stage that a run consists of, finished or not: `Ledger.stage(key)` says which."""

    name: str
    kind: str
    key: str


class MadeWith(NamedTuple):
    """The seed and the settings, as JSON, with which a stage was begun, and what its recipe defined for its stages."""

    seed: int | None
    settings: Mapping[str, Any]
    tables: Mapping[str, Any]


class Making(NamedTuple):
    """One making of an artifact: its number in the ledger, and those of what it was made from."""

    number: int
    digest: str
    kind: str
    metrics: Mapping[str, Any]
    parents: tuple[int, ...]


class Finished(NamedTuple):
    """Of a finished stage the run that finished it, and the number of what it made."""

    run: str
    number: int


@dataclass(frozen=True)
class RunRecord:
    """A run: its resolved recipe, when it was first started (seconds since the epoch) and its stages in order.

    `earlier` has the last finished result of each stage that was started over, or not reached yet, since the recipe or
    the code was changed: until the stage is finished again, that is its result.
    """

    name: str
    recipe: Mapping[str, Any]
    started_s: float
    stages: tuple[RunStage, ...]
    earlier: tuple[RunStage, ...] = ()
    recorded: Mapping[str, MadeWith] = field(default_factory=dict)  # of earlier recipes, by the stage's key

    def made_with(self, key: str) -> MadeWith | None:
        """With what a stage of this run was begun; None where that is not recorded any more."""
        name = next((stage.name for stage in self.stages if stage.key == key), None)
        for settings in self.recipe.get("stage", ()) if name is not None else ():
            if settings["name"] == name:
                tables = {key: value for key, value in self.recipe.items() if key not in _NO_TABLES}
                return MadeWith(self.recipe.get("seed"), settings, tables)
        return self.recorded.get(key)


def unknown_run(name: str, known: Collection[str], home: Path) -> StoreError:
    """The error for a run that a home does not have."""
    listed = f"its runs are {', '.join(map(repr, sorted(known)))}" if known else "it has no runs"
    return StoreError(
        f"there is no run {name!r} in this home; {listed}",
        fix=suggestion(name, known) or "`reasonmill status` shows the runs and what they take",
        where=str(home),
    )


class LedgerOfRuns(SealedRows):
    """The runs of a ledger.

    The rows of a run's stages are numbered from 0; those of earlier results have numbers below 0.
    """

    @waits_for_room
    def begin_run(self, name: str, recipe: Mapping[str, Any], stages: Sequence[tuple[str, str, str]]) -> None:
        """Records a run and its first stages as (name, kind, key).

        A run that is begun again keeps its start time, and, if its recipe is the same, also the stages that it had
        reached after these: readers find them while the run goes through them once more. Of those that it drops, the
        finished ones stay as earlier results, until a stage of the same name is finished.
        """
        begun = [RunStage(*stage) for stage in stages]
        with self._transaction("run"):
            before = next((run for run in self.runs() if run.name == name), None)
            if before and before.recipe == recipe and list(before.stages[: len(begun)]) == begun:
                return
            earlier, recorded = self._earlier(before, begun) if before else ([], {})
            kept = {_EARLIER: {key: made._asdict() for key, made in recorded.items()}} if recorded else {}
            record = {"name": name, "recipe": json.dumps({**recipe, **kept}), "started_s": time.time()}
            self._insert("runs", "ON CONFLICT DO UPDATE SET recipe = excluded.recipe", **record)
            self._db.execute("DELETE FROM run_stages WHERE run = ?", (name,))
            for position, stage in enumerate([*earlier, *begun], start=-len(earlier)):
                self._insert("run_stages", run=name, position=position, **stage._asdict())

    def runs(self) -> list[RunRecord]:
        """All runs, the one that was started first comes first."""
        found = []
        for row in self._read("runs", order="started_s, name"):
            recipe = json.loads(row["recipe"])
            recorded = {key: MadeWith(**made) for key, made in recipe.pop(_EARLIER, {}).items()}
            rows = self._read("run_stages", "run = ?", row["name"], order="position")
            stages = [(it["position"], RunStage(it["name"], it["kind"], it["key"])) for it in rows]
            current = tuple(stage for position, stage in stages if position >= 0)
            earlier = tuple(stage for position, stage in stages if position < 0)
            found.append(RunRecord(row["name"], recipe, row["started_s"], current, earlier, recorded))
        return found

    def makings(self) -> list[Making]:
        """All artifacts that were ever recorded, in this order."""
        parents: dict[int, list[int]] = {}
        for link in self._read("parents", order="child, position"):
            parents.setdefault(link["child"], []).append(link["parent"])
        return [
            Making(row["id"], row["digest"], row["kind"], json.loads(row["metrics"]), tuple(parents.get(row["id"], ())))
            for row in self._read("artifacts", order="id")
        ]

    def finished(self) -> dict[str, Finished]:
        """All finished stages, by their keys."""
        return {row["key"]: Finished(row["run"], row["artifact"]) for row in self._read("stages")}

    def known_keys(self) -> list[str]:
        """The keys of all stages of which anything is recorded, and those of what is kept beside stages."""
        tables = {"run_stages": "key", "stages": "key", "steps": "stage_key", "states": "stage_key"}
        selected = [f"SELECT {column} FROM {table}" for table, column in {**tables, "machines": "stage_key"}.items()]
        return sorted(row[0] for row in self._rows(" UNION ".join(selected)))

    @waits_for_room
    def forget_runs(
        self, runs: Collection[str], keys: Collection[str], makings: Collection[int], heirs: Mapping[str, str]
    ) -> None:
        """Forgets runs, stages with all that is recorded of them, and artifacts, at once: a crash leaves all or none.

        Args:
            keys: of the stages.
            makings: the numbers of the artifacts. None of them is of a stage that stays or a parent of one that stays.
            heirs: by the keys of finished stages that stay, the run that has each from now on.

        Raises:
            StoreError: something that stays refers to what is to go; then nothing is forgotten.
        """
        with self._transaction("removed runs"):
            for table in ("views", "run_stages"):
                self._db.executemany(f"DELETE FROM {table} WHERE run = ?", [(run,) for run in runs])
            self._db.executemany("UPDATE stages SET run = ? WHERE key = ?", [(run, key) for key, run in heirs.items()])
            self._db.executemany("DELETE FROM stages WHERE key = ?", [(key,) for key in keys])
            for table in ("steps", "states", "machines"):
                self._db.executemany(f"DELETE FROM {table} WHERE stage_key = ?", [(key,) for key in keys])
            self._db.executemany("DELETE FROM parents WHERE child = ?", [(number,) for number in makings])
            self._db.executemany("DELETE FROM artifacts WHERE id = ?", [(number,) for number in makings])
            self._db.executemany("DELETE FROM runs WHERE name = ?", [(run,) for run in runs])

    def _earlier(self, before: RunRecord, begun: Sequence[RunStage]) -> tuple[list[RunStage], dict[str, MadeWith]]:
        """The earlier results of a run that is begun with other stages, and with what all that it drops was made."""
        dropped = [stage for stage in before.stages if stage not in begun and self._is_finished(stage)]
        made = {stage.key: made for stage in dropped if (made := before.made_with(stage.key)) is not None}
        done = {stage.name for stage in begun if self._is_finished(stage)}
        # Of each name the one that was finished last: what the run had now comes after what it had before.
        latest = {stage.name: stage for stage in (*before.earlier, *dropped) if stage not in begun}
        earlier = [stage for name, stage in latest.items() if name not in done and self._is_finished(stage)]
        return earlier, {**before.recorded, **made}

    def _is_finished(self, stage: RunStage) -> bool:
        return bool(self._read("stages", "key = ?", stage.key))
