"""What sets two models apart that answered the same problems, and what data like these could have shown.

Unlike for the gate, it makes no difference here which model is which: tests are two-sided. The interval of the
difference is that of `paired_comparison`, which keeps its width; the bootstrap's stands beside it, as others report it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtr, ndtri

from reasonmill.algo.comparison import Comparison, paired_comparison, sign_flipped_sums
from reasonmill.algo.intervals import TAIL, Estimate, Floats
from reasonmill.randomness import Part, key

# The chance with which a difference should be seen.
POWER = 0.8
# Numbers that exist at the same time.
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class McNemar:
    """The exact test of McNemar (1947).

    Attributes:
        gained, lost: problems that only the second model solves, and only the first.
    """

    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Room:
    """What a model that is better than the first could gain, or a worse one lose.

    Attributes:
        mean: the share of attempts that could turn.
        square: the mean, over problems, of the square of their shares.
        each: one attempt's part of a problem.
    """

    mean: float
    square: float
    each: float

    @classmethod
    def of(cls, first: Floats, second: Floats, each: float) -> Room:
        """That of two models whose attempts could turn in these shares of each problem [P]."""
        # A share's own square would hold its noise twice. The other model's noise is its own; that it is better or
        # worse is taken out.
        other = float(second.mean())
        square = float((first * second).mean()) * float(first.mean()) / other if other else float(first.mean()) ** 2
        return cls(float(first.mean()), square, each)


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model less the first.

    Attributes:
        found: the comparison, with the second model as its candidate and the first as the parent.
        p_value: two-sided, of the sign-flip test on clusters.
        bootstrap: the difference with the percentile interval of a bootstrap of clusters.
        mcnemar: None unless each problem stands for itself and was answered once by each, right or wrong.
        up, down: the room for a gain, and for a loss.
        unit: what all sums of the differences are multiples of; 0 where they can be anything.
    """

    found: Comparison
    p_value: float
    bootstrap: Estimate
    mcnemar: McNemar | None
    up: Room
    down: Room
    unit: float

    def power(self, gain: float, alpha: float) -> float | None:
        """The chance that the sign-flip test at level `alpha` sees a true difference of `gain` on as many problems like
        these; below 0 it is a loss. A gain turns the same share of the wrong attempts at each problem.

        None where no problem tells how far they spread, or there is no room for such a gain.
        """
        return self._power(gain, alpha, 1.0)

    def problems_needed(self, gain: float, alpha: float) -> int | None:
        """How many such problems see a true difference of `gain` with a chance of `POWER`; None as for `power`."""
        if gain == 0 or self.power(gain, alpha) is None:
            return None

        def enough(problems: int) -> bool:
            chance = self._power(gain, alpha, problems / self.found.problems)
            return chance is not None and chance >= POWER

        few, many = 1, 2
        while not enough(many):
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if enough(middle) else (middle, many)
        return many

    def _power(self, gain: float, alpha: float, scale: float) -> float | None:
        """That of `scale` times as many clusters.

        The test compares the sum of the clusters' differences with what random signs make of them, which spreads by
        the sum of their squares: by the noise, and by the difference itself. Attempts that turn change the noise: fewer
        are left in doubt, the better model's are in doubt elsewhere, and problems with more room gain more. Sums that
        lie two units apart are judged by the next one that is rare enough, which is one unit further on average.
        """
        change, room = self.found.change, self.up if gain > 0 else self.down
        counts, clusters = change.gains.counts, len(change.clusters)
        rest = change.net - self.found.difference.value * counts
        seen = float((rest**2).sum()) * clusters / max(1, clusters - 1)
        if seen <= 0 or not 0 < abs(gain) <= room.mean:
            return None
        turned = abs(gain) / room.mean
        problems, squares = float(counts.sum()), float((counts**2).sum())
        noise = seen * (1 - turned / 2) + problems * room.each * turned * (1 - turned) * room.square
        noise = scale * (noise + squares * turned**2 * max(0.0, room.square - room.mean**2))
        reach = -float(ndtri(alpha / 2)) * math.sqrt(noise + scale * gain**2 * squares) + self.unit
        shift, spread = abs(gain) * problems * scale, math.sqrt(noise)
        return float(ndtr((shift - reach) / spread) + ndtr((-shift - reach) / spread))


def difference_of(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    *,
    names: Sequence[Part],
    clusters: Sequence[Hashable],
    noise: tuple[Part, ...],
    permutations: int = 10_000,
) -> Difference:
    """Compares two models on the same problems; see `paired_comparison` for the arguments and errors."""
    found = paired_comparison(second, first, names=names, clusters=clusters, noise=noise, permutations=permutations)
    flipped = np.abs(sign_flipped_sums(found.change.net, noise=(*noise, "two-sided"), permutations=permutations))
    observed = abs(float(found.change.net.sum()))
    reached = int((flipped >= observed - 1e-9 * (1.0 + float(flipped.max()))).sum())
    means = [np.array([np.mean(values) for values in model], dtype=np.float64) for model in (first, second)]
    each = float(np.mean([1 / len(values) for values in second]))
    return Difference(
        found,
        p_value=(1.0 + reached) / (1.0 + permutations),
        bootstrap=_bootstrap(found, noise, permutations),
        mcnemar=_mcnemar(first, second, clusters),
        up=Room.of(1 - means[0], 1 - means[1], each),
        down=Room.of(means[0], means[1], each),
        unit=_unit([*first, *second]),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, raised so that all of them together err no more often than one (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    raised = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        raised[place] = highest
    return raised


def _unit(attempts: Sequence[Sequence[float]]) -> float:
    """What differences of the means of these attempts are multiples of, where each has as many, right or wrong."""
    is_plain = all(len(values) == len(attempts[0]) and {*values} <= {0.0, 1.0} for values in attempts)
    return 1 / len(attempts[0]) if is_plain else 0.0


def _bootstrap(found: Comparison, noise: tuple[Part, ...], draws: int) -> Estimate:
    """The difference's interval, from clusters that are drawn with replacement."""
    net, counts = found.change.net, found.change.gains.counts
    generator = np.random.Generator(np.random.Philox(key=key("bootstrap", *noise)))
    means: list[Floats] = []
    size = max(1, _CHUNK // len(net))
    for start in range(0, draws, size):
        drawn = generator.integers(0, len(net), (min(size, draws - start), len(net)))
        means.append(net[drawn].sum(-1) / counts[drawn].sum(-1))
    low, high = np.quantile(np.concatenate(means), (TAIL, 1 - TAIL))
    return Estimate(found.difference.value, float(low), float(high))


def _mcnemar(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], clusters: Sequence[Hashable]
) -> McNemar | None:
    pairs = [(ours[0], theirs[0]) for ours, theirs in zip(second, first, strict=True) if len(ours) == len(theirs) == 1]
    is_plain = len(pairs) == len(first) == len(set(clusters))
    if not is_plain or any(value not in (0.0, 1.0) for pair in pairs for value in pair):
        return None
    gained, lost = (sum(pair == (one, 1.0 - one) for pair in pairs) for one in (1.0, 0.0))
    return McNemar(gained, lost, min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5))))
