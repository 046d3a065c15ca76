"""Losses by hand, the KL estimators against an exact KL, and what settings are refused.

`test_objectives.py` has every objective against a reference of its paper.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reasonmill.algo.correction import mismatch
from reasonmill.algo.losses import Algorithm, KLEstimator, LossSettings, kl_to_reference, token_losses
from reasonmill.algo.packing import Batch, Piece
from reasonmill.types import Example

# Two sequences of two tokens; their ratios are 2, 1/2 and 1/2, 11/10, and their advantages 1 and -2.
POLICY = [0.5, 0.25, 0.25, 0.44]
SAMPLER = [0.25, 0.5, 0.5, 0.4]
ADVANTAGE = [1.0, 1.0, -2.0, -2.0]


def a_batch(**changes: Any) -> Batch:
    fields: dict[str, Any] = {
        "loss": "pg",
        "pieces": (Piece(0, 0, 2), Piece(1, 0, 2)),
        "continued": (),
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


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


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
    # 4 sigmoid(ratio - 1) for A > 0, and with 1.05 in place of 1 for A < 0
    "sapo": [-4 * _sigmoid(1), -4 * _sigmoid(-0.5), 8 / 1.05 * _sigmoid(-0.525), 8 / 1.05 * _sigmoid(0.105)],
    # log 2 is cut to 0.4, log 1/2 of the bad sequence to -0.4; those that A pulls back are left
    "gmpo": [-math.exp((0.4 - math.log(2)) / 2)] * 2 + [2 * math.exp((-0.4 + math.log(1.1)) / 2)] * 2,
    # probabilities moved by 0.25, -0.25, -0.25 and 0.04: the first and the third by more than 0.15 towards A
    "dppo": [0.0, -0.5, 0.0, 2.2],
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
    # 4 sigmoid (1 - sigmoid) ratio
    "sapo": [
        -8 * _sigmoid(1) * _sigmoid(-1),
        -2 * _sigmoid(0.5) * _sigmoid(-0.5),
        4 * _sigmoid(0.525) * _sigmoid(-0.525),
        8.8 * _sigmoid(0.105) * _sigmoid(-0.105),
    ],
    # what was cut has none; the other token of its sequence holds half
    "gmpo": [0.0, -math.exp((0.4 - math.log(2)) / 2), 0.0, 2 * math.exp((-0.4 + math.log(1.1)) / 2)],
    "dppo": [0.0, -0.5, 0.0, 2.2],
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
    assert settings.constants == {"clip_low": 0.2, "clip_high": 0.5, "dual_clip": None}
    losses, _ = token_losses(policy(), a_batch(), settings)
    assert losses[0].item() == pytest.approx(-1.5)


# What the sampler's log-probs are for


def test_ratios_are_against_the_log_probs_of_before_the_step() -> None:
    """Where the learner gave them; the sampler's are for the correction then, and context counts in neither."""
    old = torch.tensor([0.4, 0.25, 0.5, 0.4]).log()
    losses, _ = token_losses(policy(), a_batch(old_logprobs=old), LossSettings(algorithm="grpo"))
    assert losses.tolist() == pytest.approx([-1.25, -1.0, 1.0, 2.2], abs=1e-5)
    # old / sampler: 1.6, 0.5, 1, 1
    settings = LossSettings(correction={"level": "token", "rule": "truncate", "high": 1.5})  # type: ignore[arg-type]
    losses, found = token_losses(policy(), a_batch(old_logprobs=old), settings)
    assert losses.tolist() == pytest.approx([-1.25 * 1.5, -0.5, 1.0, 2.2], abs=1e-5)
    assert found["correction/bounded"].tolist() == [1, 0, 0, 0]
    impossible = torch.tensor([-200.0, math.log(0.25), math.log(0.5), math.log(0.4)])
    context = a_batch(old_logprobs=impossible, weights=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    losses, found = token_losses(policy(), context, settings)
    assert losses.tolist() == pytest.approx([-1.0, -0.5, 1.0, 2.2], abs=1e-5)
    assert found["correction/weight"].tolist() == pytest.approx([1.0, 0.5, 1.0, 1.0])


def an_example(sampler: list[float], learner: list[float]) -> Example:
    return Example(
        tokens=[1, 2, 3, 4],
        weights=[0.0, 0.0, 0.5, 0.5],
        loss="pg",
        advantages=[0.0] * 4,
        sampler_logprobs=[0.0, 0.0, *sampler],
        old_logprobs=[0.0, -300.0, *learner],
    )


def test_the_mismatch_by_hand() -> None:
    """Differences 0, -1, 0.5 and 0 of trained tokens; those of context don't count."""
    found = mismatch([an_example([-1.0, -1.0], [-1.0, -2.0]), an_example([-1.0, -3.0], [-0.5, -3.0])])
    assert found == pytest.approx(
        {
            "mismatch/mean": 1.5 / 4,
            "mismatch/max": 1.0,
            "mismatch/k1": 0.5 / 4,
            "mismatch/k3": (math.exp(-1) + 1 - 1 + math.exp(0.5) - 0.5 - 1) / 4,
            "mismatch/outside": 0.25,  # of these only exp(-1) is outside [1/2, 2]
        }
    )


def test_estimates_of_the_mismatch_are_the_kl_on_average() -> None:
    """k1 and k3 of all tokens, as often as the sampler draws each."""
    learner = torch.log_softmax(LOGITS, 0)
    delta, drawn = learner - OTHER_SAMPLER, OTHER_SAMPLER.exp()
    of_each = [
        mismatch([an_example([float(old)] * 2, [float(new)] * 2)])
        for old, new in zip(OTHER_SAMPLER, learner, strict=True)
    ]
    for name in ("mismatch/k1", "mismatch/k3"):
        mean = sum(float(share) * found[name] for share, found in zip(drawn, of_each, strict=True))
        assert mean == pytest.approx(float((drawn * -delta).sum()), rel=1e-9)


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
    batch = a_batch(sampler_logprobs=sampler, ref_logprobs=REFERENCE, weights=torch.ones(5))
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


CORRECTION = {"level": "token", "rule": "band"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"algorithm": "ppo"}, "algorithm"),
        ({"clip_low": -0.1}, "clip_low"),
        ({"clip_high": math.inf}, "clip_high"),
        ({"kl_coefficient": -1}, "kl_coefficient"),
        ({"beta": 0.1}, "beta"),
        ({"dual_clip": 1.0}, "dual_clip"),
        # settings that the algorithm does not look at
        ({"algorithm": "rloo", "clip_low": 0.2}, "clip_low has no effect on 'rloo', but on grpo, dr_grpo"),
        ({"algorithm": "sapo", "clip_high": 0.2}, "clip_high has no effect on 'sapo'"),
        ({"algorithm": "cispo", "dual_clip": 3.0}, "dual_clip has no effect on 'cispo'"),
        ({"algorithm": "gmpo", "dual_clip": 3.0}, "dual_clip has no effect on 'gmpo'"),
        ({"gate_positive": 1.0}, "gate_positive has no effect on 'grpo', but on sapo"),
        ({"divergence_bound": 0.1}, "divergence_bound has no effect on 'grpo', but on dppo"),
        ({"kl_estimator": "k2"}, "kl_estimator has no effect without a kl_coefficient"),
        ({"correction": {**CORRECTION, "low": 5.0}}, "correction.low must be below correction.high"),
        ({"correction": {"level": "token", "rule": "truncate", "low": 0.5}}, "correction.low has no effect"),
        ({"correction": {"level": "token"}}, "rule"),
        ({"algorithm": "gspo", "correction": CORRECTION}, "use the level 'sequence' or 'geometric'"),
    ],
)
def test_settings_without_sense_or_effect_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        LossSettings(**settings)


# Context


@pytest.mark.parametrize("algorithm", BY_HAND)
def test_context_that_the_policy_finds_impossible_ruins_nothing(algorithm: Algorithm) -> None:
    """What a user or an environment wrote can have any log-prob."""
    correction = {"level": "geometric", "rule": "truncate"}
    settings = LossSettings(algorithm=algorithm, correction=correction, kl_coefficient=0.5)  # type: ignore[arg-type]
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
