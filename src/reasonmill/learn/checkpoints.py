"""States of a learner in the ledger: saved every few steps, found again by the command that resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from reasonmill.errors import Interrupted
from reasonmill.store.steps import drop_state, sound_state

if TYPE_CHECKING:
    from reasonmill.stage import StageContext

# The one before the last stays until the last is committed, so that there is always one to go back to.
_KEPT = 2


class Checkpoints:
    """Saves and finds the states of one stage.

    A state is recorded under the step that resumes from it.
    """

    def __init__(self, run: StageContext, every: int) -> None:
        self._run = run
        self._every = every

    def resume(self, load: Callable[[Path], None]) -> int:
        """Loads the latest state that is whole, if there is one; returns the step to resume with."""
        latest = sound_state(self._run.home, self._run.key)
        if latest is None:
            return 0
        step, directory = latest
        load(directory)
        return step

    def before_step(self, step: int, steps: int, save: Callable[[Path], None]) -> None:
        """Saves the state that step `step` resumes from, if it is due or if the user asked to stop.

        Raises:
            Interrupted: the user asked to stop; the state is saved.
        """
        stopping = self._run.stop_requested()
        if step > 0 and (stopping or step % self._every == 0):
            self._save(step, save)
        if stopping:
            raise Interrupted(f"stopped before step {step + 1} of {steps}")

    def after_last_step(self, steps: int, save: Callable[[Path], None]) -> None:
        """Saves the state that more steps would resume from, where the run keeps it."""
        if self._run.keeps_last_state:
            self._save(steps, save)

    def _save(self, step: int, save: Callable[[Path], None]) -> None:
        home, key = self._run.home, self._run.key
        latest = home.ledger.latest_state(key)
        if latest is not None and latest[0] == step:
            return
        home.ledger.commit_state(key, step, home.objects.put(save))
        for old_step, old_digest in home.ledger.states(key)[:-_KEPT]:
            drop_state(home, key, old_step, old_digest)
