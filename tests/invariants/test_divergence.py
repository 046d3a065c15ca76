"""No update from what is not finite: it is skipped under its cause, and too many in a row end the run."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.errors import TrainingDiverged
from reasonmill.learn.divergence import DivergenceGuard, total
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from tiny_models import learner_state, tiny_decoder
from training import WHOLE, ragged_examples, same_bits, train, weights_of


def skips(updated: Mapping[str, float]) -> dict[str, float]:
    """The causes for which an update was skipped; none if it was taken."""
    found = {name.removeprefix("skipped/"): value for name, value in updated.items() if name.startswith("skipped/")}
    assert updated["optim/skipped"] == float(bool(found))
    return found


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["advantages", "sampler_logprobs", "ref_logprobs"])
def test_what_is_not_finite_is_skipped_under_its_cause_and_leaves_no_trace(field: str, number: float) -> None:
    learner, spared = (
        LocalLearner(tiny_decoder(), OptimizerSettings()),
        LocalLearner(tiny_decoder(), OptimizerSettings()),
    )
    train(learner, range(2))
    train(spared, range(2))
    before = learner_state(learner)
    good, bad = ragged_examples(2)
    bad = dataclasses.replace(bad, **{field: np.full(len(bad.tokens), number)})
    # In batches of their own, so that one is as it should be.
    for batch in pack([good, bad], 1):
        learner.forward_backward(batch, LossSettings(kl_coefficient=0.1), 2.0)
    updated = learner.optim_step(1e-2)
    assert skips(updated) == {field: 1.0}
    assert same_bits(learner_state(learner), before)
    train(learner, range(2, 4))
    train(spared, range(2, 4))
    assert same_bits(learner_state(learner), learner_state(spared))


@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_a_logprob_of_a_token_that_does_not_count_is_looked_at(number: float) -> None:
    """A ratio of 0 or a clipped one would hide it from the loss, and from the gradient."""
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    before = learner_state(learner)
    good, bad = ragged_examples(2)
    bad = dataclasses.replace(bad, sampler_logprobs=[*bad.sampler_logprobs[:-1], number])  # type: ignore[index]
    (batch,) = pack([good, bad], WHOLE)
    learner.forward_backward(batch, LossSettings(clip_low=0.2, clip_high=0.2), 2.0)
    assert skips(learner.optim_step(1e-2)) == {"sampler_logprobs": 1.0}
    assert same_bits(learner_state(learner), before)


def test_a_policy_that_is_not_finite_is_told_from_a_loss_and_a_gradient() -> None:
    (batch,) = pack(ragged_examples(2, loss="ce"), WHOLE)
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    learner.forward_backward(batch, LossSettings(), 2.0)
    next(iter(weights_of(learner).values())).fill_(math.nan)
    learner.forward_backward(batch, LossSettings(), 2.0)
    assert skips(learner.optim_step(1e-2)) == {"policy_logprobs": 1.0}

    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    learner.forward_backward(dataclasses.replace(batch, weights=batch.weights * math.inf), LossSettings(), 2.0)
    assert skips(learner.optim_step(1e-2)) == {"loss": 1.0}

    learner.forward_backward(batch, LossSettings(), 2.0)
    parameter = next(p for p in learner._parameters.values() if p.grad is not None)
    parameter.grad[0] = math.inf  # type: ignore[index]
    assert skips(learner.optim_step(1e-2)) == {"gradient": 1.0}
    learner.forward_backward(batch, LossSettings(), 2.0)
    assert skips(learner.optim_step(1e-2)) == {}  # what was gathered before is forgotten


def test_a_skipped_update_has_the_digest_of_its_batches() -> None:
    def skipped(*seeds: int) -> str:
        learner = LocalLearner(tiny_decoder(), OptimizerSettings())
        for seed in seeds:
            (batch,) = pack(ragged_examples(2, seed=seed), WHOLE)
            assert batch.advantages is not None
            learner.forward_backward(
                dataclasses.replace(batch, advantages=batch.advantages * math.inf), LossSettings(), 2.0
            )
        learner.optim_step(1e-2)
        return learner.skipped_batch

    assert len(skipped(0)) == 64
    assert skipped(0) == skipped(0)
    assert len({skipped(0), skipped(1), skipped(0, 1), skipped(1, 0)}) == 4
    learner = LocalLearner(tiny_decoder(), OptimizerSettings())
    train(learner, range(1))
    assert learner.skipped_batch == ""


def test_the_guard_ends_a_run_after_too_many_skips_in_a_row() -> None:
    notes: list[str] = []
    guard = DivergenceGuard(notes.append)
    for step, updated in enumerate([SKIPPED, SKIPPED, FINE, SKIPPED, SKIPPED]):
        guard.check(step, updated, "b" * 64)
    assert notes == [f"an update of step {step} was skipped: loss not finite" for step in (0, 1, 3, 4)]
    with pytest.raises(TrainingDiverged, match="3 times in a row, last at step 5: loss") as caught:
        guard.check(5, SKIPPED, "b" * 64, "a" * 64)
    assert caught.value.where == f"batch {'b' * 64}, groups {'a' * 64}"


SKIPPED, FINE = {"optim/skipped": 1.0, "skipped/loss": 1.0}, {"optim/skipped": 0.0}


@pytest.mark.parametrize("cut", range(5))
def test_a_guard_that_is_resumed_stops_at_the_same_step(cut: int) -> None:
    """Its count comes from the metrics of the steps before; steps without an update leave it as it is."""
    course = [[SKIPPED], [FINE, SKIPPED], [], [SKIPPED], [SKIPPED]]
    entries: list[dict[str, float]] = []
    guard = DivergenceGuard(lambda text: None)
    for step in range(cut):
        for updated in course[step]:
            guard.check(step, updated, "")
        entries.append({"step": step, **guard.metrics()})
    # A replayed step has its entry from before, too.
    entries.append({"step": cut, "skipped/in_a_row": 2.0})
    resumed = DivergenceGuard.resumed(lambda text: None, entries, cut)
    rest = [(step, updated) for step in range(cut, 5) for updated in course[step]]
    for step, updated in rest[:-1]:
        resumed.check(step, updated, "")
    with pytest.raises(TrainingDiverged, match="last at step 4"):
        resumed.check(*rest[-1], "")


def test_a_sum_without_a_value_is_no_crash() -> None:
    assert total([0.1] * 10) == 1.0
    assert math.isnan(total([math.inf, -math.inf]))
    assert math.isnan(total([1e308, 1e308]))
