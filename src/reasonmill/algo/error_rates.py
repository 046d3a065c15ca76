"""How often a verdict on problems like these errs: on a model that equals its parent, and on one that gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from reasonmill.algo.comparison import Change, Comparison
from reasonmill.algo.intervals import Floats
from reasonmill.randomness import Part, key

# Gains of the candidate for which the power is said, as shares.
GAINS = (0.02, 0.05, 0.1)
# Numbers that are drawn in all, and trials at most and at least: a second's work.
_DRAWS, _MOST, _LEAST = 4_000_000, 2000, 100


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Shares of trials in which candidate and parent both answer as the parent did.

    Attributes:
        trials: how many there were.
        false_promotion: in which all rules hold although the models are equal.
        let_through: in which the rules of "not worse" hold.
        power: in which all rules hold if the candidate gains so much on `better`'s problems, and else is the parent's
            equal; by gain.
    """

    trials: int
    false_promotion: float
    let_through: float
    power: dict[float, float]


def error_rates(
    better: Comparison, guards: Sequence[tuple[Comparison, float]], *, alpha: float, noise: tuple[Part, ...]
) -> ErrorRates:
    """The rates of a verdict that asks for a gain at level `alpha`, and of each guard for no loss beyond its margin.

    In each trial both models draw their attempts at a problem from the parent's. The same numbers draw them for all
    rules that look at a problem. The test of the gain is that of the normal distribution here.

    Args:
        noise: names the draws.
    """
    compared = [better, *(found for found, _ in guards)]
    names = dict.fromkeys(name for found in compared for name in found.names)
    samples = max(len(values) for found in compared for values in found.attempts)
    trials = int(np.clip(_DRAWS // (2 * samples * len(names)), _LEAST, _MOST))
    draws = {
        name: np.random.Generator(np.random.Philox(key=key("error-rates", *noise, name))).random((trials, 2, samples))
        for name in names
    }
    held = np.ones(trials, dtype=bool)
    for found, margin in guards:
        held &= _of_equals(found, draws).interval()[0] > -margin
    net = _of_equals(better, draws).net
    sums, spread = net.sum(-1), np.sqrt((net**2).sum(-1))

    def promoted(gain: float) -> float:
        return float((held & (sums + gain * better.problems > -ndtri(alpha) * spread)).mean())

    return ErrorRates(trials, promoted(0.0), float(held.mean()), {gain: promoted(gain) for gain in GAINS})


def _of_equals(found: Comparison, draws: Mapping[Part, Floats]) -> Change:
    """The change from one model to its equal, in each trial.

    Of n attempts at a problem, one in n + 1 comes from any problem: what always or never succeeded may do otherwise.
    """
    anywhere = np.concatenate(found.attempts)
    differences = np.empty((len(next(iter(draws.values()))), found.problems))
    for place, (name, values) in enumerate(zip(found.names, found.attempts, strict=True)):
        own, number = np.asarray(values), len(values)
        drawn = draws[name][:, :, :number] * (number + 1)
        elsewhere = anywhere[(np.maximum(drawn - number, 0.0) * len(anywhere)).astype(int)]
        attempts = np.where(drawn < number, own[np.minimum(drawn.astype(int), number - 1)], elsewhere)
        differences[:, place] = np.subtract(*attempts.mean(-1).T)
    return Change.of(differences, found.clusters)
