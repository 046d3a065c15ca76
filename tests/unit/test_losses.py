"""Every loss by hand, its gradient where that is the point, and the KL estimators against an exact KL."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reasonmill.algo.advantages import ADVANTAGES
from reasonmill.algo.losses import Algorithm, KLEstimator, LossSettings, kl_to_reference, token_losses
from reasonmill.algo.packing import Batch

# Two sequences of two tokens; their ratios are 2, 1/2 and 1/2, 11/10, and their advantages 1 and -2.
POLICY = [0.5, 0.25, 0.25, 0.44]
SAMPLER = [0.25, 0.5, 0.5, 0.4]
ADVANTAGE = [1.0, 1.0, -2.0, -2.0]


def a_batch(**changes: Any) -> Batch:
    fields: dict[str, Any] = {
        "loss": "pg",
        "lengths": (2, 2),
        "inputs": torch.zeros(4, dtype=torch.int64),
        "targets": torch.zeros(4, dtype=torch.int64),
        "positions": torch.tensor([0, 1, 0, 1]),
        "sequence": torch.tensor([0, 0, 1, 1]),
        "weights": torch.ones(4),
        "advantages": torch.tensor(ADVANTAGE),
        "sampler_logprobs": torch.tensor(SAMPLER).log(),
    }
    return Batch(**{**fields, **changes})


def policy() -> Tensor:
    return torch.tensor(POLICY).log().requires_grad_()


# Surrogates

SEQUENCE_RATIO = math.sqrt(0.5 * 1.1)  # of the second sequence; that of the first is 1
BY_HAND: dict[Algorithm, list[float]] = {
    # -ratio A: R1's clip of 10 is out of reach
    "grpo": [-2.0, -0.5, 1.0, 2.2],
    # the first ratio is cut to 1.2; the third to 0.8, which is worse for a bad token
    "dr_grpo": [-1.2, -0.5, 1.6, 2.2],
    # as above, with 1.28 above
    "dapo": [-1.28, -0.5, 1.6, 2.2],
    # a ratio of 1, and one that is cut to 1 - 0.0003
    "gspo": [-1.0, -1.0, 1.9994, 1.9994],
    # -ratio A log policy, the ratio a constant below 6
    "cispo": [-2 * math.log(0.5), -0.5 * math.log(0.25), math.log(0.25), 2.2 * math.log(0.44)],
    # -A log policy
    "rloo": [-math.log(0.5), -math.log(0.25), 2 * math.log(0.25), 2 * math.log(0.44)],
    "reinforce": [-math.log(0.5), -math.log(0.25), 2 * math.log(0.25), 2 * math.log(0.44)],
}
# d loss / d log policy; a token that was cut has none.
GRADIENT_BY_HAND: dict[Algorithm, list[float]] = {
    "grpo": [-2.0, -0.5, 1.0, 2.2],
    "dr_grpo": [0.0, -0.5, 0.0, 2.2],
    "dapo": [0.0, -0.5, 0.0, 2.2],
    # both tokens of the first sequence lose 1; each holds half of the log of both ratios
    "gspo": [-1.0, -1.0, 0.0, 0.0],
    "cispo": [-2.0, -0.5, 1.0, 2.2],
    "rloo": [-1.0, -1.0, 2.0, 2.0],
    "reinforce": [-1.0, -1.0, 2.0, 2.0],
}


@pytest.mark.parametrize("algorithm", BY_HAND)
def test_a_surrogate_by_hand(algorithm: Algorithm) -> None:
    logprobs = policy()
    losses, _ = token_losses(logprobs, a_batch(), LossSettings(algorithm=algorithm))
    assert losses.tolist() == pytest.approx(BY_HAND[algorithm], abs=1e-5)
    losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx(GRADIENT_BY_HAND[algorithm], abs=1e-5)


def test_on_policy_all_gradients_are_that_of_reinforce() -> None:
    for algorithm in BY_HAND:
        logprobs = torch.tensor(SAMPLER).log().requires_grad_()
        token_losses(logprobs, a_batch(), LossSettings(algorithm=algorithm))[0].sum().backward()
        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == pytest.approx([-1.0, -1.0, 2.0, 2.0], abs=1e-5), algorithm


def test_a_sequence_ratio_leaves_context_out() -> None:
    batch = a_batch(weights=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    losses, _ = token_losses(policy(), batch, LossSettings(algorithm="gspo", clip_low=0.9, clip_high=0.9))
    # The first sequence's ratio is that of its second token alone, whatever the first one's is.
    assert losses.tolist() == pytest.approx([-0.5, -0.5, 2 * SEQUENCE_RATIO, 2 * SEQUENCE_RATIO], abs=1e-5)


def test_cispo_bounds_its_weight_and_keeps_the_gradient() -> None:
    batch = a_batch(sampler_logprobs=torch.tensor([0.05, 0.5, 0.5, 0.4]).log())
    logprobs = policy()
    losses, _ = token_losses(logprobs, batch, LossSettings(algorithm="cispo"))
    assert losses[0].item() == pytest.approx(-6 * math.log(0.5), abs=1e-5)  # the ratio was 10
    losses[0].backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].item() == pytest.approx(-6.0)


@pytest.mark.parametrize(
    ("algorithm", "clipped"),
    [
        ("grpo", [0, 0, 0, 0]),
        ("dr_grpo", [1, 1, 1, 0]),
        # one ratio for a sequence: the first's is 1
        ("gspo", [0, 0, 1, 1]),
    ],
)
def test_clipped_counts_ratios_out_of_bounds(algorithm: Algorithm, clipped: list[float]) -> None:
    _, statistics = token_losses(policy(), a_batch(), LossSettings(algorithm=algorithm))
    assert statistics["policy/clipped"].tolist() == clipped


def test_set_clips_go_before_the_published_ones() -> None:
    settings = LossSettings(algorithm="dapo", clip_high=0.5)
    assert settings.clip == (0.2, 0.5)
    losses, _ = token_losses(policy(), a_batch(), settings)
    assert losses[0].item() == pytest.approx(-1.5)


def test_every_algorithm_has_an_advantage_that_exists() -> None:
    assert {LossSettings(algorithm=algorithm).advantage for algorithm in BY_HAND} <= set(ADVANTAGES)


# Correction between sampler and learner


@pytest.mark.parametrize(
    ("algorithm", "correction", "expected"),
    [
        # ratios 2, 0.5, 0.5, 1.1 against a bound of 1.5: the loss holds the ratio already, up to the bound
        ("grpo", "truncate", [-1.5, -0.5, 1.0, 2.2]),
        ("grpo", "mask", [0.0, 0.0, 0.0, 2.2]),
        # the score function takes the whole weight
        ("reinforce", "truncate", [-1.5 * math.log(0.5), -0.5 * math.log(0.25), math.log(0.25), 2.2 * math.log(0.44)]),
        ("reinforce", "mask", [0.0, 0.0, 0.0, 2 * math.log(0.44)]),
    ],
)
def test_a_correction_by_hand(algorithm: Algorithm, correction: Any, expected: list[float]) -> None:
    settings = LossSettings(algorithm=algorithm, correction=correction, correction_bound=1.5)
    losses, _ = token_losses(policy(), a_batch(), settings)
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)


# KL


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # policy 0.5, reference 0.25, sampler 0.25
        ("k1", math.log(2)),
        ("k2", math.log(2) ** 2 / 2),
        ("k3", 0.5 + math.log(2) - 1),
        ("unbiased", 2 * (0.5 + math.log(2) - 1)),
    ],
)
def test_a_kl_estimate_by_hand(estimator: KLEstimator, expected: float) -> None:
    batch = a_batch(ref_logprobs=torch.full((4,), 0.25).log())
    assert kl_to_reference(policy(), batch, estimator)[0].item() == pytest.approx(expected, abs=1e-6)


def test_the_kl_joins_the_loss_with_its_coefficient() -> None:
    batch = a_batch(ref_logprobs=torch.tensor([0.25, 0.25, 0.25, 0.44]).log())
    settings = LossSettings(kl_coefficient=0.1, kl_estimator="k3")
    losses, statistics = token_losses(policy(), batch, settings)
    kl = [0.5 + math.log(2) - 1, 0.0, 0.0, 0.0]
    assert statistics["policy/kl"].tolist() == pytest.approx(kl, abs=1e-6)
    assert losses.tolist() == pytest.approx([loss + 0.1 * k for loss, k in zip(BY_HAND["grpo"], kl, strict=True)])


LOGITS = torch.tensor([0.3, -1.2, 0.8, 0.1, -0.4], dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.tensor([-0.5, 0.6, 0.2, 1.0, -1.0], dtype=torch.float64), 0)
OTHER_SAMPLER = torch.log_softmax(torch.tensor([0.9, 0.2, -0.7, 0.0, 0.5], dtype=torch.float64), 0)


def expected_gradient(estimator: KLEstimator, sampler: Tensor) -> Tensor:
    """The gradient of the estimator's mean over all tokens, as often as `sampler` draws each."""
    logits = LOGITS.clone().requires_grad_()
    batch = a_batch(sampler_logprobs=sampler, ref_logprobs=REFERENCE)
    estimates = kl_to_reference(torch.log_softmax(logits, 0), batch, estimator)
    return torch.autograd.grad((sampler.exp() * estimates).sum(), logits)[0]


def exact_gradient(divergence: Callable[[Tensor], Tensor]) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(divergence(torch.log_softmax(logits, 0)), logits)[0]


def test_gradients_of_the_kl_estimators() -> None:
    """What a draw adds on average, compared with gradients of exact divergences on a softmax of five tokens."""
    on_policy = torch.log_softmax(LOGITS, 0)
    of_kl = exact_gradient(lambda logprobs: (logprobs.exp() * (logprobs - REFERENCE)).sum())
    of_reverse = exact_gradient(lambda logprobs: (REFERENCE.exp() * (REFERENCE - logprobs)).sum())
    assert of_kl.abs().max() > 0.1
    torch.testing.assert_close(expected_gradient("k2", on_policy), of_kl)
    torch.testing.assert_close(expected_gradient("unbiased", on_policy), of_kl)
    torch.testing.assert_close(expected_gradient("unbiased", OTHER_SAMPLER), of_kl)
    torch.testing.assert_close(expected_gradient("k1", on_policy), torch.zeros(5, dtype=torch.float64))
    # k3's own gradient is that of the other direction, and k2's is off once the sampler is another policy.
    torch.testing.assert_close(expected_gradient("k3", on_policy), of_reverse)
    assert (expected_gradient("k2", OTHER_SAMPLER) - of_kl).abs().max() > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimates_of_the_kl_are_right_on_average(estimator: KLEstimator) -> None:
    on_policy = torch.log_softmax(LOGITS, 0)
    batch = a_batch(sampler_logprobs=on_policy, ref_logprobs=REFERENCE)
    mean = (on_policy.exp() * kl_to_reference(on_policy, batch, estimator)).sum()
    torch.testing.assert_close(mean, (on_policy.exp() * (on_policy - REFERENCE)).sum())


# Cross-entropy, and what is refused


def test_cross_entropy_by_hand() -> None:
    losses, statistics = token_losses(policy(), a_batch(loss="ce", advantages=None), LossSettings())
    assert losses.tolist() == pytest.approx([-math.log(p) for p in POLICY])
    assert statistics["loss/ce"].tolist() == losses.tolist()


@pytest.mark.parametrize("missing", ["advantages", "sampler_logprobs", "ref_logprobs"])
def test_a_missing_field_is_named(missing: str) -> None:
    fields = {"ref_logprobs": torch.zeros(4), missing: None}
    with pytest.raises(ValueError, match=missing):
        token_losses(policy(), a_batch(**fields), LossSettings(kl_coefficient=0.1))


@pytest.mark.parametrize("settings", [{"algorithm": "ppo"}, {"clip_low": -0.1}, {"kl_coefficient": -1}, {"beta": 0.1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LossSettings(**settings)


# Context


@pytest.mark.parametrize("algorithm", BY_HAND)
def test_context_that_the_policy_finds_impossible_ruins_nothing(algorithm: Algorithm) -> None:
    """What a user or an environment wrote can have any log-prob."""
    settings = LossSettings(algorithm=algorithm, correction="truncate", kl_coefficient=0.5, kl_estimator="k3")
    weights, sampled = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0.25, 1.0, 1.0, 0.4]).log()
    batch = a_batch(weights=weights, sampler_logprobs=sampled, ref_logprobs=torch.tensor([-1.0, -2.0, -2.0, -1.0]))
    found = []
    for impossible in (-1.0, -200.0):
        logprobs = torch.tensor([math.log(0.5), impossible, impossible, math.log(0.44)], requires_grad=True)
        losses, statistics = token_losses(logprobs, batch, settings)
        (losses * weights).sum().backward()
        assert all(bool((values * weights).isfinite().all()) for values in statistics.values())
        found.append([(losses * weights).tolist(), logprobs.grad.tolist()])  # type: ignore[union-attr]
    assert found[0] == found[1]
    assert found[0][1][1:3] == [0.0, 0.0]
    assert all(map(math.isfinite, found[0][0]))
