"""The loop of all stages that learn from examples which are known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from reasonmill.activity import each, phase
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.learn.checkpoints import Checkpoints
from reasonmill.learn.divergence import DivergenceGuard, total
from reasonmill.learn.settings import LearningSettings
from reasonmill.protocols import Learner, Trained
from reasonmill.types import Example

if TYPE_CHECKING:
    from reasonmill.stage import StageContext

Feed = Callable[[int, int], Iterator[Sequence[Example]]]
Passes = Callable[[int, int], Iterator[Mapping[str, float]]]


def supervise(run: StageContext, learner: Learner, feed: Feed, settings: LearningSettings, steps: int) -> int:
    """Trains for `steps` optimizer steps, from where an interrupted run left off.

    Args:
        feed: `feed(start, stop)` yields the examples of each of the steps start to stop - 1.
        settings: the stage's.

    Returns:
        The tokens of all steps, those of earlier runs too.

    Raises:
        Interrupted: the user asked to stop; the state is saved.
        TrainingDiverged: updates were not finite several times in a row.
    """

    def passes(start: int, stop: int) -> Iterator[Mapping[str, float]]:
        for examples in each("reading", feed(start, stop)):
            batches = pack(examples, settings.tokens_per_batch)
            denominator = total(float(batch.weights.double().sum()) for batch in batches)
            sums = [learner.forward_backward(batch, LossSettings(), denominator) for batch in batches]
            means = {key: total(entry[key] for entry in sums) / denominator for key in sums[0]}
            yield {**means, "tokens": float(sum(batch.num_tokens for batch in batches))}

    return optimise(run, learner, passes, settings, steps)


def optimise(run: StageContext, learner: Trained, passes: Passes, settings: LearningSettings, steps: int) -> int:
    """The loop itself, whatever the loss: `passes` gathers the gradients of each step, and this takes the step.

    Args:
        passes: `passes(start, stop)` gathers a step's gradients in the learner and yields the step's metrics, "tokens"
            among them, for each of the steps start to stop - 1.

    Returns and raises as `supervise`.
    """
    saved = Checkpoints(run, settings.state_every)
    start = saved.resume(learner.load)
    ledger = run.home.ledger
    guard = DivergenceGuard.resumed(run.progress.note, ledger.metrics(run.key), start)
    run.progress.begin(settings.name, steps, "steps")
    for step, means in enumerate(each("update", passes(start, steps)), start=start):
        # Gathered gradients are no part of the state: what is saved here is what the step resumes from.
        saved.before_step(step, steps, learner.save)
        with phase("update"):
            updated = learner.optim_step(settings.schedule.at(step, steps))
        guard.check(step, updated, learner.skipped_batch)
        metrics = {**means, **updated, **guard.metrics()}
        ledger.record_metrics(run.key, step, metrics)
        run.progress.advance(step + 1, metrics)
    guard.end()
    saved.after_last_step(steps, learner.save)
    return int(sum(entry["tokens"] for entry in ledger.metrics(run.key)))
