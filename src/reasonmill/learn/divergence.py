"""What to do when training stops being finite."""

from collections.abc import Mapping

from reasonmill.errors import TrainingDiverged


class DivergenceGuard:
    """Counts updates that were skipped because their gradient was not finite; too many in a row end the run."""

    def __init__(self, limit: int = 3) -> None:
        self._limit = limit
        self._in_a_row = 0

    def check(self, step: int, updated: Mapping[str, float]) -> None:
        """Takes what `optim_step` reported.

        Raises:
            TrainingDiverged: `limit` updates in a row were skipped.
        """
        self._in_a_row = self._in_a_row + 1 if updated["optim/skipped"] else 0
        if self._in_a_row >= self._limit:
            raise TrainingDiverged(
                f"the gradient was not finite {self._in_a_row} times in a row, last at step {step}",
                fix="lower schedule.peak, or clip harder with optimizer.clip_norm",
            )
