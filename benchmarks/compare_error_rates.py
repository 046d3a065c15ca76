"""How often `reasonmill compare` errs, in comparisons whose truth is known.

    python benchmarks/compare_error_rates.py                 # all tables; some minutes
    python benchmarks/compare_error_rates.py --comparisons 200

Problems have difficulties of their own: the chance that one attempt is right is drawn from a beta distribution, and
two models that are equal have the same chances. A better one turns wrong attempts into right ones: the same share of
them of each problem ("spread", which `compare` supposes), or all of them of a few problems ("few").

1. Equal models: the share of comparisons whose test says that they differ at the level of 5 %, which may be at most
   that, and of 95 % intervals without zero.
2. Power: what `compare` states from two equal models on average, and the share of comparisons of a better model, on
   other problems of the same kind, in which the test sees it.
3. Problems needed: the same share with as many problems as `compare` says a difference needs for 80 %.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from seeds import Verdict, conclude

from reasonmill.algo.differences import Difference, difference_of

Floats = NDArray[np.float64]
ALPHA = 0.05
GAINS = (0.02, 0.05, 0.1)
MOST_CALLED, MOST_AWAY = 0.06, 0.05


@dataclass(frozen=True)
class Setup:
    """Problems, samples of each, and the beta distribution of their difficulties."""

    problems: int
    samples: int
    beta: tuple[float, float]

    @property
    def title(self) -> str:
        """As a cell of a table."""
        return f"{self.problems} × {self.samples}, mean {self.beta[0] / sum(self.beta):.0%}"


SETUPS = (
    Setup(30, 64, (0.8, 0.8)),
    Setup(200, 1, (0.8, 0.8)),
    Setup(200, 8, (0.8, 0.8)),
    Setup(500, 4, (2.0, 0.7)),
    Setup(164, 10, (0.5, 1.5)),
    Setup(500, 1, (1.5, 0.5)),
)


def chances(setup: Setup, generator: np.random.Generator, problems: int | None = None) -> Floats:
    """The chance of each problem [P] that an attempt at it is right."""
    return generator.beta(*setup.beta, size=problems or setup.problems)


def raised(setup: Setup, chance: Floats, gain: float, kind: str, generator: np.random.Generator) -> Floats:
    """Chances [P] that are higher by `gain` on average over all such problems."""
    share = gain * sum(setup.beta) / setup.beta[1]
    if kind == "spread":
        return chance + share * (1 - chance)
    return np.where(generator.random(len(chance)) < share, 1.0, chance)


def compared(
    setup: Setup, first: Floats, second: Floats, generator: np.random.Generator, permutations: int
) -> Difference:
    """A comparison of two models with these chances."""
    drawn = [
        (generator.random((len(first), setup.samples)) < chance[:, None]).astype(float) for chance in (first, second)
    ]
    names = [str(place) for place in range(len(first))]
    return difference_of(
        *(model.tolist() for model in drawn),
        names=names,
        clusters=names,
        noise=("benchmark",),
        permutations=permutations,
    )


def outside(low: float, high: float) -> bool:
    """Whether an interval leaves zero out."""
    return not low <= 0 <= high


def main() -> int:
    """Prints the tables, and whether the bars are met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=2000, help="half as many for a power")
    parser.add_argument("--permutations", type=int, default=1000, help="half as many for a power")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    equal: dict[Setup, list[Difference]] = {}
    called: list[float] = []
    print("| equal models: problems × samples | test | interval | bootstrap | McNemar |\n|---|---|---|---|---|")
    for setup in SETUPS:
        equal[setup] = found = equals(setup, options.comparisons, options.permutations, generator)
        called.append(rate := float(np.mean([one.p_value < ALPHA for one in found])))
        interval = np.mean([outside(one.found.difference.low, one.found.difference.high) for one in found])
        bootstrap = np.mean([outside(one.bootstrap.low, one.bootstrap.high) for one in found])
        tables = [one.mcnemar.p_value < ALPHA for one in found if one.mcnemar is not None]
        mcnemar = f"{np.mean(tables):.1%}" if tables else "–"
        print(f"| {setup.title} | {rate:.1%} | {interval:.1%} | {bootstrap:.1%} | {mcnemar} |", flush=True)
    print("\n| power: problems × samples | gain | stated | simulated |\n|---|---|---|---|")
    away: list[float] = []
    for setup in SETUPS:
        for gain in GAINS:
            said = float(np.mean([one.power(gain, ALPHA) or 0.0 for one in equal[setup]]))
            seen = share_seen(setup, gain, "spread", setup.problems, options, generator)
            away.append(said - seen)
            print(f"| {setup.title} | {gain:.0%} | {said:.1%} | {seen:.1%} |", flush=True)
    print("\n| a gain in few problems: problems × samples | gain | simulated |\n|---|---|---|")
    for setup in SETUPS:
        seen = share_seen(setup, 0.05, "few", setup.problems, options, generator)
        print(f"| {setup.title} | 5% | {seen:.1%} |", flush=True)
    print("\n| needed for 80 %: samples | gain | problems | simulated |\n|---|---|---|---|")
    for setup in SETUPS:
        needed = int(np.median([one.problems_needed(0.05, ALPHA) or 0 for one in equal[setup]]))
        seen_share = share_seen(setup, 0.05, "spread", needed, options, generator)
        print(f"| {setup.title} | 5% | {needed:,} | {seen_share:.1%} |", flush=True)
    print()
    worst = max(away, key=abs)
    return conclude(
        [
            Verdict("at most 6 % of equal models differ at 95 %", max(called) <= MOST_CALLED, f"{max(called):.1%}"),
            Verdict("stated power within 5 points of the simulated", abs(worst) <= MOST_AWAY, f"{100 * worst:+.1f}"),
        ]
    )


def equals(setup: Setup, number: int, permutations: int, generator: np.random.Generator) -> list[Difference]:
    """Comparisons of equal models, each on other problems."""
    found = []
    for _ in range(number):
        chance = chances(setup, generator)
        found.append(compared(setup, chance, chance, generator, permutations))
    return found


def share_seen(
    setup: Setup, gain: float, kind: str, problems: int, options: argparse.Namespace, generator: np.random.Generator
) -> float:
    """In which share of comparisons the test sees a better model."""
    seen, comparisons = 0, options.comparisons // 2
    for _ in range(comparisons):
        chance = chances(setup, generator, problems)
        better = raised(setup, chance, gain, kind, generator)
        one = compared(setup, chance, better, generator, options.permutations // 2)
        seen += one.p_value < ALPHA and one.found.difference.value > 0
    return seen / comparisons


if __name__ == "__main__":
    sys.exit(main())
