"""Runs a recipe's stages in order; a stage whose key the ledger has is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from reasonmill.activity import phase
from reasonmill.content import directory_digest, path_digest
from reasonmill.errors import Interrupted, TooManyUngraded, TrainingDiverged
from reasonmill.mill.artifacts import made_digest
from reasonmill.mill.machine import machine_class
from reasonmill.mill.model_size import ModelSize, sizes_by_stage
from reasonmill.mill.report import write_report
from reasonmill.mill.space import RoomWait, Writes, expected_writes, require_room, weight_bytes
from reasonmill.mill.summary import REPEATABLE, StageResult, read_summary, same_outcome, summarise, write_summary
from reasonmill.mill.watchdog import Watchdog, WatchedProgress
from reasonmill.mill.workload import workloads
from reasonmill.placement import Backend
from reasonmill.protocols import Progress
from reasonmill.recipe.graph import Node, Recipe, stage_key
from reasonmill.recipe.hub import HubModel, fetch
from reasonmill.recipe.reference import DirectorySource, FileSource, HubSource, StageSource
from reasonmill.rewards.verdicts import drop_damaged_verdicts
from reasonmill.servers.client import ServerError
from reasonmill.settings import decisive
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.store.commit import replace_directory, replace_file
from reasonmill.store.full_disk import waits_for_room
from reasonmill.store.home import Home
from reasonmill.store.incidents import Incident
from reasonmill.store.ledger import OtherContent
from reasonmill.store.looking import exists, is_directory
from reasonmill.store.steps import drop_state, give_up_lost_groups, lost_groups
from reasonmill.store.views import MODEL, RECIPE, damaged_views, view_digests
from reasonmill.types import Artifact, content_digest

_COMES_OUT_OTHERWISE = "they come out otherwise, as on another class of machine or from a server"


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
    backend: Backend,
    stop_requested: Callable[[], bool],
) -> RunResult:
    """Runs the stages that the ledger does not have yet, and writes the run's directory.

    Where the disk is full, it waits for room.

    Args:
        until: the name of the last stage to run; None runs all.
        backend: makes what the stages sample and learn with.
        stop_requested: whether the user asked to stop; looked at between stages, and by stages between steps.

    Raises:
        RecipeError: there is no stage `until`.
        Interrupted: a stop was requested; what is finished is kept.
        OutOfSpace: the home's disk can't hold what a stage is expected to write.
    """
    home.tell_incidents(progress.note)
    run = _Run(recipe, home, progress, backend, stop_requested)
    nodes = recipe.up_to(until)
    try:
        with home.waiting_when_full(run.when_full):
            for node in nodes:
                run.finish(node)
    except Exception:  # and not a second Ctrl-C, which ends at once
        # Without waiting for room, and whatever goes wrong: nothing must hide why the run ended. The next run shows
        # what this one can't.
        with suppress(Exception):
            run.show_finished()
        raise
    with home.waiting_when_full(run.when_full):
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
        key = stage_key(node, _inputs(node, done, home, recipe), recipe.seed)
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
        self, recipe: Recipe, home: Home, progress: Progress, backend: Backend, stop_requested: Callable[[], bool]
    ) -> None:
        self._recipe = recipe
        self._home = home
        self._progress = progress
        self._backend = backend
        self._device = backend.placement.device
        self._stop_requested = stop_requested
        self._sizes: dict[str, dict[str, ModelSize | None]] | None = None
        self.when_full = RoomWait(home, progress, stop_requested)
        self._results: list[StageResult] = []
        self._artifacts: dict[str, Artifact] = {}  # by the stage's name
        self._remade: dict[str, str] = {}  # digests of what stages with lost objects had made, by their keys
        self._begun: list[tuple[str, str, str]] = []  # name, kind and key of the stages so far

    def finish(self, node: Node) -> None:
        """Takes the stage from the ledger, or runs it and commits what it made."""
        with Watchdog(self._recipe.watchdog, node.settings.name) as watchdog:
            self._finish(node, watchdog)

    def _finish(self, node: Node, watchdog: Watchdog) -> None:
        with phase("reading"):
            inputs = _inputs(node, self._artifacts, self._home, self._recipe)
        module = node.module
        key = stage_key(node, inputs, self._recipe.seed)
        self._begun.append((node.settings.name, node.settings.kind, key))
        self._home.ledger.begin_run(self._recipe.name, self._recipe.resolved(), self._begun)
        result = self._committed(node, key)
        lacks_groups = result is not None and self._lacks_groups(node, key)
        if result is None or lacks_groups:
            if self._stop_requested():
                raise Interrupted(f"stopped before stage {node.settings.name!r}")
            self.when_full.writes = self._expected_writes(node, key)
            require_room(self._home, node.settings.name, self.when_full.writes)
        go_through = partial(self._go_through, node, key, inputs, module, watchdog)
        if lacks_groups:
            self._make_groups_again(node, key, inputs, go_through)
        if result is None:
            result = self._execute(node, key, inputs, module.MAKES, go_through)
        else:
            self._progress.note(f"{result.name}  cached  {result.artifact.digest[:12]}")
        self._drop_states(key)
        self._results.append(result)
        self._artifacts[result.name] = result.artifact

    @waits_for_room
    def publish(self) -> RunResult:
        """Makes the run's directory show the stages that are finished; what is up to date is left alone."""
        return self._publish()

    def show_finished(self) -> None:
        """Shows what a run that ended early has."""
        if self._results:
            self._publish()

    def _publish(self) -> RunResult:
        name, ledger = self._recipe.name, self._home.ledger
        directory = self._home.run_dir(name)
        summary = summarise(self._recipe, tuple(self._results), self._device)
        resolved = (json.dumps(self._recipe.resolved(), indent=2, ensure_ascii=False) + "\n").encode()
        # What no digest is recorded of was cut off while it was written, and is not trusted.
        is_whole = bool(ledger.views(name)) and not self._damaged_views(directory)
        shown = read_summary(directory) if is_whole else None
        if shown is None or not same_outcome(shown, summary) or (directory / RECIPE).read_bytes() != resolved:
            ledger.record_views(name, {})
            replace_file(directory / RECIPE, resolved)
            self._publish_model(directory, summary["model"], shown["model"] if shown else None)
            write_report(directory, self._home, summary, {result.name: result.key for result in self._results})
            write_summary(directory, summary)
            ledger.record_views(name, view_digests(directory))
        return RunResult(directory, tuple(self._results), summary)

    def _damaged_views(self, directory: Path) -> bool:
        """Whether a file of the run's directory is not what was written; each that is not is told."""
        recorded = self._home.ledger.views(self._recipe.name)
        damaged = damaged_views(directory, recorded)
        for name in damaged:
            file, what = directory / name, "is damaged" if exists(directory / name) else "is missing"
            place = file.relative_to(self._home.path).as_posix()
            self._home.report(Incident(place, recorded[name], what, "it is written again", time.time()))
        return bool(damaged)

    def _publish_model(self, directory: Path, digest: str | None, shown: str | None) -> None:
        """Puts a plain copy of the model into the run's directory, unless that is the model which is shown there."""
        if digest == shown and is_directory(directory / MODEL) == (digest is not None):
            return
        for model in self._recipe.models.values():
            if model.digest == digest:  # a gate left it in place, maybe in an earlier process
                self._apply_template(model)
        # A crash may leave no model here; the next run then puts it back from the store.
        source = model_path(self._home, digest, self._recipe) if digest is not None else None
        replace_directory(directory / MODEL, source)

    def _apply_template(self, model: HubModel) -> None:
        """Makes the directory that stages read a model of the hub from, where that is not the hub's own."""
        if model.template is not None:
            model.link_with_template(_hub_directory(model, self._home))

    def _committed(self, node: Node, key: str) -> StageResult | None:
        """The stage as the ledger has it; a stage whose artifact is damaged or missing counts as not finished."""
        ledger, name = self._home.ledger, node.settings.name
        record = ledger.stage(key)
        if record is None:
            return None
        drop_damaged_verdicts(self._home, key)
        digest, instead = record.artifact.digest, f"stage {name} is made again from what is good"
        if self._home.objects.sound_path(digest, instead=instead) is None:
            ledger.forget_stage(key)
            self._remade[key] = digest
            return None
        kind, machines = node.settings.kind, ledger.machines(key)
        return StageResult(name, kind, key, record.artifact, True, record.seconds, record.tokens, machines)

    def _lacks_groups(self, node: Node, key: str) -> bool:
        """Whether a finished stage has lost groups that may come back: its artifact is made again from them."""
        instead = f"stage {node.settings.name} is gone through again for the groups of step "
        return bool(lost_groups(self._home, key, lambda step: f"{instead}{step}"))

    def _make_groups_again(
        self, node: Node, key: str, inputs: Mapping[str, Input], go_through: Callable[[], Outcome]
    ) -> None:
        """Goes through a finished stage again, which stays finished, for the groups that it has lost.

        Where they come out otherwise or can't be made any more, the stage does without them: it has its artifact.
        """
        self._make_ready(node, inputs)
        try:
            go_through()
        except OtherContent:
            give_up_lost_groups(self._home, key, _COMES_OUT_OTHERWISE)
        except (TrainingDiverged, TooManyUngraded, ServerError) as error:  # all others say nothing about the groups
            give_up_lost_groups(self._home, key, f"they can't be made again ({error.what})")

    def _expected_writes(self, node: Node, key: str) -> Writes:
        name = node.settings.name
        if self._sizes is None:
            self._sizes = sizes_by_stage(self._recipe.nodes)
        sizes = self._sizes[name]
        saved = self._home.ledger.latest_state(key)
        return expected_writes(
            node.settings,
            workloads(self._recipe.nodes, self._artifacts)[name],
            sizes[""] or sizes.get("from"),
            weight_bytes=weight_bytes(node.settings, 2 if self._device == "cuda" else 4),
            resumes_at=saved[0] if saved else None,
        )

    def _make_ready(self, node: Node, inputs: Mapping[str, Input]) -> None:
        """Makes sure that what the stage reads is there and known."""
        self._register_bases(node, inputs)
        for model in self._recipe.models.values():
            if model.digest in {read.digest for read in inputs.values()}:
                self._progress.note(f"{node.settings.name}  looks for {model.hub}")
                fetch(model)
                self._apply_template(model)

    def _go_through(
        self, node: Node, key: str, inputs: Mapping[str, Input], module: ModuleType, watchdog: Watchdog
    ) -> Outcome:
        """Takes the stage through all that is not committed of it."""
        # Until it begins, a stage reads.
        with ExitStack() as reading:
            reading.enter_context(phase("reading"))
            context = StageContext(
                key=key,
                seed=self._recipe.seed,
                backend=self._backend,
                home=self._home,
                progress=WatchedProgress(self._progress, watchdog, on_begin=reading.close),
                stop_requested=self._stop_requested,
                catalogue=self._recipe.catalogue,
            )
            outcome: Outcome = module.run(node.settings, inputs, context)
        if not context.is_repeatable:
            outcome = replace(outcome, metrics={**outcome.metrics, REPEATABLE: False})
        return outcome

    def _execute(
        self, node: Node, key: str, inputs: Mapping[str, Input], makes: ArtifactKind, go_through: Callable[[], Outcome]
    ) -> StageResult:
        """Runs the stage and commits what it made."""
        settings = node.settings
        self._make_ready(node, inputs)
        machines = self._begin_on_this_machine(settings.name, key)
        started = time.monotonic()
        outcome = self._outcome(key, go_through)
        digest = self._home.objects.put(outcome.write)
        seconds = time.monotonic() - started
        artifact = Artifact(
            digest=digest,
            kind=makes,
            stage=settings.name,
            parents=(*(read.digest for read in inputs.values()), *self._verdicts(node)),
            config_digest=content_digest(decisive(settings)),
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
        self._home.back_up_ledger()
        if digest != self._remade.get(key, digest):
            self._progress.note(
                f"{settings.name}  made again with another content, as other machines or thread counts do: "
                f"{digest[:12]} instead of {self._remade[key][:12]}; what depends on it follows"
            )
        return StageResult(settings.name, settings.kind, key, artifact, False, seconds, outcome.tokens, machines)

    def _outcome(self, key: str, go_through: Callable[[], Outcome]) -> Outcome:
        """What a stage comes to. Where lost groups come out otherwise, it does without them: it goes on from a state
        that came of them or, if there is none any more, trains on new ones."""
        with suppress(OtherContent):  # and lets go of the error, which holds the models of the first attempt
            return go_through()
        give_up_lost_groups(self._home, key, _COMES_OUT_OTHERWISE)
        return go_through()

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
        """Makes the models and files from outside of the home known to the ledger, so that they can be parents."""
        for name, source in node.sources.items():
            if not isinstance(source, StageSource):
                base = source.model.hub if isinstance(source, HubSource) else source.path.name
                kind = "file" if isinstance(source, FileSource) else "base"
                self._home.ledger.register(Artifact(inputs[name].digest, kind, base, (), content_digest(None)))

    def _drop_states(self, key: str) -> None:
        """Removes the states of a finished stage, which only an unfinished one needs. Also done for a cached stage,
        because the process that finished it may have been killed before it came to this."""
        for step, digest in self._home.ledger.states(key):
            drop_state(self._home, key, step, digest)


def _inputs(node: Node, artifacts: Mapping[str, Artifact], home: Home | None, recipe: Recipe) -> dict[str, Input]:
    """What a stage reads, by the key of the settings that refers to it."""
    inputs = {}
    for name, source in node.sources.items():
        if isinstance(source, StageSource):
            assert home is not None  # it holds the artifact
            digest = made_digest(artifacts[source.stage])
            inputs[name] = Input(model_path(home, digest, recipe), digest)
        elif isinstance(source, HubSource):
            inputs[name] = Input(_hub_directory(source.model, home), source.model.digest)
        else:
            inputs[name] = Input(source.path, path_digest(source.path))
    return inputs


def model_path(home: Home, digest: str, recipe: Recipe) -> Path:
    """The directory of an object, or of the model from outside that a gate left in place and no home holds."""
    if not home.objects.exists(digest):
        for source in {source for node in recipe.nodes for source in node.sources.values()}:
            if isinstance(source, HubSource) and source.model.digest == digest:
                return _hub_directory(source.model, home)
            if isinstance(source, DirectorySource) and directory_digest(source.path) == digest:
                return source.path
    return home.objects.path(digest)


def _hub_directory(model: HubModel, home: Home | None) -> Path:
    """Where stages find a model of the hub. With a template of the recipe's it is made when a stage needs it."""
    return model.directory if model.template is None or home is None else home.scratch(f"hub-{model.digest}")
