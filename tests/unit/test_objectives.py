"""Whole objectives, from rewards to gradients, against float64 references that are written down from the papers.

A reference goes attempt by attempt through the formula as it is printed; nothing of it is taken from the package.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from reasonmill.algo import surrogates
from reasonmill.algo.advantages import ADVANTAGES
from reasonmill.algo.examples import denominator, pg_examples
from reasonmill.algo.logprobs import token_logprobs, token_logprobs_and_entropies
from reasonmill.algo.losses import Algorithm, LossSettings, token_losses
from reasonmill.algo.packing import Batch, pack
from reasonmill.types import Completion, Example, Grade, Group, Message, Problem, Rollout

LONGEST = 16  # max_tokens
# Two groups of attempts, the second one flat; longest attempts first, which is how they are packed.
REWARDS = [[2.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
LENGTHS = [[9, 7, 5, 4], [3, 2, 1]]
PROMPT = 2


class Attempt(NamedTuple):
    """One attempt: its advantage, and log-probs of its tokens, all float64. `now` is differentiated."""

    advantage: float
    now: Tensor
    old: Tensor
    sampler: Tensor
    reference: Tensor
    entropy: Tensor


def _logprobs(seed: int, spread: float) -> list[float]:
    """Log-probs of all tokens that are around others by `spread`, so that ratios lie on both sides of every bound."""
    numbers = np.random.default_rng(seed)
    base = np.random.default_rng(0).uniform(-3.0, -0.2, 64)
    return [float(value) for value in np.minimum(base + spread * numbers.standard_normal(64), -1e-3)]


OLD, SAMPLER, NOW, REFERENCE = (_logprobs(1, 0.1), _logprobs(2, 0.4), _logprobs(3, 0.5), _logprobs(4, 0.4))
ENTROPY = [float(value) for value in np.random.default_rng(5).uniform(0.1, 3, 64)]


def examples_of(advantages: Sequence[Sequence[float]], settings: LossSettings) -> list[Example]:
    found, start = [], 0
    for lengths, values in zip(LENGTHS, advantages, strict=True):
        for length, advantage in zip(lengths, values, strict=True):
            own = tuple(SAMPLER[start : start + length])
            said = Completion((5,) * length, own, (True,) * length, "", "stop", 0)
            group = Group(Problem("sums", (Message("user", "?"),), ""), (Rollout((1,) * PROMPT, said, Grade(0.0)),))
            (example,) = pg_examples(group, [advantage], settings.normalisation, LONGEST)
            rows = [[-50.0] * PROMPT + values[start : start + length] for values in (OLD, REFERENCE)]
            found.append(dataclasses.replace(example, old_logprobs=rows[0], ref_logprobs=rows[1]))
            start += length
    return found


def exact(examples: Sequence[Example]) -> Batch:
    """The examples packed, with every number in float64."""
    (batch,) = pack(examples, 10_000)
    names = ("weights", "advantages", "sampler_logprobs", "old_logprobs", "ref_logprobs")
    rows = {name: [x for e in examples for x in list(getattr(e, name))[1:]] for name in names}
    return dataclasses.replace(batch, **{n: torch.tensor(r, dtype=torch.float64) for n, r in rows.items()})


def ours(settings: LossSettings, advantages: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """The loss, and its gradient with respect to the log-probs of the attempts' tokens."""
    examples = examples_of(advantages, settings)
    batch = exact(examples)
    trained = batch.weights > 0
    values = torch.full((len(trained),), -70.0, dtype=torch.float64)
    values[trained] = torch.tensor(NOW[: int(trained.sum())], dtype=torch.float64)
    entropies = torch.zeros_like(values)
    entropies[trained] = torch.tensor(ENTROPY[: int(trained.sum())], dtype=torch.float64)
    policy = values.requires_grad_()
    losses, _ = token_losses(policy, batch, settings, entropies)
    loss = (losses * batch.weights).sum() / denominator(examples, settings.normalisation)
    (gradient,) = torch.autograd.grad(loss, policy)
    assert not gradient[~trained].any()
    return float(loss.detach()), gradient[trained].tolist()


def attempts(advantages: Sequence[Sequence[float]]) -> tuple[list[Attempt], Tensor]:
    leaf = torch.tensor(NOW[: sum(map(sum, LENGTHS))], dtype=torch.float64).requires_grad_()
    found, start = [], 0
    for lengths, values in zip(LENGTHS, advantages, strict=True):
        for length, advantage in zip(lengths, values, strict=True):
            part = slice(start, start + length)
            rows = [torch.tensor(row[part], dtype=torch.float64) for row in (OLD, SAMPLER, REFERENCE, ENTROPY)]
            found.append(Attempt(advantage, leaf[part], *rows))
            start += length
    return found, leaf


# Means over tokens, as the papers write them


def sequence_mean(rows: Sequence[Tensor]) -> Tensor:
    return sum((row.sum() / len(row) for row in rows), torch.zeros(())) / len(rows)


def token_mean(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows)).sum() / sum(len(row) for row in rows)


def constant_mean(rows: Sequence[Tensor]) -> Tensor:
    return sum((row.sum() / LONGEST for row in rows), torch.zeros(())) / len(rows)


# Objectives (to be maximised) of one attempt: one number for each of its tokens


def ppo(low: float, high: float) -> Callable[[Attempt], Tensor]:
    def objective(a: Attempt) -> Tensor:
        ratio = (a.now - a.old).exp()
        cut = torch.clip(ratio, 1 - low, 1 + high)
        return torch.stack([torch.min(r * a.advantage, c * a.advantage) for r, c in zip(ratio, cut, strict=True)])

    return objective


def dual(low: float, high: float, most: float) -> Callable[[Attempt], Tensor]:
    """Ye et al., equation 5: max(min(...), c A) where A < 0."""

    def objective(a: Attempt) -> Tensor:
        inner = ppo(low, high)(a)
        return inner if a.advantage >= 0 else torch.clip(inner, min=most * a.advantage)

    return objective


def gspo(low: float, high: float) -> Callable[[Attempt], Tensor]:
    def objective(a: Attempt) -> Tensor:
        s = (a.now.sum().exp() / a.old.sum().exp()) ** (1 / len(a.now))
        value = torch.min(s * a.advantage, torch.clip(s, 1 - low, 1 + high) * a.advantage)
        return value.expand(len(a.now))

    return objective


def gmpo(a: Attempt) -> Tensor:
    """{prod_t |min(ratio A, clip(ratio, e^-0.4, e^0.4) A)|}^(1/T) sgn(A)"""
    ratio = (a.now - a.old).exp()
    cut = torch.clip(ratio, math.exp(-0.4), math.exp(0.4))
    inner = torch.min(ratio * a.advantage, cut * a.advantage).abs()
    value = inner.prod() ** (1 / len(inner)) * math.copysign(1, a.advantage) if a.advantage else 0.0 * a.now.sum()
    return value.expand(len(inner))


def cispo(low: float, high: float) -> Callable[[Attempt], Tensor]:
    return lambda a: torch.clip((a.now - a.old).exp(), 1 - low, 1 + high).detach() * a.advantage * a.now


def sapo(positive: float, negative: float) -> Callable[[Attempt], Tensor]:
    def objective(a: Attempt) -> Tensor:
        t = positive if a.advantage > 0 else negative
        return 4 / t / (1 + torch.exp(-t * ((a.now - a.old).exp() - 1))) * a.advantage

    return objective


def dppo(divergence: Callable[[float, float], float], bound: float) -> Callable[[Attempt], Tensor]:
    """M ratio A, where M is 0 if (A > 0 and ratio > 1 or A < 0 and ratio < 1) and D > bound, else 1."""

    def objective(a: Attempt) -> Tensor:
        terms = []
        for now, old in zip(a.now, a.old, strict=True):
            ratio, apart = (now - old).exp(), divergence(math.exp(float(old)), math.exp(float(now.detach())))
            away = (a.advantage > 0 and ratio > 1) or (a.advantage < 0 and ratio < 1)
            terms.append(0.0 * now if away and apart > bound else ratio * a.advantage)
        return torch.stack(terms)

    return objective


def binary_tv(old: float, now: float) -> float:
    return abs(old - now)


def binary_kl(old: float, now: float) -> float:
    return old * math.log(old / now) + (1 - old) * math.log((1 - old) / (1 - now))


def reinforce(a: Attempt) -> Tensor:
    return a.advantage * a.now


# Advantages, by the statistics module


def normalised(group: Sequence[float]) -> list[float]:
    spread = statistics.pstdev(group)
    return [(r - statistics.mean(group)) / spread if spread else 0.0 for r in group]


def centred(group: Sequence[float]) -> list[float]:
    return [r - statistics.mean(group) for r in group]


def others(group: Sequence[float]) -> list[float]:
    return [r - statistics.mean([*group[:i], *group[i + 1 :]]) for i, r in enumerate(group)]


Mean = Callable[[Sequence[Tensor]], Tensor]
OBJECTIVES: dict[str, tuple[dict[str, Any], Callable[[Sequence[float]], list[float]], Callable[..., Tensor], Mean]] = {
    "grpo": ({"algorithm": "grpo"}, normalised, ppo(10, 10), sequence_mean),
    "grpo, clip": ({"algorithm": "grpo", "clip_low": 0.2, "clip_high": 0.3}, normalised, ppo(0.2, 0.3), sequence_mean),
    "grpo, dual clip": ({"algorithm": "grpo", "dual_clip": 1.3}, normalised, dual(10, 10, 1.3), sequence_mean),
    "dr_grpo": ({"algorithm": "dr_grpo"}, centred, ppo(0.2, 0.2), constant_mean),
    "dapo": ({"algorithm": "dapo"}, normalised, ppo(0.2, 0.28), token_mean),
    "dapo, dual clip": ({"algorithm": "dapo", "dual_clip": 1.5}, normalised, dual(0.2, 0.28, 1.5), token_mean),
    "gspo": ({"algorithm": "gspo"}, normalised, gspo(3e-4, 4e-4), sequence_mean),
    "gspo, wide": ({"algorithm": "gspo", "clip_low": 0.1, "clip_high": 0.5}, normalised, gspo(0.1, 0.5), sequence_mean),
    "gmpo": ({"algorithm": "gmpo"}, normalised, gmpo, sequence_mean),
    "cispo": ({"algorithm": "cispo", "clip_high": 0.5}, normalised, cispo(1, 0.5), token_mean),
    "sapo": ({"algorithm": "sapo"}, normalised, sapo(1.0, 1.05), sequence_mean),
    "sapo, other gates": (
        {"algorithm": "sapo", "gate_positive": 2.0, "gate_negative": 3.0}, normalised, sapo(2.0, 3.0), sequence_mean
    ),
    "dppo": ({"algorithm": "dppo"}, centred, dppo(binary_tv, 0.15), token_mean),
    "dppo, kl": ({"algorithm": "dppo", "divergence": "kl"}, centred, dppo(binary_kl, 0.05), token_mean),
    "dppo, bound": ({"algorithm": "dppo", "divergence_bound": 0.05}, centred, dppo(binary_tv, 0.05), token_mean),
    "rloo": ({"algorithm": "rloo"}, others, reinforce, token_mean),
    "reinforce": ({"algorithm": "reinforce"}, centred, reinforce, token_mean),
}  # fmt: skip


def assert_same(
    settings: LossSettings, advantages: Sequence[Sequence[float]], rows: Callable[..., Tensor], mean: Mean
) -> None:
    """Value and gradient of our loss are those of -mean(rows)."""
    sequences, leaf = attempts(advantages)
    expected = -mean([rows(attempt) for attempt in sequences])
    (gradient,) = torch.autograd.grad(expected, leaf)
    loss, found = ours(settings, advantages)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9, abs=1e-12)
    assert found == pytest.approx(gradient.tolist(), rel=1e-9, abs=1e-12)


def advantages_of(settings: LossSettings) -> list[list[float]]:
    return ADVANTAGES[settings.advantage_kind]([[(1.0, group)] for group in REWARDS])


@pytest.mark.parametrize(
    ("surrogate", "algorithm"),
    [
        (surrogates.clipped_ratio, "dapo"),
        (surrogates.clipped_sequence_ratio, "gspo"),
        (surrogates.geometric_mean, "gmpo"),
        (surrogates.soft_gate, "sapo"),
        (surrogates.trust_region, "dppo"),
    ],
)
def test_a_ratio_beyond_all_numbers_leaves_the_gradient_a_number(
    surrogate: surrogates.Surrogate, algorithm: Algorithm
) -> None:
    constants = LossSettings(algorithm=algorithm).constants
    logprobs = torch.zeros(2, requires_grad=True)
    terms = surrogates.Terms(logprobs, torch.full((2,), -200.0), torch.tensor([1.0, -1.0]), lambda values: values)
    losses, _ = surrogate(terms, constants)
    losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_the_papers(name: str) -> None:
    written, advantage, objective, mean = OBJECTIVES[name]
    settings = LossSettings(**written)
    expected = [advantage(group) for group in REWARDS]
    for found, wanted in zip(advantages_of(settings), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-12)
    assert_same(settings, expected, objective, mean)


def test_the_references_tell_objectives_apart() -> None:
    """The numbers are such that every bound is met: no two references agree."""
    losses = []
    for written, advantage, objective, mean in OBJECTIVES.values():
        sequences, _ = attempts([advantage(group) for group in REWARDS])
        losses.append((float(mean([objective(a) for a in sequences]).detach()), written))
    assert len({round(loss, 9) for loss, _ in losses}) == len(losses), losses


# What is added


KL: dict[str, Callable[[Attempt], Tensor]] = {
    "k1": lambda a: a.now - a.reference,
    "k2": lambda a: (a.now - a.reference) ** 2 / 2,
    "k3": lambda a: a.reference.exp() / a.now.exp() - (a.reference - a.now) - 1,
    "unbiased": lambda a: a.now.exp() / a.old.exp() * (a.reference.exp() / a.now.exp() - (a.reference - a.now) - 1),
}


@pytest.mark.parametrize("estimator", KL)
@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo"])
def test_the_kl_is_averaged_as_the_objective_is(name: str, estimator: str) -> None:
    """The paper's objective is (1/G) sum_i (min(...) - beta KL): flat groups, whose A is 0, count in both."""
    written, advantage, objective, mean = OBJECTIVES[name]
    settings = LossSettings(**written, kl_coefficient=0.3, kl_estimator=estimator)
    with_kl = lambda a: objective(a) - 0.3 * KL[estimator](a)  # noqa: E731
    assert_same(settings, [advantage(group) for group in REWARDS], with_kl, mean)


def test_the_drift_is_the_squared_log_ratio() -> None:
    """What INTELLECT's loss adds to DPPO's: tau log^2(ratio)."""
    written, advantage, objective, mean = OBJECTIVES["dppo"]
    settings = LossSettings(**written, drift_coefficient=0.02)
    with_drift = lambda a: objective(a) - 0.02 * (a.now - a.old) ** 2  # noqa: E731
    assert_same(settings, [advantage(group) for group in REWARDS], with_drift, mean)


def test_the_entropy_bonus_is_subtracted_from_the_loss() -> None:
    written, advantage, objective, mean = OBJECTIVES["grpo"]
    settings = LossSettings(**written, entropy_coefficient=0.05)
    assert_same(settings, [advantage(group) for group in REWARDS], lambda a: objective(a) + 0.05 * a.entropy, mean)


@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 5.0)])
def test_entropies_and_their_gradient_are_those_of_a_softmax(temperature: float, softcap: float | None) -> None:
    numbers = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, generator=numbers) for size in ((7, 6), (11, 6)))
    targets = torch.randint(11, (7,), generator=numbers)
    factors = torch.randn(2, 7, generator=numbers)
    found = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    both = token_logprobs_and_entropies(*found, targets, temperature=temperature, softcap=softcap)
    gradients = torch.autograd.grad((factors * torch.stack(both)).sum(), found)
    leaves = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logits = leaves[0] @ leaves[1].T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    all_logprobs = torch.log_softmax(logits / temperature, -1)
    expected = (all_logprobs[range(7), targets], -(all_logprobs.exp() * all_logprobs).sum(-1))
    wanted = torch.autograd.grad((factors.double() * torch.stack(expected)).sum(), leaves)
    for one, other in zip((*both, *gradients), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        both[0], token_logprobs(hidden, weight, targets, temperature=temperature, softcap=softcap)
    )


# What corrects the sampler's log-probs


def token_weights(a: Attempt) -> list[float]:
    return [math.exp(d) for d in (a.old - a.sampler).tolist()]


def product_weights(a: Attempt) -> list[float]:
    return [math.prod(token_weights(a))] * len(a.now)


def geometric_weights(a: Attempt) -> list[float]:
    return [math.prod(token_weights(a)) ** (1 / len(a.now))] * len(a.now)


LEVELS = {"token": token_weights, "sequence": product_weights, "geometric": geometric_weights}
RULES: dict[str, Callable[[float, float, float], float]] = {
    "truncate": lambda w, low, high: min(w, high),  # TIS
    "band": lambda w, low, high: w if low <= w <= high else 0.0,  # IcePop
    "mask": lambda w, low, high: 1.0 if low <= w <= high else 0.0,
}
PUBLISHED = {
    **{(level, "truncate"): (0.0, 2.0) for level in LEVELS},
    **{(level, "band"): (0.5, 5.0) for level in ("token", "sequence")},
    **{(level, "mask"): (0.5, 2.0) for level in ("token", "sequence")},
    **{("geometric", rule): (0.999, 1.001) for rule in ("band", "mask")},
}


@pytest.mark.parametrize("bounds", [{}, {"low": 0.9, "high": 1.1}])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "gmpo", "reinforce"])
def test_a_correction_weighs_the_surrogate_and_not_the_kl(
    name: str, level: str, rule: str, bounds: dict[str, float]
) -> None:
    written, advantage, objective, mean = OBJECTIVES[name]
    own = {key: value for key, value in bounds.items() if rule != "truncate" or key == "high"}
    correction = {"level": level, "rule": rule, **own}
    if level == "token" and name in ("gspo", "gmpo"):
        with pytest.raises(ValueError, match="one ratio for a sequence"):
            LossSettings(**written, correction=correction)
        return
    low, high = (own.get(key, value) for key, value in zip(("low", "high"), PUBLISHED[level, rule], strict=True))

    def corrected(a: Attempt) -> Tensor:
        weights = torch.tensor([RULES[rule](w, low, high) for w in LEVELS[level](a)], dtype=torch.float64)
        return objective(a) * weights - 0.1 * KL["k3"](a)

    settings = LossSettings(**written, kl_coefficient=0.1, correction=correction)
    assert_same(settings, [advantage(group) for group in REWARDS], corrected, mean)


def test_where_old_log_probs_are_the_samplers_none_are_needed() -> None:
    """Ratios are against the sampler then, and every weight is 1."""
    settings = LossSettings(algorithm="dapo", correction={"level": "token", "rule": "band"})
    batch = exact(examples_of(advantages_of(settings), settings))
    policy = torch.tensor(NOW[: batch.num_tokens], dtype=torch.float64)
    same = dataclasses.replace(batch, old_logprobs=batch.sampler_logprobs)
    left_out = dataclasses.replace(batch, old_logprobs=None)
    found, statistics_ = token_losses(policy, left_out, settings)
    assert torch.equal(found, token_losses(policy, same, settings)[0])
    assert torch.equal(statistics_["correction/weight"], torch.ones_like(found))
