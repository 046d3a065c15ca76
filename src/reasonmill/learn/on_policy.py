"""The loop of all stages that learn from what the policy itself samples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from reasonmill.activity import each, phase
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch
from reasonmill.learn.checkpoints import Checkpoints
from reasonmill.learn.divergence import SKIPPED, DivergenceGuard, total
from reasonmill.protocols import Learner, Sampler
from reasonmill.store.accounts import Fate, account, require_balance, usable
from reasonmill.store.steps import committed_groups, forget_groups_of_other_weights
from reasonmill.types import Group

if TYPE_CHECKING:
    from reasonmill.stage import StageContext


# What of a step's metrics counts tokens that were sampled.
_TOKENS = ("tokens/sampled", "held_out/tokens", "held_out_start/tokens")


@dataclass(frozen=True)
class Update:
    """What one optimizer step learns from: `num_rollouts` of them, the sum of whose losses is divided by `divisor`."""

    batches: Sequence[Batch]
    loss: LossSettings
    divisor: float
    learning_rate: float
    num_rollouts: int


def train_on_policy(
    run: StageContext,
    sampler: Sampler,
    learner: Learner,
    *,
    name: str,
    steps: int,
    state_every: int,
    dispatched: Callable[[Sequence[Group]], int],
    fates: AbstractSet[Fate],
    sample: Callable[[int], Sequence[Group]],
    updates: Callable[[int, Sequence[Group]], tuple[Mapping[str, float], Iterable[Update]]],
    measure: Callable[[Sequence[Group]], Mapping[str, float]],
    after: Callable[[int], Mapping[str, float]] = lambda taken: {},
    ends: Callable[[Sequence[Mapping[str, Any]]], bool] = lambda rows: False,
) -> tuple[dict[str, float], int]:
    """Trains for `steps` steps, from where an interrupted run left off.

    A step's groups are committed before they are trained on; a resumed run takes those that are, and samples the rest.

    Args:
        name: the stage's, for the display.
        dispatched: how many rollouts must have been asked for, where these are the groups that came of it.
        fates: what can become of a rollout.
        sample: draws the groups of a step from the sampler's weights.
        updates: makes a step's updates from its groups, each after the one before it was taken; and what was measured
            before the first.
        measure: what a step's groups were like; "tokens/sampled" is one of its metrics.
        after: done with the published weights after so many steps were taken, 0 among them; gives metrics of the step
            before, or at 0 of the first. It must move no bit of what is sampled and trained.
        ends: whether training ends early, from the metrics of all steps so far.

    Returns:
        (the last step's metrics without its times, the tokens that all steps sampled).

    Raises:
        Interrupted: the user asked to stop; the state is saved.
        TrainingDiverged: updates were not finite several times in a row.
    """
    saved = Checkpoints(run, state_every)
    start = saved.resume(learner.load)
    forget_groups_of_other_weights(run.home, run.key, start)
    learner.publish(sampler, start)
    ledger = run.home.ledger
    earlier = ledger.metrics(run.key)[:start]
    guard = DivergenceGuard.resumed(run.progress.note, earlier, start)
    run.progress.begin(name, steps, "steps")
    for entry in earlier:
        run.progress.advance(entry["step"] + 1, entry)
    rows, taken_steps = list(earlier), start
    for step in range(start, steps):
        if ends(rows):
            run.progress.note(f"{name} ends early, after {step} of {steps} steps")
            break
        saved.before_step(step, steps, learner.save)
        before = after(0) if step == 0 else {}
        began = time.monotonic()
        groups = committed_groups(run.home, run.key, step, partial(sample, step))
        sampled = time.monotonic()
        sampler.rest()  # the learner needs the memory
        taken, trained = [], 0
        with phase("update"):
            measured, planned = updates(step, usable(groups, step))
        scored = time.monotonic()
        for update in each("update", planned):
            with phase("update"):
                sums = []
                for batch in update.batches:
                    sums.append(learner.forward_backward(batch, update.loss, update.divisor))
                means = {metric: total(entry[metric] for entry in sums) / update.divisor for metric in sums[0]}
                updated = {**means, **learner.optim_step(update.learning_rate)}
            guard.check(step, updated, learner.skipped_batch, ledger.step_groups(run.key, step))
            taken.append(updated)
            trained += update.num_rollouts
        learner.publish(sampler, step + 1)
        counts = account(groups, step, fates)
        require_balance(step, counts, dispatched=dispatched(groups), trained=trained)
        metrics = {**measure(groups), **measured, **_combined(taken), **counts, **guard.metrics()}
        metrics["speed/sampling_s"], metrics["speed/scoring_s"] = sampled - began, scored - sampled
        metrics["speed/step_s"] = time.monotonic() - began
        metrics["speed/tokens_per_s"] = metrics["tokens/sampled"] / metrics["speed/step_s"]
        metrics |= {**before, **after(step + 1)}
        ledger.record_metrics(run.key, step, metrics)
        rows.append({"step": step, **metrics})
        taken_steps = step + 1
        run.progress.advance(taken_steps, metrics)
    guard.end()
    saved.after_last_step(taken_steps, learner.save)
    entries = ledger.metrics(run.key)
    last = {name: value for name, value in entries[-1].items() if name != "step" and not name.startswith("speed/")}
    return last, int(sum(entry.get(area, 0) for entry in entries for area in _TOKENS))


def _combined(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One set of metrics of a step's updates: means over those that were taken, how many were skipped for which cause,
    and which share that is."""
    taken = [updated for updated in updates if not updated["optim/skipped"]] or updates
    means = {name: total(updated[name] for updated in taken) / len(taken) for name in (taken[0] if taken else ())}
    skips = Counter(name for updated in updates for name in updated if name.startswith(SKIPPED))
    share = {"optim/skipped": (len(updates) - len(taken)) / len(updates)} if updates else {}
    return {**means, **share, **skips}
