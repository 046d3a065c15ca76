"""A sequential test of how many rollouts a reward claims to be right that a second verifier does not confirm.

It bets, step by step, that the share of such rollouts is above what an honest run may have (test martingales:
Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"), anew from each step on, so
that an honest beginning does not weigh against what comes later (Shiryaev and Roberts; "E-detectors", Shin, Ramdas and
Rinaldo 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Stakes, as shares of the largest that can't be lost whole. Small ones are best where the share is little above what is
# allowed or the attempts at a problem agree, large ones where it is far above and they are independent.
STAKES = (0.08, 0.25, 0.6)
# Steps for which the chance of a false alarm is stated.
STATED_STEPS = 1000


@dataclass(frozen=True)
class Suspicion:
    """What speaks, after some steps, for a share above the allowed one: the log of each stake's winnings.

    The winnings' mean over honest runs is at most the number of steps, whatever the run is like otherwise.
    """

    logs: tuple[float, ...] = (-math.inf,) * len(STAKES)

    def after(self, shares: Sequence[float], allowed: float) -> Suspicion:
        """After one more step.

        Args:
            shares: of each problem that was looked at, how much of its attempts was claimed and not confirmed, from 0
                to 1. The problems are independent of each other; their attempts need not be.
            allowed: the largest expectation of them in an honest run, above 0 and below 1.

        Raises:
            ValueError: a share is none.
        """
        if any(not 0 <= share <= 1 for share in shares):
            raise ValueError(f"a share lies in [0, 1], got {min(shares)} to {max(shares)}")
        found = []
        for stake, before in zip(STAKES, self.logs, strict=True):
            won = math.fsum(math.log1p(stake / allowed * (share - allowed)) for share in shares)
            found.append(_log_sum(before, 0.0) + won)  # a new bet begins with each step, with 1
        return Suspicion(tuple(found))

    def evidence(self, false_alarms: float, tests: int = 1) -> float:
        """The mean of the winnings as a share of those at which there is an alarm; from 1 on there is one.

        Args:
            false_alarms: the chance that at least one of the tests raises an alarm in the first `STATED_STEPS` steps of
                an honest run is at most this; in a run of another length at most in proportion.
            tests: how many there are.
        """
        log_mean = _log_sum(*self.logs) - math.log(len(STAKES))
        limit = math.log(STATED_STEPS * tests / false_alarms)
        return math.exp(min(log_mean - limit, 700.0))  # beyond, no float would hold it


def at_least(share: float, number: float) -> float:
    """What a share that was seen in so many observations is at least, below 0 where that is not known: the lower end of
    the interval of Agresti and Coull 1998 with two standard errors."""
    middle = (share * number + 2) / (number + 4)
    return middle - 2 * math.sqrt(middle * (1 - middle) / (number + 4))


def _log_sum(*logs: float) -> float:
    """log(sum(exp(...))), also of -inf."""
    largest = max(logs)
    return largest if math.isinf(largest) else largest + math.log(math.fsum(math.exp(log - largest) for log in logs))
