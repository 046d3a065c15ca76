"""Units behind numbers: which are the same, which can be converted, and which are only words."""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import NamedTuple

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
_EMPTY = {"unit", "units", "of", "the", "total", "in", "radian", "radians", "rad", "exactly"}
_SHORT = {"mph": "mile/hour", "kph": "kilometer/hour", "kmph": "kilometer/hour", "sq": "square", "cu": "cubic"}
_PART = re.compile(r"([^\s^*/]+)(?:\s*\^\s*\{?(-?\d)\}?)?|([/*])")
# "j" is written for the imaginary unit.
LETTERS = ({name for name in _UNITS if len(name) == 1} | {"L", "N", "J", "W"}) - {"j"}


class Unit(NamedTuple):
    """What a quantity is measured in.

    Attributes:
        dimension: kinds with their powers, sorted; words that are no known unit are kinds of their own.
        factor: how many of the first unit of each kind one is.
        words: whether some of it is words only.
    """

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction
    words: bool


NO_UNIT = Unit((), Fraction(1), False)


@cache
def read_unit(text: str) -> Unit:
    """The unit that words name, such as "cm^2", "square inches", "miles per hour", "apples"."""
    text = re.sub(r"[().,]", " ", text.lower())
    text = " ".join(_SHORT.get(word, word) for word in text.replace(" per ", " / ").split())
    text = text.removeprefix("per ").removeprefix("/ ")
    powers: dict[str, int] = {}
    factor, size, sign, pending, words = Fraction(1), Fraction(1), 1, 1, False
    last = ""
    for name, power, operator in _PART.findall(text):
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
        if name in _EMPTY:
            continue
        kind, size = _known(name)
        words |= kind not in _KINDS
        exponent = sign * pending * int(power or 1)
        pending = 1
        powers[kind] = powers.get(kind, 0) + exponent
        factor *= size**exponent
        last = kind
    dimension = tuple(sorted((kind, power) for kind, power in powers.items() if power and kind))
    if not dimension and any(powers):  # "hours per week": what cancels is no plain number
        return Unit(((text, 1),), Fraction(1), True)
    return Unit(dimension, factor, words)


def _known(name: str) -> tuple[str, Fraction]:
    for spelled in (name, name.removesuffix("s"), name.removesuffix("es")):
        if spelled in _UNITS:
            return _UNITS[spelled]
    return name.removesuffix("s") or name, Fraction(1)
