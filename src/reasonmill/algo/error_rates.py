"""How often a verdict on problems like these is wrong: about models that are equal, and about one that gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasonmill.algo.comparison import Change, Comparison, p_values, sign_flipped_sums
from reasonmill.randomness import Part, key

# Gains of the candidate for which the power is said, as shares.
GAINS = (0.02, 0.05, 0.1)
# Coins that are thrown in all, and trials at most and at least: a second's work.
_COINS, _MOST, _LEAST = 1_000_000, 2000, 200


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Shares of trials in which candidate and parent changed places in clusters by coins.

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

    If two models are equal, each cluster's figures could as well be the other model's. The same coin decides for all
    rules that look at a cluster.

    Args:
        noise: names the coins.
    """
    changes = [better.change, *(found.change for found, _ in guards)]
    names = dict.fromkeys(name for change in changes for name in change.clusters)
    places = {name: place for place, name in enumerate(names)}
    trials = int(np.clip(_COINS // len(names), _LEAST, _MOST))
    draws = np.random.Generator(np.random.Philox(key=key("error-rates", *noise)))
    coins = draws.integers(0, 2, (trials, len(names)), dtype=np.int8).astype(bool)

    def swapped(change: Change) -> Change:
        return change.swapped(coins[:, [places[name] for name in change.clusters]])

    held = np.ones(trials, dtype=bool)
    for (_, margin), change in zip(guards, changes[1:], strict=True):
        held &= swapped(change).interval()[0] > -margin
    flipped = sign_flipped_sums(better.change.net, noise=noise)
    sums = swapped(better.change).net.sum(-1)

    def promoted(gain: float) -> float:
        return float((held & (p_values(sums + gain * better.problems, flipped) < alpha)).mean())

    return ErrorRates(trials, promoted(0.0), float(held.mean()), {gain: promoted(gain) for gain in GAINS})
