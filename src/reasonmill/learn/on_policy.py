"""The loop of all stages that learn from what the policy itself samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from reasonmill.learn import checkpoints
from reasonmill.learn.divergence import DivergenceGuard
from reasonmill.protocols import Learner, Progress, Sampler
from reasonmill.store.steps import committed_groups
from reasonmill.types import Group

State = Mapping[str, Tensor]


class Run(checkpoints.Run, Protocol):
    """What the loop needs of a stage's context."""

    @property
    def progress(self) -> Progress: ...


def train_on_policy(
    run: Run,
    sampler: Sampler,
    learner: Learner,
    *,
    name: str,
    steps: int,
    state_every: int,
    sample: Callable[[int], Sequence[Group]],
    fit: Callable[[int, Sequence[Group]], Iterable[Mapping[str, float]]],
    measure: Callable[[Sequence[Group]], Mapping[str, float]],
    state: Callable[[], State],
    load_state: Callable[[State], None],
) -> tuple[dict[str, float], int]:
    """Trains for `steps` steps, from where an interrupted run left off.

    A step's groups are committed before they are trained on; a resumed run takes those that are, and samples the rest.

    Args:
        name: the stage's, for the display.
        sample: draws the groups of a step from the sampler's weights.
        fit: takes a step's optimizer steps, and gives the metrics of each.
        measure: what a step's groups were like; "tokens/sampled" is one of its metrics.
        state, load_state: all that a step leaves to the next; the learner's, and what the stage adds to it.

    Returns:
        (the last step's metrics without its times, the tokens that all steps sampled).

    Raises:
        Interrupted: the user asked to stop; the state is saved.
        TrainingDiverged: the gradient was not finite several times in a row.
    """
    saved = checkpoints.Checkpoints(run, state_every)
    start = saved.resume(load_state)
    sampler.load(learner.weights(), version=start)
    guard = DivergenceGuard()
    ledger = run.home.ledger
    run.progress.begin(name, steps, "steps")
    for entry in ledger.metrics(run.key)[:start]:
        run.progress.advance(entry["step"] + 1, entry)
    for step in range(start, steps):
        saved.before_step(step, steps, state)
        began = time.monotonic()
        groups = committed_groups(run.home, run.key, step, partial(sample, step))
        sampled = time.monotonic()
        updates = list(fit(step, groups))
        for updated in updates:
            guard.check(step, updated)
        sampler.load(learner.weights(), version=step + 1)
        metrics = {**measure(groups), **_means(updates)}
        metrics["speed/sampling_s"], metrics["speed/step_s"] = sampled - began, time.monotonic() - began
        metrics["speed/tokens_per_s"] = metrics["tokens/sampled"] / metrics["speed/step_s"]
        ledger.record_metrics(run.key, step, metrics)
        run.progress.advance(step + 1, metrics)
    entries = ledger.metrics(run.key)
    last = {name: value for name, value in entries[-1].items() if name != "step" and not name.startswith("speed/")}
    return last, int(sum(entry["tokens/sampled"] for entry in entries))


def _means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = updates[0] if updates else ()
    return {name: math.fsum(updated[name] for updated in updates) / len(updates) for name in names}
