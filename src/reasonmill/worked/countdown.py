"""Worked solutions of Countdown: what is tried, what it makes, and the try that makes the target."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasonmill.worked.solution import Solution


@dataclass(frozen=True, slots=True)
class _Made:
    """A whole number, the expression that makes it, and whether that needs parentheses as a part of a product."""

    value: int
    text: str
    is_sum: bool = False

    @property
    def factor(self) -> str:
        return f"({self.text})" if self.is_sum else self.text


_Way = Callable[[_Made, _Made], "_Made | None"]


def _sum(left: _Made, right: _Made) -> _Made | None:
    return _Made(left.value + right.value, f"{left.text} + {right.text}", True)


def _difference(left: _Made, right: _Made) -> _Made | None:
    if left.value <= right.value:
        return None
    return _Made(left.value - right.value, f"{left.text} - {f'({right.text})' if right.is_sum else right.text}", True)


def _product(left: _Made, right: _Made) -> _Made | None:
    return _Made(left.value * right.value, f"{left.factor}*{right.factor}")


def _quotient(left: _Made, right: _Made) -> _Made | None:
    if not right.value or left.value % right.value:
        return None
    # A product on the right stands in parentheses: 12/2*3 is not 12/(2*3).
    divisor = right.text if right.text.isdigit() else f"({right.text})"
    return _Made(left.value // right.value, f"{left.factor}/{divisor}")


# Three numbers from 1 to 100 that make a target of three digits mostly hold a product: first a product and what is
# added to it, then a sum times a number, then the rest.
_WAYS: Sequence[tuple[_Way, _Way]] = (
    *((_product, _sum), (_product, _difference), (_sum, _product), (_difference, _product), (_product, _product)),
    *((_sum, _sum), (_sum, _difference), (_difference, _sum), (_difference, _difference), (_product, _quotient)),
    *((_quotient, _product), (_quotient, _sum), (_quotient, _difference), (_sum, _quotient), (_difference, _quotient)),
    (_quotient, _quotient),
)
# Of the tries that fail, so many at most are shown before the one that does not.
_MOST_SHOWN = 8


def countdown(item: Mapping[str, Any], rng: random.Random) -> Solution | None:
    """Up to eight tries that failed, the nearest to the one that makes the target last, and that one.

    None where there are not three numbers, or where only fractions lead to the target.
    """
    numbers, target = item["numbers"], item["target"]
    tries = list(_tries(numbers, target)) if len(numbers) == 3 else []
    if not tries or tries[-1][1].value != target:
        return None
    *failed, (first, found) = tries
    steps = [rng.choice((f"I try what makes {target}.", f"The target is {target}.", f"I look for {target}."))]
    for tried, made in failed[-_MOST_SHOWN:]:
        steps.append(f"{tried.text} = {tried.value}, {_last_step(tried, made)} = {made.value}, no")
    steps.append(f"{first.text} = {first.value}, {_last_step(first, found)} = {found.value}, yes")
    return Solution(steps, found.text)


def _last_step(first: _Made, made: _Made) -> str:
    """The second step, with the value of the first one in its place."""
    return made.text.replace(first.factor if first.factor in made.text else first.text, str(first.value), 1)


def _tries(numbers: Sequence[int], target: int) -> Iterator[tuple[_Made, _Made]]:
    """The first step of each try and what it makes with the third number, up to the first that makes the target."""
    plain = [_Made(number, str(number)) for number in sorted(numbers, reverse=True)]
    for inner, outer in _WAYS:
        for left, right, third in itertools.permutations(plain):
            first = inner(left, right)
            if first is None or (inner in (_sum, _product) and (left.value, left.text) < (right.value, right.text)):
                continue
            for operands in ((first, third), (third, first)):
                made = outer(*operands)
                if made is None or (outer in (_sum, _product) and operands[0] is third):
                    continue
                if made.value == target or _is_near(made.value, target):
                    yield first, made
                if made.value == target:
                    return


def _is_near(value: int, target: int) -> bool:
    """Whether a try is worth showing: a model learns to look at what comes close."""
    return target / 2 <= value <= 2 * target
