"""Runs a recipe's stages in order; a stage whose key the ledger has is not run again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from reasonmill.errors import Interrupted, OutOfSpace
from reasonmill.mill.artifacts import made_digest
from reasonmill.mill.machine import machine_class
from reasonmill.mill.report import write_report
from reasonmill.mill.summary import StageResult, read_summary, same_outcome, summarise, write_summary
from reasonmill.protocols import Progress
from reasonmill.recipe.graph import Node, Recipe, directory_digest, stage_key
from reasonmill.recipe.hub import fetch
from reasonmill.recipe.reference import DirectorySource, HubSource, StageSource
from reasonmill.stages.context import Input, Outcome, StageContext
from reasonmill.stages.registry import kinds
from reasonmill.store.commit import MANIFEST, disk_errors, replace_file
from reasonmill.store.home import Home
from reasonmill.store.steps import forget_state
from reasonmill.types import Artifact, content_digest

MINIMUM_FREE_BYTES = 200_000_000
MODEL, RECIPE, REPORT = "model", "recipe.json", "report.html"


@dataclass(frozen=True)
class RunResult:
    """What a run made: its directory, its stages in order, and the content of its summary.json."""

    directory: Path
    stages: tuple[StageResult, ...]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with a stage. `key` is None, and `waits_for` not empty, while an input does not exist.

    `artifact` is what a cached stage made.
    """

    name: str
    kind: str
    key: str | None
    status: Literal["cached", "to run", "unknown"]
    waits_for: tuple[str, ...] = ()
    resumes_at: int | None = None
    artifact: Artifact | None = None


def run_recipe(
    recipe: Recipe,
    home: Home,
    progress: Progress,
    *,
    until: str | None,
    device: str,
    stop_requested: Callable[[], bool],
) -> RunResult:
    """Runs the stages that the ledger does not have yet, and writes the run's directory.

    Args:
        until: the name of the last stage to run; None runs all.
        device: "cpu" or "cuda".
        stop_requested: whether the user asked to stop; looked at between stages, and by stages between steps.

    Raises:
        RecipeError: there is no stage `until`.
        Interrupted: a stop was requested; what is finished is kept.
        OutOfSpace: the home's disk is almost full.
    """
    run = _Run(recipe, home, progress, device, stop_requested)
    nodes = recipe.up_to(until)
    try:
        for node in nodes:
            run.finish(node)
    except BaseException:
        run.publish_finished()
        raise
    return run.publish()


def plan(recipe: Recipe, home: Home | None, until: str | None) -> list[PlannedStage]:
    """What `run_recipe` would do, as far as it can be known; reads only. A home of None has nothing."""
    done: dict[str, Artifact] = {}
    planned = []
    for node in recipe.up_to(until):
        name, kind = node.settings.name, node.settings.kind
        missing = tuple(stage for stage in node.stage_inputs if stage not in done)
        if missing:
            planned.append(PlannedStage(name, kind, None, "unknown", waits_for=missing))
            continue
        key = stage_key(node, _inputs(node, done, home, recipe), recipe.seed, kinds()[kind])
        record = home.ledger.stage(key) if home else None
        if home and record and home.objects.exists(record.artifact.digest):
            done[name] = record.artifact
            planned.append(PlannedStage(name, kind, key, "cached", artifact=record.artifact))
        else:
            state = home.ledger.latest_state(key) if home else None
            planned.append(PlannedStage(name, kind, key, "to run", resumes_at=state[0] if state else None))
    return planned


class _Run:
    """A run in progress."""

    def __init__(
        self, recipe: Recipe, home: Home, progress: Progress, device: str, stop_requested: Callable[[], bool]
    ) -> None:
        self._recipe = recipe
        self._home = home
        self._progress = progress
        self._device = device
        self._stop_requested = stop_requested
        self._results: list[StageResult] = []
        self._artifacts: dict[str, Artifact] = {}  # by the stage's name
        self._begun: list[tuple[str, str, str]] = []  # name, kind and key of the stages so far

    def finish(self, node: Node) -> None:
        """Takes the stage from the ledger, or runs it and commits what it made."""
        inputs = _inputs(node, self._artifacts, self._home, self._recipe)
        module = kinds()[node.settings.kind]
        key = stage_key(node, inputs, self._recipe.seed, module)
        self._begun.append((node.settings.name, node.settings.kind, key))
        self._home.ledger.begin_run(self._recipe.name, self._recipe.resolved(), self._begun)
        result = self._committed(node, key)
        if result is None:
            if self._stop_requested():
                raise Interrupted(
                    f"stopped before stage {node.settings.name!r}", fix="the same command goes on from here"
                )
            self._require_space()
            result = self._execute(node, key, inputs, module)
        else:
            self._progress.note(f"{result.name}  cached  {result.artifact.digest[:12]}")
        self._drop_states(key)
        self._results.append(result)
        self._artifacts[result.name] = result.artifact

    def publish(self) -> RunResult:
        """Makes the run's directory show the stages that are finished; what is up to date is left alone."""
        directory = self._home.run_dir(self._recipe.name)
        summary = summarise(self._recipe, tuple(self._results), self._device)
        resolved = (json.dumps(self._recipe.resolved(), indent=2, ensure_ascii=False) + "\n").encode()
        if not (directory / RECIPE).is_file() or (directory / RECIPE).read_bytes() != resolved:
            replace_file(directory / RECIPE, resolved)
        shown = read_summary(directory)
        self._publish_model(directory, summary["model"], shown["model"] if shown else None)
        if shown is None or not same_outcome(shown, summary) or not (directory / REPORT).is_file():
            write_report(directory, self._home, summary, {result.name: result.key for result in self._results})
            write_summary(directory, summary)
        return RunResult(directory, tuple(self._results), summary)

    def publish_finished(self) -> None:
        """Shows what a run that ended early has."""
        if self._results:
            self.publish()

    def _publish_model(self, directory: Path, digest: str | None, shown: str | None) -> None:
        """Puts a plain copy of the model into the run's directory, unless that is the model which is shown there."""
        target, new, old = (directory / name for name in (MODEL, f".{MODEL}.new", f".{MODEL}.old"))
        if digest == shown and target.is_dir() == (digest is not None):
            return
        with disk_errors(directory):
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
            if digest is not None:
                source = model_path(self._home, digest, self._recipe)
                shutil.copytree(source, new, ignore=lambda at, _: [MANIFEST] if Path(at) == source else [])
            # Aside first: a crash in between leaves no model here, and the next run puts it back from the store.
            if target.exists():
                target.rename(old)
            if digest is not None:
                new.rename(target)
            shutil.rmtree(old, ignore_errors=True)

    def _committed(self, node: Node, key: str) -> StageResult | None:
        """The stage as the ledger has it; a stage whose object is gone counts as not finished."""
        record = self._home.ledger.stage(key)
        if record is None:
            return None
        if not self._home.objects.exists(record.artifact.digest):
            self._home.ledger.forget_stage(key)
            return None
        name, kind, machines = node.settings.name, node.settings.kind, self._home.ledger.machines(key)
        return StageResult(name, kind, key, record.artifact, True, record.seconds, record.tokens, machines)

    def _require_space(self) -> None:
        free = self._home.free_bytes()
        if free < MINIMUM_FREE_BYTES:
            raise OutOfSpace(
                f"only {free / 1e6:.0f} MB are left on the disk, and a stage needs {MINIMUM_FREE_BYTES / 1e6:.0f} MB",
                fix="free some space and run the same command again",
                where=str(self._home.path),
            )

    def _execute(self, node: Node, key: str, inputs: Mapping[str, Input], module: ModuleType) -> StageResult:
        """Runs the stage and commits what it made."""
        settings = node.settings
        self._register_bases(node, inputs)
        for model in self._recipe.models.values():
            if model.digest in {read.digest for read in inputs.values()}:
                self._progress.note(f"{settings.name}  looks for {model.hub}")
                fetch(model)
        machines = self._begin_on_this_machine(settings.name, key)
        context = StageContext(
            key=key,
            seed=self._recipe.seed,
            device=self._device,
            home=self._home,
            progress=self._progress,
            stop_requested=self._stop_requested,
        )
        started = time.monotonic()
        outcome: Outcome = module.run(settings, inputs, context)
        digest = self._home.objects.put(outcome.write)
        seconds = time.monotonic() - started
        artifact = Artifact(
            digest=digest,
            kind=module.MAKES,
            stage=settings.name,
            parents=(*(read.digest for read in inputs.values()), *self._verdicts(node)),
            config_digest=content_digest(settings.model_dump(mode="json", by_alias=True)),
            metrics=outcome.metrics,
        )
        self._home.ledger.commit_stage(
            key=key,
            run=self._recipe.name,
            name=settings.name,
            kind=settings.kind,
            artifact=artifact,
            seconds=seconds,
            tokens=outcome.tokens,
        )
        return StageResult(settings.name, settings.kind, key, artifact, False, seconds, outcome.tokens, machines)

    def _begin_on_this_machine(self, name: str, key: str) -> tuple[str, ...]:
        """Records where the stage runs, and says so where it goes on what another class of machine began."""
        here = machine_class(self._device)
        machines = self._home.ledger.begin_stage(key, here)
        others = "; ".join(machine for machine in machines if machine != here)
        if others:
            self._progress.note(f"{name}  began on: {others}")
            self._progress.note(f"{name}  goes on on: {here}; its bits may differ from those of a run on one of them")
        return machines

    def _verdicts(self, node: Node) -> list[str]:
        """The verdicts through which the stage came by its models: they belong to its lineage, too."""
        sources = [self._artifacts[name] for name in node.stage_inputs]
        return [artifact.digest for artifact in sources if artifact.kind == "verdict"]

    def _register_bases(self, node: Node, inputs: Mapping[str, Input]) -> None:
        """Makes the models from outside of the home known to the ledger, so that they can be parents."""
        for name, source in node.sources.items():
            if not isinstance(source, StageSource):
                base = source.model.hub if isinstance(source, HubSource) else source.path.name
                self._home.ledger.register(Artifact(inputs[name].digest, "base", base, (), content_digest(None)))

    def _drop_states(self, key: str) -> None:
        """Removes the states of a finished stage, which only an unfinished one needs. Also done for a cached stage,
        because the process that finished it may have been killed before it came to this."""
        for step, digest in self._home.ledger.states(key):
            forget_state(self._home, key, step, digest)


def _inputs(node: Node, artifacts: Mapping[str, Artifact], home: Home | None, recipe: Recipe) -> dict[str, Input]:
    """What a stage reads, by the key of the settings that refers to it."""
    inputs = {}
    for name, source in node.sources.items():
        if isinstance(source, StageSource):
            assert home is not None  # it holds the artifact
            digest = made_digest(artifacts[source.stage])
            inputs[name] = Input(model_path(home, digest, recipe), digest)
        elif isinstance(source, HubSource):
            inputs[name] = Input(source.model.directory, source.model.digest)
        else:
            inputs[name] = Input(source.path, directory_digest(source.path))
    return inputs


def model_path(home: Home, digest: str, recipe: Recipe) -> Path:
    """The directory of an object, or of the model from outside that a gate left in place and no home holds."""
    if not home.objects.exists(digest):
        for source in {source for node in recipe.nodes for source in node.sources.values()}:
            if isinstance(source, HubSource) and source.model.digest == digest:
                return source.model.directory
            if isinstance(source, DirectorySource) and directory_digest(source.path) == digest:
                return source.path
    return home.objects.path(digest)
