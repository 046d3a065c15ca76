"""Worked solutions of reasoning-gym's families that calculate with whole numbers.

Models of this size read and write numbers digit by digit, so every step calculates with two numbers and says what
comes out.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonmill.worked.solution import Solution

_LEGS: Mapping[str, int] = tomllib.loads(Path(__file__).with_name("legs.toml").read_text(encoding="utf-8"))
_SIGNED = re.compile(r"([+-]?) ?(\d+)")
_TERM = re.compile(r"([+-]?) ?(?:(\d+)\*)?([a-z]|\d+)")


def chain_sum(item: Mapping[str, Any], rng: random.Random) -> Solution:
    """From left to right, each sum on a line of its own."""
    (_, first), *rest = _SIGNED.findall(item["expression"])
    total = int(first)
    steps = [rng.choice(("I go from left to right.", "One step at a time, from the left.", "I start on the left."))]
    for sign, number in rest:
        after = total + int(sign + number)
        steps.append(f"{total} {sign} {number} = {after}")
        total = after
    return Solution(steps, str(total))


def products(item: Mapping[str, Any], rng: random.Random) -> Solution:
    """One factor times each digit of the other one, with its zeros, and the sum of these."""
    factors = [int(number) for number in item["expression"].split(" * ")]
    total, *others = factors
    steps = [rng.choice(("I multiply by one digit at a time.", "I take one digit of the second number at a time."))]
    for factor in others:
        total = _multiplied(total, factor, steps)
    return Solution(steps, str(total))


def _multiplied(left: int, right: int, steps: list[str]) -> int:
    digits = str(right)
    places = [int(digit) * 10**power for digit, power in zip(digits, range(len(digits) - 1, -1, -1), strict=True)]
    parts = [(place, left * place) for place in places if place]
    steps += [f"{left} * {place} = {part}" for place, part in parts]
    total = parts[0][1] if parts else 0
    for _, part in parts[1:]:
        steps.append(f"{total} + {part} = {total + part}")
        total += part
    return total


def gcd(item: Mapping[str, Any], rng: random.Random) -> Solution:
    """By Euclid: the larger number is so many times the smaller one, and a rest, until nothing is left."""
    found, *others = item["numbers"]
    steps = [rng.choice(("I divide with a rest until nothing is left.", "By Euclid, the rest divides on."))]
    for number in others:
        larger, smaller = max(found, number), min(found, number)
        while smaller:
            times, rest = divmod(larger, smaller)
            steps.append(f"{larger} = {times} * {smaller} + {rest}")
            larger, smaller = smaller, rest
        found = larger
    steps.append(rng.choice((f"The last divisor is {found}.", f"So the greatest common divisor is {found}.")))
    return Solution(steps, str(found))


def leg_counting(item: Mapping[str, Any], rng: random.Random) -> Solution:
    """The legs of each kind of animal, and the sum so far."""
    total = 0
    steps = [rng.choice(("I add up the legs of each kind.", "I take one kind of animal after the other."))]
    for animal, count in item["animals"].items():
        legs = count * _LEGS[animal]
        steps.append(f"{animal}: {count} * {_LEGS[animal]} = {legs}, {total} + {legs} = {total + legs}")
        total += legs
    return Solution(steps, str(total))


def simple_equations(item: Mapping[str, Any], rng: random.Random) -> Solution | None:
    """What stands alone goes to the other side, and then the factor does.

    None for "0 = 0": in one item of 300 the terms with the unknown cancel each other out.
    """
    left, _, right = item["equation"].partition(" = ")
    unknown = item["variable"]
    factor, alone, result = 0, 0, int(right)
    for sign, times, what in _TERM.findall(left):
        if what == unknown:
            factor += int(sign + (times or "1"))
        else:
            alone += int(sign + what) * int(times or 1)
    if not factor:
        return None
    steps = [rng.choice((f"I bring {unknown} to stand alone.", f"All but {unknown} goes to the right."))]
    rest = result - alone
    if alone:
        steps.append(f"{factor}*{unknown} = {result} {'-' if alone > 0 else '+'} {abs(alone)} = {rest}")
    steps.append(f"{unknown} = {rest} / {factor} = {rest // factor}")
    return Solution(steps, str(rest // factor))
