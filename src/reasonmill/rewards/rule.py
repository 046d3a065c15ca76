"""What a rule reward is. Those that there are stand in `rules`, and `registry` finds them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from reasonmill.protocols import Domain
from reasonmill.randomness import Part
from reasonmill.types import Completion, Problem

ALL_DOMAINS: frozenset[Domain] = frozenset(get_args(Domain))


@dataclass(frozen=True, slots=True)
class Rule:
    """A reward that a rule decides.

    Attributes:
        name: what a recipe gives a weight to.
        measure: takes (problem, completion, noise), and gives a number, or None if it can't tell.
        domains: those on whose problems it is a reward.
    """

    name: str
    measure: Callable[[Problem, Completion, tuple[Part, ...]], float | None]
    domains: frozenset[Domain] = ALL_DOMAINS
