"""Is one model better than another? A paired comparison on the same problems.

Clusters (problems, or what several problems are wordings of) are the independent observations: samples of the same
problem are averaged first. Pairing takes the spread of the problems' difficulty, most of the noise of a single
evaluation, out of the difference.

The interval of the difference is put together from two shares: what the candidate gains on the problems on which it is
better, and what it loses on the others (MOVER, Newcombe 1998 and Zou and Donner 2008). Both keep their width, so that
the difference does, too: sixteen problems without a loss are no proof that there is none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.special import ndtri

from reasonmill.algo.intervals import TAIL, ClusterSums, Estimate, Floats, Spread, clustered_share
from reasonmill.randomness import Part, key

# Signs that exist at the same time.
_CHUNK = 1 << 22
# The chance with which `problems_needed` would show that an equal model is not worse.
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Change:
    """What problems gained and lost from one model to another, by cluster; the axes before the last are data sets.

    Attributes:
        clusters: their names [M].
    """

    gains: ClusterSums
    losses: ClusterSums
    clusters: tuple[Hashable, ...]

    @classmethod
    def of(cls, differences: Sequence[float] | Floats, clusters: Sequence[Hashable]) -> Change:
        """That of the differences [..., problems], each at least -1 and at most 1."""
        given = np.asarray(differences, dtype=np.float64)
        # Without `+ 0.0` some of the zeros would be negative ones.
        gains, losses = (np.maximum(sign * given, 0.0) + 0.0 for sign in (1, -1))
        return cls(ClusterSums.of(gains, clusters), ClusterSums.of(losses, clusters), tuple(dict.fromkeys(clusters)))

    @property
    def net(self) -> Floats:
        """Sum of the differences in each cluster [..., M]."""
        return self.gains.sums - self.losses.sums

    def evened(self) -> Change:
        """Twice the data, once as they are and once with the models swapped: what equal models would show."""

        def joined(ours: ClusterSums, theirs: ClusterSums) -> ClusterSums:
            pairs = ((ours.sums, theirs.sums), (ours.squares, theirs.squares), (ours.counts, theirs.counts))
            return ClusterSums(*(np.concatenate(pair, -1) for pair in pairs))

        return Change(joined(self.gains, self.losses), joined(self.losses, self.gains), 2 * self.clusters)

    def interval(self, clusters: float | None = None) -> tuple[Floats, Floats]:
        """(lower, upper) ends [...] of the difference's 95 % interval, for so many clusters or those there are."""
        number = len(self.clusters) if clusters is None else clusters
        up, down = Spread.of(self.gains), Spread.of(self.losses)
        (up_low, up_high), (down_low, down_high) = up.interval(number), down.interval(number)
        middle = up.value - down.value
        together = self._correlation(up, down)

        def reach(one: Floats, other: Floats) -> Floats:
            found: Floats = np.sqrt(one**2 - 2 * together * one * other + other**2)
            return found

        return (
            np.maximum(middle - reach(up.value - up_low, down_high - down.value), -1.0),
            np.minimum(middle + reach(up_high - up.value, down.value - down_low), 1.0),
        )

    def _correlation(self, up: Spread, down: Spread) -> Floats:
        """That of gains and losses, among clusters; where it is above zero it would narrow the interval, and is not
        used."""
        rest_up = self.gains.sums - up.value[..., None] * self.gains.counts
        rest_down = self.losses.sums - down.value[..., None] * self.losses.counts
        with np.errstate(invalid="ignore"):
            found = (rest_up * rest_down).sum(-1) / np.sqrt((rest_up**2).sum(-1) * (rest_down**2).sum(-1))
        below_zero: Floats = np.clip(np.nan_to_num(found), -1.0, 0.0)
        return below_zero


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a paired comparison found.

    Attributes:
        candidate, parent: means over the problems' means.
        difference: candidate - parent, with its 95 % interval.
        p_value: one-sided; how often chance alone gives a difference as high as this.
        change: the differences.
        attempts: the values of the parent's samples of each problem.
        names, clusters: of each problem.
    """

    candidate: float
    parent: float
    difference: Estimate
    p_value: float
    change: Change
    attempts: tuple[tuple[float, ...], ...]
    names: tuple[Part, ...]
    clusters: tuple[Hashable, ...]

    @property
    def problems(self) -> int:
        """How many were compared."""
        return len(self.names)


def paired_comparison(
    candidate: Sequence[Sequence[float]],
    parent: Sequence[Sequence[float]],
    *,
    noise: tuple[Part, ...],
    names: Sequence[Part] | None = None,
    clusters: Sequence[Hashable] | None = None,
    permutations: int = 10_000,
) -> Comparison:
    """Compares two models on the same problems.

    The interval is that of `Change`; the p-value that of `sign_flip_test` on the clusters' differences.

    Args:
        candidate, parent: for each problem the values of its samples, all in [0, 1]; at least one each.
        noise: names the permutations that are drawn.
        names: those of the problems; their places if None.
        clusters: names for each problem what it is a wording of; each problem is its own cluster if None.

    Raises:
        ValueError: no problems, other numbers of problems, a problem without values, or a value that is no share.
    """
    _require_problems(candidate, parent)
    if any(not 0 <= value <= 1 for values in (*candidate, *parent) for value in values):
        raise ValueError("what is compared must be shares, from 0 to 1")
    means, parent_means = ([fmean(values) for values in model] for model in (candidate, parent))
    differences = [ours - theirs for ours, theirs in zip(means, parent_means, strict=True)]
    named = tuple(range(len(differences)) if names is None else names)
    things = named if clusters is None else tuple(clusters)
    change = Change.of(differences, things)
    low, high = change.interval()
    return Comparison(
        candidate=fmean(means),
        parent=fmean(parent_means),
        difference=Estimate(fmean(differences), float(low), float(high)),
        p_value=sign_flip_test(change.net, noise=noise, permutations=permutations),
        change=change,
        attempts=tuple(map(tuple, parent)),
        names=named,
        clusters=things,
    )


def problems_needed(found: Comparison, margin: float) -> int:
    """How many problems like these would show, with a chance of `POWER`, that an equal model is not worse by `margin`.

    They must be of new clusters. Where no problem differs, it is the number that shows it if none ever does.
    """
    evened = found.change.evened()
    # Without any difference there is no noise either, and the interval itself must fit.
    noisy = bool(evened.net.any())
    reach = margin / (1 + float(ndtri(POWER) / ndtri(1 - TAIL))) if noisy else margin
    few, many = 1, 2
    while -float(evened.interval(many)[0]) >= reach:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if -float(evened.interval(middle)[0]) >= reach else (few, middle)
    return -(-many * found.problems // len(found.change.clusters))


def win_rate(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Share of the pairs of one of our samples and one of theirs, to the same problem, that ours wins; a tie is half.

    Args:
        ours, theirs: for each problem the values of its samples; at least one each.
        clusters: names for each problem what it is a wording of; each problem is its own cluster if None.

    Raises:
        ValueError: no problems, other numbers of problems, or a problem without values.
    """
    _require_problems(ours, theirs)
    won = [
        fmean([1.0 if mine > other else 0.5 * (mine == other) for mine in values for other in others])
        for values, others in zip(ours, theirs, strict=True)
    ]
    return clustered_share(won, range(len(won)) if clusters is None else clusters)


def sign_flip_test(differences: Floats, *, noise: tuple[Part, ...], permutations: int = 10_000) -> float:
    """One-sided p-value of the mean of paired differences [P] being above zero.

    If the two models are alike, each difference could as well have the other sign: the p-value is the share of random
    signs whose mean reaches the observed one. The observed signs count as one of them, so that it is never zero and the
    test never errs more often than its level says.
    """
    flipped = sign_flipped_sums(differences, noise=noise, permutations=permutations)
    return float(p_values(differences.sum(keepdims=True), flipped)[0])


def sign_flipped_sums(differences: Floats, *, noise: tuple[Part, ...], permutations: int = 10_000) -> Floats:
    """The sums of the differences [P] under random signs, in rising order [permutations]."""
    observed = float(differences.sum())
    draws = np.random.Generator(np.random.Philox(key=key("sign-flip", *noise)))
    sums: list[Floats] = []
    size = max(1, _CHUNK // max(1, len(differences)))
    for start in range(0, permutations, size):
        count = min(size, permutations - start)
        flipped = draws.integers(0, 2, (count, len(differences)), dtype=np.int8).astype(np.float64)
        # Flipping the signs of some takes twice their sum away.
        sums.append(observed - 2 * (flipped @ differences))
    return np.sort(np.concatenate(sums))


def p_values(sums: Floats, flipped: Floats) -> Floats:
    """The p-value of each of the sums [S], given the rising sums under random signs."""
    tolerance = 1e-9 * (1.0 + float(np.abs(flipped).max()))  # equal sums may be added up in another order
    reached = len(flipped) - np.searchsorted(flipped, sums - tolerance)
    return np.asarray((1.0 + reached) / (1.0 + len(flipped)), dtype=np.float64)


def _require_problems(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
    if not ours or len(ours) != len(theirs) or not all(map(len, (*ours, *theirs))):
        raise ValueError(f"{len(ours)} and {len(theirs)} problems, of which each needs a value")
