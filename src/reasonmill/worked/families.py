"""The families that there are worked solutions for: a solver is called as reasoning-gym calls its family."""

from __future__ import annotations

from collections.abc import Mapping

from reasonmill.worked.arithmetic import chain_sum, gcd, leg_counting, products, simple_equations
from reasonmill.worked.countdown import countdown
from reasonmill.worked.solution import Solver
from reasonmill.worked.words import letter_counting, spell_backward

_ALL: tuple[Solver, ...] = (
    *(chain_sum, countdown, gcd, leg_counting, letter_counting, products, simple_equations, spell_backward),
)
SOLVERS: Mapping[str, Solver] = {solver.__name__: solver for solver in _ALL}
