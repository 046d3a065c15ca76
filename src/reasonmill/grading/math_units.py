"""Units behind numbers: which are the same, which can be converted, and which are only words."""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import NamedTuple

from reasonmill.grading.math_node import Node, multiplied, number

_TABLE: dict[str, dict[str, int | str]] = tomllib.loads(
    (Path(__file__).parent / "units.toml").read_text(encoding="utf-8")
)
# A factor of 0 in the table: the unit has several sizes (a ton), so that it equals itself only.
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: ("" if kind == "number" else kind if Fraction(factor) else name, Fraction(factor) or Fraction(1))
    for kind, names in _TABLE.items()
    for name, factor in names.items()
}
_KINDS = {kind for kind, _ in _UNITS.values()}
# Words that need no mark to be a unit: all of more than one letter, and their plurals.
KNOWN_WORDS = {
    spelled for name in _UNITS if len(name) > 1 for spelled in (name, f"{name}s", f"{name}es") if spelled != "mins"
} | {"mph", "kph", "sq", "cu", "square", "cubic", "unit", "units", "degrees", "radians", "rad", "percent", "per", "rs"}
KNOWN_WORDS |= {"kb", "mb", "gb", "tb", "kwh", "bc", "ad"}
# Words that stand before the number.
PREFIXES = {"dollars", "euros", "pounds", "rs", "usd"}
# Two letters that are a word behind a number and a space: "3/4 of the cake".
SHORT_WORDS = {
    "of",
    "in",
    "on",
    "at",
    "is",
    "to",
    "by",
    "an",
    "as",
    "we",
    "it",
    "he",
    "my",
    "so",
    "do",
    "us",
    "up",
    "if",
    "be",
}
# Words that say nothing about the quantity.
_EMPTY = {"unit", "units", "of", "the", "a", "an", "total", "in", "radian", "radians", "rad", "exactly"}
_SHORT = {"mph": "mile/hour", "kph": "kilometer/hour", "kmph": "kilometer/hour", "sq": "square", "cu": "cubic"}
_PART = re.compile(r"([^\s^*/]+)(?:\s*\^\s*\{?(-?\d)\}?)?|([/*])")
# "j" is written for the imaginary unit.
LETTERS = ({name for name in _UNITS if len(name) == 1} | {"L", "N", "J", "W", "C", "F"}) - {"j", "c", "f"}
_TEMPERATURE = re.compile(r"\bdegrees? (c|f|celsius|fahrenheit)\b")


class Unit(NamedTuple):
    """What a quantity is measured in.

    Attributes:
        dimension: kinds with their powers, sorted; words that are no known unit are kinds of their own.
        factor: how many of the first unit of each kind one is.
        words: whether some of it is words only.
        counted: what number words in it count, a million in "million dollars".
    """

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction
    words: bool
    counted: Fraction = Fraction(1)


NO_UNIT = Unit((), Fraction(1), False)


@cache
def read_unit(text: str) -> Unit:
    """The unit that words name, such as "cm^2", "square inches", "miles per hour", "apples"."""
    text = _TEMPERATURE.sub(r"\1", re.sub(r"[().,]", " ", text.lower()))
    text = " ".join(_SHORT.get(word, word) for word in text.replace(" per ", " / ").split())
    text = text.removeprefix("per ").removeprefix("/ ")
    powers: dict[str, int] = {}
    factor, size, count, sign, pending, words = Fraction(1), Fraction(1), Fraction(1), 1, 1, False
    last = ""
    for match in _PART.finditer(text):
        name, power, operator = match.groups()
        if operator:
            sign = -1 if operator == "/" else sign
            continue
        if name in ("square", "cubic"):
            pending = 2 if name == "square" else 3
            continue
        if name in ("squared", "cubed") and last:
            exponent = 1 if name == "squared" else 2
            powers[last] = powers.get(last, 0) + exponent * sign
            factor *= size ** (exponent * sign)
            continue
        if name in ("unit", "units") and (pending > 1 or power):
            powers["unit"] = powers.get("unit", 0) + sign * pending * int(power or 1)
            pending = 1
            continue
        # "in total", and "5 in": inches where nothing follows.
        if name in _EMPTY and not (name == "in" and match.end() == len(text)):
            continue
        kind, size = _known(name)
        words |= kind not in _KINDS
        exponent = sign * pending * int(power or 1)
        pending = 1
        if kind == "volume":  # a litre is a thousandth of a cubic metre
            kind, exponent, factor = "length", 3 * exponent, factor * (size / 1000) ** exponent
        elif not kind:
            count *= size**exponent
        else:
            factor *= size**exponent
        powers[kind] = powers.get(kind, 0) + exponent
        last = kind
    dimension = tuple(sorted((kind, power) for kind, power in powers.items() if power and kind))
    if not dimension and any(powers):  # "hours per week": what cancels is no plain number
        return Unit(((text, 1),), Fraction(1), True)
    return Unit(dimension, factor, words, count)


def _known(name: str) -> tuple[str, Fraction]:
    for spelled in (name, name.removesuffix("s"), name.removesuffix("es")):
        if spelled in _UNITS:
            return _UNITS[spelled]
    return name.removesuffix("s") or name, Fraction(1)


def together(larger: Node, smaller: Node) -> Node | None:
    """ "2 hours" and "30 minutes" as one quantity in the larger unit; None where the two are no parts of one."""
    if larger.kind != "unit" or smaller.kind != "unit":
        return None
    unit, part = read_unit(larger.name), read_unit(smaller.name)
    if unit.words or not unit.dimension or unit.dimension != part.dimension or part.factor >= unit.factor:
        return None
    whole, share = larger.parts[0], part.factor / unit.factor
    if whole.kind == smaller.parts[0].kind == "number":
        return larger._replace(parts=(number(whole.value + share * smaller.parts[0].value),))
    return larger._replace(parts=(Node("sum", (whole, multiplied(number(share), smaller.parts[0]))),))
