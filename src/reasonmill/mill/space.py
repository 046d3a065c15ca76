"""How much a stage will write to the home's disk, and what a run does when the disk is full: it waits for room."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from reasonmill import activity
from reasonmill.errors import Interrupted, OutOfSpace
from reasonmill.mill.model_size import ModelSize
from reasonmill.mill.workload import Workload
from reasonmill.protocols import Progress
from reasonmill.stage import StageSettings
from reasonmill.store.home import Home

# What a run needs besides, for its ledger, its views and what is rounded down.
RESERVE_BYTES = 200e6
# Groups in Parquet: 8.5 bytes for each sampled token, most of them its log-prob, and 10 kB for each file (measured on
# r1-tiny's collections; a text's bytes are a fifth of it).
_GROUP_TOKEN_BYTES, _GROUP_FILE_BYTES = 9.0, 10e3
# Text of a dataset: 4 bytes for a token, before it is compressed.
_TEXT_TOKEN_BYTES = 4.0
# Of a learner's state, for each parameter in fp32: the master weight and AdamW's two moments.
_STATE_BYTES = 12
# Two states are kept while a third is written.
_STATES = 3

RETRY_S = 3.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Writes:
    """Bytes that a stage is expected to write and that stay until its end.

    `unknown` says that the model's size or the data's amount is not known, so that it may be more.
    """

    states: float = 0.0
    groups: float = 0.0
    models: float = 0.0
    artifact: float = 0.0
    unknown: bool = False

    @property
    def total(self) -> float:
        return self.states + self.groups + self.models + self.artifact

    def __str__(self) -> str:
        parts = {
            "states": self.states,
            "groups": self.groups,
            "models on its way": self.models,
            "its artifact": self.artifact,
        }
        listed = [f"{megabytes(size)} for {name}" for name, size in parts.items() if size]
        return ", ".join([*listed, f"{megabytes(RESERVE_BYTES)} as a reserve"])


def expected_writes(
    settings: StageSettings,
    work: Workload | None,
    size: ModelSize | None,
    *,
    weight_bytes: int,
    resumes_at: int | None = None,
) -> Writes:
    """What a stage will write, with responses of the length that estimates assume.

    Args:
        work: what the stage does; None where that is not known.
        size: of the model that is worked on.
        weight_bytes: of one weight in use.
        resumes_at: the step that an interrupted stage resumes with; what came before is on the disk already.
    """
    work, is_known = (work, True) if work is not None else (Workload(), False)
    steps: int | None = getattr(settings, "steps", None)
    left = 1 - (resumes_at or 0) / steps if steps else 1.0
    states = artifact = groups = models = 0.0
    if work.trained:
        is_known = is_known and size is not None
        parameters = size.parameters if size else 0.0
        trained = size.adapter_parameters(work.lora) if size and work.lora else parameters
        each = trained * (_STATE_BYTES + (weight_bytes if "from" in work.copies else 0))
        states = each * _states(settings, steps)
        kept_bytes = (size.kept_bytes if size else None) or weight_bytes
        artifact = 2 * parameters * kept_bytes  # the object, and the copy in the run's directory
        models = len(settings.kept_steps()) * left * parameters * kept_bytes
    if work.sampled or work.served:
        sampled = (work.sampled + work.served) * _GROUP_TOKEN_BYTES
        if work.trained:
            groups = left * (sampled + (steps or 0) * _GROUP_FILE_BYTES)
        elif work.makes is not None and work.makes.problems:
            # What is committed on the way, and all of it again as the artifact.
            groups = artifact = sampled + _GROUP_FILE_BYTES
    if settings.kind == "curate" and work.makes is not None:
        artifact = work.makes.texts * work.makes.tokens_each * _TEXT_TOKEN_BYTES
    return Writes(states, groups, models, artifact, unknown=not is_known)


def weight_bytes(settings: StageSettings, automatic: int) -> int:
    """Bytes of one weight in use.

    Args:
        automatic: those that the device has where the settings leave it to it.
    """
    return {"fp32": 4, "bf16": 2}.get(getattr(settings, "precision", "auto"), automatic)


def _states(settings: StageSettings, steps: int | None) -> int:
    every: int | None = getattr(settings, "state_every", None)
    if steps is None or every is None:
        return _STATES
    last = settings.against_more_steps() is None  # then the state behind the last step stays
    return min(_STATES, max(1, ceil(steps / every) - 1 + last))  # one at least, for a run that is asked to stop


def require_room(home: Home, stage: str, writes: Writes) -> None:
    """Checks that the home's disk can hold what a stage will write.

    Raises:
        OutOfSpace: it can't.
    """
    free, needed = home.free_bytes(), RESERVE_BYTES + writes.total
    if free < needed:
        more = "at least " if writes.unknown else "about "
        raise OutOfSpace(
            f"only {megabytes(free)} are left on the disk, and stage {stage!r} needs {more}{megabytes(needed)}: "
            f"{writes}",
            fix=f"free {megabytes(needed - free)} there and run the same command again, or use a home on another disk",
            where=str(home.path),
        )


@dataclass
class RoomWait:
    """Holds a run whose disk is full: it tries again every few seconds, until there is room or it is asked to stop.

    Attributes:
        writes: what the present stage is expected to write.
    """

    _home: Home
    _progress: Progress
    _stop_requested: Callable[[], bool]
    _sleep: Callable[[float], None] = time.sleep  # waits for so many seconds
    _is_reported: bool = False
    writes: Writes = Writes()

    def __call__(self, error: OutOfSpace) -> None:
        """Waits a while; what failed is then to be tried again.

        Raises:
            Interrupted: the user asked to stop.
        """
        if not self._is_reported:
            self._is_reported = True
            free, where = megabytes(self._home.free_bytes()), error.where or self._home.path
            self._progress.note(
                f"paused: {error.what}; {free} are free at {where}, and a stage like this writes about "
                f"{megabytes(RESERVE_BYTES + self.writes.total)} ({self.writes}). Free some space on that disk, and "
                "the run resumes by itself; Ctrl-C ends it, and the same command resumes it"
            )
        for _ in range(round(RETRY_S / _POLL_S)):
            if self._stop_requested():
                raise Interrupted(
                    "stopped while it waited for space on the disk; what was committed is safe",
                    fix="free some space, then run the same command again",
                )
            activity.beat()
            self._sleep(_POLL_S)

    def goes_on(self) -> None:
        """What failed has worked."""
        if self._is_reported:
            self._is_reported = False
            self._progress.note("there is room on the disk again: the run resumes")


def megabytes(size: float) -> str:
    """Bytes as "1,234 MB"."""
    return f"{size / 1e6:,.0f} MB"
