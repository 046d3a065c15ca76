"""Runs a recipe's stages in order; a stage whose key the ledger has is not run again.

Of a stage that is finished, only manifests and sizes are looked at. The bytes of what it made are read when a stage
that is not finished needs them, or when they are copied into the run's directory; if they are damaged, the walk goes
back to the stage that made them.
"""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from reasonmill.activity import phase
from reasonmill.curation.asked import Asked
from reasonmill.errors import Interrupted, ReasonmillError, RewardHacked, TooManyUngraded, TrainingDiverged
from reasonmill.mill.asked import asked_by
from reasonmill.mill.findings import FINDINGS, Watched, findings
from reasonmill.mill.inputs import KeyedStage, keyed, make_inputs_ready
from reasonmill.mill.machine import machine_class
from reasonmill.mill.model_size import ModelSize, sizes_by_stage
from reasonmill.mill.models import download_packages, refuse_models
from reasonmill.mill.more_steps import shorter_stage
from reasonmill.mill.out_of_memory import told_out_of_memory
from reasonmill.mill.planning import plan_key
from reasonmill.mill.showcase import Showcase
from reasonmill.mill.space import RoomWait, Writes, expected_writes, require_room, weight_bytes
from reasonmill.mill.summary import REPEATABLE, StageResult, result_model, summarise
from reasonmill.mill.watchdog import Watchdog, WatchedProgress
from reasonmill.mill.workload import LIKELY, workloads
from reasonmill.model.saving import refuse_unsound
from reasonmill.peak_memory import begin_peak, give_back, peak_bytes
from reasonmill.placement import Backend
from reasonmill.protocols import Progress
from reasonmill.recipe.graph import Node, Recipe
from reasonmill.rewards.verdicts import drop_damaged_verdicts
from reasonmill.servers.settings import ServerError
from reasonmill.stage import Outcome, StageContext
from reasonmill.store.full_disk import waiting_when_full
from reasonmill.store.home import Home
from reasonmill.store.ledger import ADOPTED, MODELS, OF_STAGE, OtherContent, StageRecord
from reasonmill.store.plans import finish_plan
from reasonmill.store.steps import (
    drop_states_of_finished,
    give_up_lost_groups,
    lost_groups,
    report_lost_groups,
    take_over_memory,
)
from reasonmill.types import Artifact

_DIFFERS = "they differ when they are sampled again, as on another class of machine or from a server"


@dataclass(frozen=True)
class RunResult:
    """What a run made: its directory, its stages in order, and the content of its summary.json."""

    directory: Path
    stages: tuple[StageResult, ...]
    summary: Mapping[str, Any]


def run_recipe(
    recipe: Recipe,
    home: Home,
    progress: Progress,
    *,
    until: str | None,
    backend: Backend,
    stop_requested: Callable[[], bool],
    repair: bool = False,
) -> RunResult:
    """Runs the stages that the ledger does not have yet, and writes the run's directory.

    Where the disk is full, it waits for room.

    Args:
        until: the name of the last stage to run; None runs all.
        backend: makes what the stages sample and learn with.
        stop_requested: whether the user asked to stop; looked at before stages, and by stages between steps.
        repair: reads every byte of what finished stages made, and rebuilds what is damaged, rollouts too.

    Raises:
        RecipeError: there is no stage `until`.
        Interrupted: a stop was requested; what is finished is kept.
        OutOfSpace: the home's disk can't hold what a stage is expected to write.
    """
    home.incidents.tell(progress.note)
    run = _Run(recipe, recipe.up_to(until), home, progress, backend, stop_requested, repair)
    try:
        with waiting_when_full(run.when_full):
            while (stage := run.next_stage()) is not None:
                run.execute(stage)
    except Exception:  # and not a second Ctrl-C, which ends at once
        # Without waiting for room, and whatever goes wrong: nothing must hide why the run ended. The next run shows
        # what this one can't.
        with suppress(Exception):
            run.show_finished()
        raise
    with waiting_when_full(run.when_full):
        return run.publish()


@dataclass(frozen=True)
class _Stage:
    """A stage whose inputs are there. `log_key` names its steps: its own key, unless it was adopted.

    A finished one is only gone through again for rollouts that it has lost.
    """

    keyed: KeyedStage
    log_key: str
    is_finished: bool

    @property
    def name(self) -> str:
        return self.keyed.name


@dataclass
class _Run:
    """A run in progress: it has the results of the first stages, and continues with the next one."""

    _recipe: Recipe
    _nodes: tuple[Node, ...]
    _home: Home
    _progress: Progress
    _backend: Backend
    _stop_requested: Callable[[], bool]
    _repair: bool
    _results: list[StageResult] = field(default_factory=list)
    # Name and digest of cached stages that were reported to the user.
    _noted: set[tuple[str, str]] = field(default_factory=set)
    # Digests of what stages with lost objects had made, by their keys.
    _remade: dict[str, str] = field(default_factory=dict)
    # Keys of stages that continue without groups that differ when sampled again.
    _retried: set[str] = field(default_factory=set)
    # Whether the models from outside were looked at.
    _has_looked: bool = False
    # Keys of finished stages that were gone through again.
    _restored: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._device = self._backend.placement.device
        self._showcase = Showcase(self._recipe, self._home, reads_all=self._repair)
        self.when_full = RoomWait(self._home, self._progress, self._stop_requested)

    @cached_property
    def _sizes(self) -> dict[str, dict[str, ModelSize | None]]:
        return sizes_by_stage(self._recipe.nodes, self._home)

    @cached_property
    def _asked(self) -> Asked:
        return asked_by(self._recipe)

    @property
    def _artifacts(self) -> dict[str, Artifact]:
        return {result.name: result.artifact for result in self._results}

    def next_stage(self) -> _Stage | None:
        """The next stage that is to be executed; None when all are finished, and the model to be published is whole.

        What finished stages made is taken from the ledger. Where the bytes that are needed next are damaged, the stage
        that made them is the next one.
        """
        while True:
            if len(self._results) == len(self._nodes):
                model = result_model(self._recipe, self._results)
                if self._showcase.has_model(model) or not self._goes_back_for({model}):
                    return None
            node = self._nodes[len(self._results)]
            with Watchdog(self._recipe.watchdog, node.settings.name):
                found = self._look_at(node)
                if isinstance(found, StageResult):
                    self._keep(found)
                elif not self._goes_back_for({read.digest for read in found.keyed.inputs.values()}):
                    return found

    def execute(self, stage: _Stage) -> None:
        """Takes the stage through all that is not committed of it, and commits what it made."""
        if self._stop_requested():
            raise Interrupted(f"stopped before stage {stage.name!r}")
        if not stage.is_finished:
            self._take_over_steps(stage.keyed)
        self.when_full.writes = self._expected_writes(stage)
        require_room(self._home, stage.name, self.when_full.writes)
        node = stage.keyed.node
        with Watchdog(self._recipe.watchdog, stage.name) as watchdog:
            note = partial(self._note, stage.name)
            if not self._has_looked:
                refuse_models(self._recipe, self._nodes[len(self._results) :], self._home, note)
                self._has_looked = True
            make_inputs_ready(stage.keyed, self._home, note)  # in no phase: a download may take long
            give_back(self._device)  # what stages before had
            begin_peak(self._device)
            begun = len(self._home.ledger.steps(stage.log_key))
            if not stage.is_finished:
                self._begin_on_this_machine(stage.keyed)
            started = time.monotonic()
            # Until it begins, a stage reads.
            with ExitStack() as reading:
                reading.enter_context(phase("reading"))
                context = StageContext(
                    key=stage.log_key,
                    seed=self._recipe.seed,
                    backend=self._backend,
                    home=self._home,
                    progress=WatchedProgress(Watched(self._progress, stage.name), watchdog, on_begin=reading.close),
                    stop_requested=self._stop_requested,
                    catalogue=self._recipe.catalogue,
                    keeps_last_state=node.settings.against_more_steps() is None,
                    needs=getattr(node.module, "NEEDS", ()),
                    asked=lambda: self._asked,
                    parents=stage.keyed.parents,
                    config_digest=stage.keyed.config_digest,
                    marks=stage.keyed.marks,
                )
                try:
                    with told_out_of_memory(node.settings):
                        outcome: Outcome = node.module.run(node.settings, stage.keyed.inputs, context)
                except (OtherContent, TrainingDiverged, RewardHacked, TooManyUngraded, ServerError) as error:
                    if not self._does_without_groups(stage, error):
                        raise
                    return  # and it is the next stage again, unless it is finished
            if not stage.is_finished:
                metrics = outcome.metrics if context.is_repeatable else {**outcome.metrics, REPEATABLE: False}
                self._commit(stage.keyed, outcome, metrics, started)
                self._compare_with_plan(stage.keyed.node, begun)

    def publish(self) -> RunResult:
        """Makes the run's directory show the stages that are finished; what is up to date is left alone."""
        results = tuple(self._results)
        summary = summarise(self._recipe, results, self._device)
        self._showcase.publish(summary, results)
        return RunResult(self._showcase.directory, results, summary)

    def show_finished(self) -> None:
        """Shows what a run that ended early has."""
        if self._results:
            self.publish()

    # Finished stages

    def _look_at(self, node: Node) -> _Stage | StageResult:
        """A stage that something is to be done for, or its result."""
        # In no phase: a download may take long.
        download_packages(node, self._home, partial(self._note, node.settings.name))
        with phase("reading"):
            stage = keyed(node, self._artifacts, self._home, self._recipe)
        key, ledger = stage.key, self._home.ledger
        begun = [(result.name, result.kind, result.key) for result in self._results]
        ledger.begin_run(self._recipe.name, self._recipe.resolved(), [*begun, (stage.name, stage.kind, key)])
        record = ledger.stage(key)
        if record is None or not self._is_kept(record):
            if record is not None:
                self._forget(record)
            return _Stage(stage, key, is_finished=False)
        if self._has_lost_groups(stage.name, record.log_key) and key not in self._restored:
            self._restored.add(key)
            return _Stage(stage, record.log_key, is_finished=True)
        self._look_at_states(node, record.log_key)
        return StageResult(**vars(record), cached=True)

    def _is_whole(self, stage: str, digest: str, *, read: bool) -> bool:
        """Whether what a stage made is there; where it is not, that is reported."""
        instead = f"stage {stage} is rebuilt from what is good"
        return self._home.objects.sound_path(digest, instead=instead, read=read) is not None

    def _is_kept(self, record: StageRecord) -> bool:
        """Whether what a finished stage made is there; a repair also looks at the models that it kept on its way."""
        models = record.artifact.metrics.get(MODELS, {}).values() if self._repair else ()
        digests = dict.fromkeys((record.artifact.digest, *models))
        return all(self._is_whole(record.name, digest, read=self._repair) for digest in digests)

    def _has_lost_groups(self, name: str, log_key: str) -> bool:
        """Whether a finished stage is to be gone through again for groups that it has lost.

        Only a repair does that: otherwise they are reported, and the stage does without them.
        """
        drop_damaged_verdicts(self._home, log_key, read=self._repair)
        if self._repair:
            instead = f"stage {name} is run again for the groups of step "
            return bool(lost_groups(self._home, log_key, lambda step: f"{instead}{step}"))
        rebuilds = "`reasonmill run` with --repair rebuilds"
        report_lost_groups(
            self._home,
            log_key,
            lambda step: f"stage {name} stays finished without the rollouts of step {step}, which {rebuilds}",
        )
        return False

    def _look_at_states(self, node: Node, log_key: str) -> None:
        """Drops the states of a finished stage but the one that more steps would resume from, unless it is damaged.

        Also done for a cached stage, because the process that finished it may have been killed before it came to this.
        """
        last: int | None = getattr(node.settings, "steps", None)
        drop_states_of_finished(self._home, log_key, last=last if node.settings.against_more_steps() is None else None)
        instead = f"stage {node.settings.name} stays finished, and more steps of it would start from the first"
        for step, digest in self._home.ledger.states(log_key):
            if self._home.objects.sound_path(digest, instead=instead, read=self._repair) is None:
                self._home.ledger.forget_state(log_key, step)

    def _keep(self, result: StageResult) -> None:
        """Takes the result of a stage that was cached, unless it was executed just now."""
        digest = result.artifact.digest
        if (result.name, digest) not in self._noted:
            self._noted.add((result.name, digest))
            adopted = ", adopted from other code" if ADOPTED in result.artifact.metrics else ""
            self._progress.note(f"{result.name}  cached{adopted}  {digest[:12]}")
        self._results.append(result)

    def _goes_back_for(self, digests: Collection[str | None]) -> bool:
        """Makes the first stage the next one that made one of these which is damaged; False where all are whole.

        Reads all bytes of those that stages of the run made.
        """
        for place, result in enumerate(self._results):
            made = dict.fromkeys((result.artifact.digest, *result.artifact.metrics.get(MODELS, {}).values()))
            if not all(self._is_whole(result.name, digest, read=True) for digest in made if digest in digests):
                self._forget(result)
                del self._results[place:]
                return True
        return False

    def _forget(self, record: StageRecord) -> None:
        """Makes a stage count as not finished: what it made is lost, also for the one that it was adopted from."""
        self._remade[record.key] = record.artifact.digest
        for known in dict.fromkeys((record.key, record.log_key)):
            self._home.ledger.forget_stage(known)

    # Stages that are executed

    def _take_over_steps(self, stage: KeyedStage) -> None:
        """Gives a stage the steps of a finished one that took fewer and is otherwise the same."""
        shorter = shorter_stage(stage, self._home)
        if shorter is None:
            return
        self._progress.note(shorter.note(stage.name))
        if shorter.obstacle is None:
            for kept in self._home.ledger.intermediates(shorter.key).values():
                self._home.ledger.register(replace(kept, metrics={**kept.metrics, OF_STAGE: stage.key}))
            take_over_memory(self._home, stage.key, shorter.key)
            self._home.ledger.carry_over(stage.key, shorter.key, shorter.steps)

    def _does_without_groups(self, stage: _Stage, error: ReasonmillError) -> bool:
        """Gives up lost groups that can't be sampled again, if that is what the error says.

        An unfinished stage resumes from a state that was trained on them or, if none is left, trains on new ones; a
        finished one has its artifact.
        """
        if isinstance(error, OtherContent) and (stage.is_finished or stage.keyed.key not in self._retried):
            self._retried.add(stage.keyed.key)
            give_up_lost_groups(self._home, stage.log_key, _DIFFERS)
        elif stage.is_finished:
            give_up_lost_groups(self._home, stage.log_key, f"they can't be sampled again ({error.what})")
        else:
            return False
        return True

    def _commit(self, stage: KeyedStage, outcome: Outcome, metrics: Mapping[str, Any], started: float) -> None:
        """Commits what a stage made."""
        key, made = stage.key, stage.node.module.MAKES
        found: list[str] = []

        def write(directory: Path) -> None:
            outcome.write(directory)
            is_model = made in ("model", "reward-model")
            if is_model:
                refuse_unsound(directory, made)
            parent = stage.inputs.get("from")
            found[:] = findings(
                self._home.ledger.metrics(key),
                metrics,
                directory if is_model else None,
                parent.path if parent else None,
            )

        digest = self._home.objects.put(write)
        for finding in found:
            self._progress.note(f"warning: {stage.name}: {finding}")
        metrics = {**metrics, FINDINGS: found} if found else metrics
        seconds = time.monotonic() - started
        record = stage.commit(self._home, digest, made, metrics, seconds, outcome.tokens)
        if digest != self._remade.get(key, digest):
            self._progress.note(
                f"{stage.name}  rebuilt with different content, as happens on other machines or thread counts: "
                f"{digest[:12]} instead of {self._remade[key][:12]}; what depends on it is rebuilt, too"
            )
        self._look_at_states(stage.node, key)
        self._noted.add((stage.name, digest))
        self._results.append(StageResult(**vars(record), cached=False))

    def _compare_with_plan(self, node: Node, begun: int) -> None:
        """Notes what the stage that was finished last took, if a plan said what it would take.

        Args:
            begun: how many of its steps were committed when it began.
        """
        finish_plan(
            self._home.path,
            plan_key(self._recipe, node),
            machine_class(self._device),
            begun,
            seconds=self._results[-1].seconds,
            memory_bytes=peak_bytes(self._device),
        )

    def _expected_writes(self, stage: _Stage) -> Writes:
        sizes, settings = self._sizes[stage.name], stage.keyed.node.settings
        saved = self._home.ledger.latest_state(stage.log_key)
        return expected_writes(
            settings,
            workloads(self._recipe.nodes, self._artifacts, LIKELY)[stage.name],
            sizes[""] or sizes.get("from"),
            weight_bytes=weight_bytes(settings, 2 if self._device == "cuda" else 4),
            resumes_at=saved[0] if saved else None,
        )

    def _note(self, stage: str, said: str) -> None:
        self._progress.note(f"{stage}  {said}")

    def _begin_on_this_machine(self, stage: KeyedStage) -> None:
        """Records where the stage runs, and reports it if another class of machine began the stage."""
        here = machine_class(self._device)
        begun_on = self._home.ledger.begin_stage(stage.key, here)
        others = "; ".join(machine for machine in begun_on if machine != here)
        if others:
            self._progress.note(f"{stage.name}  began on: {others}")
            self._progress.note(
                f"{stage.name}  resumes on: {here}; its bits may differ from those of a run on one of them"
            )
