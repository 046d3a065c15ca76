"""What of an update was not finite, and what to do about it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reasonmill.algo.packing import Batch, TextRow
from reasonmill.errors import TrainingDiverged

# Each follows from those before it: the first that is not finite is the cause, and is counted alone.
CAUSES = (
    "advantages",
    "sampler_logprobs",
    "old_logprobs",
    "ref_logprobs",
    "policy_logprobs",
    "scores",  # the numbers that a reward model gives
    "loss",
    "gradient",
)
# What the network itself made: where that is not finite, its weights are spoilt, and not only a batch is.
_OWN = ("policy_logprobs", "scores")
SKIPPED = "skipped/"
_IN_A_ROW = f"{SKIPPED}in_a_row"


def cause_of(faults: Collection[str]) -> str | None:
    """The cause among what was not finite; None where all was."""
    return next((cause for cause in CAUSES if cause in faults), None)


def digest_of(rows: Iterable[Batch | TextRow]) -> str:
    """Hex digest of all tensors of batches: the same batches give the same digest everywhere."""
    hasher = hashlib.blake2b(digest_size=32)
    for row in rows:
        for name, value in vars(row).items():
            content = value.cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
            hasher.update(f"{name} {len(content)}\n".encode())
            hasher.update(content)
    return hasher.hexdigest()


class DivergenceGuard:
    """Counts updates that were skipped because something of them was not finite; too many in a row end the run.

    Args:
        note: called with a message for each skipped update.
        in_a_row: how many there were right before, in the run that this one resumes.
        cause: of the last of these.
    """

    def __init__(
        self, note: Callable[[str], None], in_a_row: int = 0, limit: int = 3, cause: str | None = None
    ) -> None:
        self._note = note
        self._limit = limit
        self._in_a_row = in_a_row
        self._cause = cause

    @classmethod
    def resumed(cls, note: Callable[[str], None], entries: Sequence[Mapping[str, Any]], start: int) -> DivergenceGuard:
        """The guard as it was before step `start`, restored from the metrics of the steps in the ledger."""
        before = next((entry for entry in entries if entry["step"] == start - 1), {})
        in_a_row = int(before.get(_IN_A_ROW, 0))
        return cls(note, in_a_row=in_a_row, cause=_cause(before) if in_a_row else None)

    def check(self, step: int, updated: Mapping[str, float], batch: str, groups: str | None = None) -> None:
        """Takes what `optim_step` reported.

        Args:
            batch: digest of the update's batches, for the message.
            groups: digest of the committed groups that they were made from, if they were.

        Raises:
            TrainingDiverged: `limit` updates in a row were skipped.
        """
        if not updated["optim/skipped"]:
            self._in_a_row, self._cause = 0, None
            return
        self._in_a_row += 1
        self._cause = cause = _cause(updated)
        self._note(f"an update of step {step} was skipped: {cause} not finite")
        if self._in_a_row >= self._limit:
            raise TrainingDiverged(
                f"updates were not finite {self._in_a_row} times in a row, last at step {step}: {cause}",
                fix="lower schedule.peak, or clip harder with optimizer.clip_norm; the groups of a step are an object "
                "of the home, and can be looked at",
                where=f"batch {batch}" + (f", groups {groups}" if groups else ""),
            )

    def end(self) -> None:
        """Takes the end of training.

        Raises:
            TrainingDiverged: the last update was skipped because of what the network itself made: nothing but NaN would
                come of it.
        """
        if self._cause in _OWN:
            raise TrainingDiverged(
                f"the trained model is spoilt: its last update was skipped, {self._cause} not finite",
                fix="lower schedule.peak, or clip harder with optimizer.clip_norm",
            )

    def metrics(self) -> dict[str, float]:
        """What a resumed run has to know of the steps before it; empty while there is nothing to report."""
        return {_IN_A_ROW: float(self._in_a_row)} if self._in_a_row else {}


def _cause(updated: Mapping[str, Any]) -> str | None:
    return next((cause for cause in CAUSES if updated.get(SKIPPED + cause)), None)


def total(values: Iterable[float]) -> float:
    """The exact sum, as math.fsum gives it; nan where numbers that are not finite leave none."""
    try:
        return math.fsum(values)
    except (ValueError, OverflowError):  # inf - inf, or a sum beyond the largest number
        return math.nan


def is_finite(value: Tensor | float) -> bool:
    """Whether a number is finite, or all of a tensor."""
    return bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else math.isfinite(value)
