"""Do intervals of shares cover, and does the gate let losses pass?

Data sets are drawn whose truth is known: n problems, k samples of each, right with a chance that varies from problem to
problem so that samples of one problem are correlated by rho. Three parts, each with its bars, of which every cell is
printed:

- intervals: how many of the 95 % intervals hold the true share, and how wide they are beside the exact binomial one
  at the effective number of observations, n k / (1 + (k - 1) rho);
- losses: how often "not worse by margin m" holds for a candidate that is worse by m, its chances drawn by themselves
  ("own") or made from the parent's ("made": the same problems are hard);
- equals: how often a gate promotes a model over itself, and what it refuses it for otherwise.

Chances have a beta distribution. `--draws copy` lets each sample repeat a common draw of its problem instead (with the
chance sqrt(rho)), which makes rare problems on which all samples agree; the bars are for beta. One core, some minutes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import beta, binom
from seeds import Verdict, conclude

from reasonmill.algo.comparison import Change
from reasonmill.algo.intervals import ClusterSums, Floats, Spread

SHARES = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999)
PARENTS = (0.5, 0.8, 0.95, 0.99, 1.0)
MARGINS = (0.02, 0.05, 0.1)
PROBLEMS, SAMPLES, CORRELATIONS = (16, 30, 100, 500), (1, 4, 16, 64), (0.1, 0.5, 0.9)

COVERAGE_BAR, LEAST_COVERAGE_BAR, MANY = 0.93, 0.90, 30  # the first where the effective number is at least MANY
WIDTH_BAR, EVENTS = 1.25, 10  # where so many successes and failures are expected at the effective number
LOSS_BAR = 0.05
EQUALS_BAR = 0.015
EQUALS = 10_000
PERMUTATIONS = 1000
ALPHA = 0.01

Draws = Literal["beta", "copy"]


@dataclass(frozen=True)
class Cell:
    """One size of data: a share, n problems, k samples each, their correlation."""

    share: float
    problems: int
    samples: int
    correlation: float

    @property
    def effective(self) -> float:
        return self.problems * self.samples / (1 + (self.samples - 1) * self.correlation)

    def __str__(self) -> str:
        return f"p {self.share:g}, n {self.problems}, k {self.samples}, rho {self.correlation:g}"


@dataclass(frozen=True)
class Interval:
    cell: Cell
    coverage: float
    width: float  # beside the exact interval's


@dataclass(frozen=True)
class Loss:
    cell: Cell
    margin: float
    kind: str
    passed: float

    def __str__(self) -> str:
        return f"{self.cell}, m {self.margin:g}, {self.kind}"


def cells(shares: Iterable[float], problems: Iterable[int], samples: Iterable[int]) -> list[Cell]:
    return [Cell(*each) for each in itertools.product(shares, problems, samples, CORRELATIONS)]


def chances(rng: np.random.Generator, cell: Cell, trials: int) -> Floats:
    """What each problem's samples are right with [trials, n]."""
    size, concentration = (trials, cell.problems), 1 / cell.correlation - 1
    if cell.share in (0.0, 1.0):
        return np.full(size, cell.share)
    drawn = rng.beta(cell.share * concentration, (1 - cell.share) * concentration, size)
    return np.nan_to_num(drawn, nan=cell.share)  # both parameters underflow to 0 / 0 at the ends


def right(rng: np.random.Generator, cell: Cell, trials: int, draws: Draws) -> Floats:
    """How many of the samples of each problem are right [trials, n]."""
    if draws == "beta":
        return rng.binomial(cell.samples, chances(rng, cell, trials)).astype(np.float64)
    size = (trials, cell.problems)
    common = rng.random(size) < cell.share
    copies = rng.binomial(cell.samples, np.sqrt(cell.correlation), size)
    return (copies * common + rng.binomial(cell.samples - copies, cell.share)).astype(np.float64)


def intervals(cell: Cell, trials: int, draws: Draws, seed: int) -> Interval:
    """How the intervals of one cell do."""
    rng = np.random.default_rng([seed, *_numbers(cell)])
    found = right(rng, cell, trials, draws)
    # Of zeros and ones, so their squares are themselves.
    spread = Spread.of(ClusterSums(found, found, np.full(cell.problems, float(cell.samples))))
    low, high = spread.interval(cell.problems)
    covered = (low <= cell.share) & (cell.share <= high)
    return Interval(cell, float(covered.mean()), float((high - low).mean()) / exact_width(cell))


def exact_width(cell: Cell) -> float:
    """The expected width of Clopper's and Pearson's interval at the effective number of observations."""
    number = round(cell.effective)
    hits = np.arange(number + 1)
    ends = beta.ppf([[0.025], [0.975]], [hits, hits + 1], [number - hits + 1, number - hits])
    low, high = np.where(hits > 0, ends[0], 0.0), np.where(hits < number, ends[1], 1.0)
    return float(binom.pmf(hits, number, cell.share) @ (high - low))


def change(candidate: Floats, parent: Floats, samples: int) -> Change:
    """The differences of problems [trials, n], each a cluster of its own."""
    differences = (candidate - parent) / samples
    counts, names = np.ones(differences.shape[-1]), tuple(range(differences.shape[-1]))
    up, down = np.maximum(differences, 0), np.maximum(-differences, 0)
    return Change(ClusterSums(up, up**2, counts), ClusterSums(down, down**2, counts), names)


def losses(cell: Cell, margins: Sequence[float], trials: int, draws: Draws, seed: int) -> Iterator[Loss]:
    """How often a loss of a whole margin passes, for parents of one cell."""
    rng = np.random.default_rng([seed, 1, *_numbers(cell)])
    of_parent = chances(rng, cell, trials)
    parent = (
        rng.binomial(cell.samples, of_parent).astype(np.float64) if draws == "beta" else right(rng, cell, trials, draws)
    )
    for margin in margins:
        worse = Cell(cell.share - margin, cell.problems, cell.samples, cell.correlation)
        candidates = {"own": right(rng, worse, trials, draws)}
        if draws == "beta" and cell.share < 1:  # a perfect parent's chances do not vary
            made = of_parent * worse.share / cell.share
            candidates["made"] = rng.binomial(cell.samples, made).astype(np.float64)
        for kind, candidate in candidates.items():
            low, _ = change(candidate, parent, cell.samples).interval()
            yield Loss(cell, margin, kind, float((low > -margin).mean()))


def equals(trials: int, seed: int) -> tuple[float, float]:
    """(how often a gate promotes a model over itself, how often only the want of a gain stops it).

    The gate is that of `r1-tiny` in small: three tasks of 200, 100 and 100 problems, each guarded by 10 points, and
    general answers on 200 problems, of which 5 points may be lost; 4 samples of each.
    """
    rng = np.random.default_rng([seed, 2])
    sizes, margins = (200, 100, 100, 200), (0.1, 0.1, 0.1, 0.05)
    tasks = [Cell(share, size, 4, 0.5) for share, size in zip((0.7, 0.4, 0.8, 0.8), sizes, strict=True)]
    promoted, unlost, done = 0, 0, 0
    while done < trials:
        count = min(1000, trials - done)
        changes = []
        for cell in tasks:
            shared = chances(rng, cell, count)
            one, other = (rng.binomial(cell.samples, shared).astype(np.float64) for _ in range(2))
            changes.append(change(one, other, cell.samples))
        held = np.all([c.interval()[0] > -m for c, m in zip(changes, margins, strict=True)], axis=0)
        reasoning = np.concatenate([each.net for each in changes[:3]], axis=1)
        # The sign-flip test, with the same signs for all trials of a batch.
        signs = rng.integers(0, 2, (PERMUTATIONS, reasoning.shape[1])) * 2.0 - 1.0
        reached = (signs @ reasoning.T >= reasoning.sum(1) - 1e-9).sum(0)
        better = (1 + reached) / (1 + PERMUTATIONS) < ALPHA
        promoted += int((held & better).sum())
        unlost += int((held & ~better).sum())
        done += count
    return promoted / trials, unlost / trials


def verdicts_on_intervals(found: Sequence[Interval]) -> list[Verdict]:
    """The bars of the first part."""
    many = min((each for each in found if each.cell.effective >= MANY), key=lambda each: each.coverage)
    least = min(found, key=lambda each: each.coverage)
    widest = max(
        (each for each in found if min(each.cell.share, 1 - each.cell.share) * each.cell.effective >= EVENTS),
        key=lambda each: each.width,
    )
    return [
        Verdict(
            f"intervals cover in {COVERAGE_BAR:.0%} where {MANY} effective observations are there",
            many.coverage >= COVERAGE_BAR,
            f"worst {many.coverage:.2%}: {many.cell}",
        ),
        Verdict(
            f"intervals cover in {LEAST_COVERAGE_BAR:.0%} everywhere",
            least.coverage >= LEAST_COVERAGE_BAR,
            f"worst {least.coverage:.2%}: {least.cell}",
        ),
        Verdict(
            f"intervals are at most {WIDTH_BAR} times as wide as exact ones where {EVENTS} events are expected",
            widest.width <= WIDTH_BAR,
            f"worst {widest.width:.3f}: {widest.cell}",
        ),
    ]


def verdict_on_losses(found: Sequence[Loss]) -> Verdict:
    """The bar of the second part."""
    worst = max(found, key=lambda each: each.passed)
    return Verdict(
        f"a loss of the whole margin passes in at most {LOSS_BAR:.0%}",
        worst.passed <= LOSS_BAR,
        f"worst {worst.passed:.2%}: {worst}",
    )


def main() -> int:
    options_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_parser.add_argument("--trials", type=int, default=2000, help="data sets of each cell")
    options_parser.add_argument("--seed", type=int, default=0)
    options_parser.add_argument("--draws", choices=("beta", "copy"), default="beta")
    options = options_parser.parse_args()
    began = time.perf_counter()
    settings = (options.trials, options.draws, options.seed)
    columns = [f"k {k} rho {rho:g}" for k, rho in itertools.product(SAMPLES, CORRELATIONS)]

    print(f"seed {options.seed}, {options.trials:,} data sets a cell, chances: {options.draws}\n")
    print("1. intervals: coverage in percent / width beside the exact interval")
    print(_line("p", "n", *columns))
    shown: list[Interval] = []
    for share, problems in itertools.product(SHARES, PROBLEMS):
        row = [intervals(cell, *settings) for cell in cells([share], [problems], SAMPLES)]
        print(_line(share, problems, *(f"{100 * each.coverage:.1f}/{each.width:.2f}" for each in row)), flush=True)
        shown += row

    print("\n2. losses of the whole margin that pass, in percent: own chances / made of the parent's")
    print(_line("p", "n", *columns, extra="m"))
    passed: list[Loss] = []
    for share, problems in itertools.product(PARENTS, PROBLEMS):
        of_cells = [list(losses(cell, MARGINS, *settings)) for cell in cells([share], [problems], SAMPLES)]
        for margin in MARGINS:
            row = [[loss.passed for loss in found if loss.margin == margin] for found in of_cells]
            texts = ("/".join(f"{100 * rate:.1f}" for rate in rates) for rates in row)
            print(_line(share, problems, *texts, extra=margin), flush=True)
        passed += itertools.chain.from_iterable(of_cells)

    print("\n3. a model against itself")
    promoted, unlost = equals(EQUALS, options.seed)
    print(f"of {EQUALS:,} trials {promoted:.2%} promoted, {unlost:.1%} refused only because no gain was shown\n")
    verdicts = [
        *verdicts_on_intervals(shown),
        verdict_on_losses(passed),
        Verdict(
            f"a model is promoted over itself in at most {EQUALS_BAR:.1%}", promoted <= EQUALS_BAR, f"{promoted:.2%}"
        ),
        Verdict("most others are refused only because no gain was shown", unlost > 0.5, f"{unlost:.1%}"),
    ]
    print(f"{time.perf_counter() - began:.0f} s\n")
    return conclude(verdicts)


def _numbers(cell: Cell) -> list[int]:
    """The cell as a seed."""
    return [round(1000 * cell.share), cell.problems, cell.samples, round(10 * cell.correlation)]


def _line(share: object, problems: object, *columns: str, extra: object = "") -> str:
    return f"{share:>5} {problems:>4} {extra:>4} " + " ".join(f"{column:>12}" for column in columns)


if __name__ == "__main__":
    sys.exit(main())
