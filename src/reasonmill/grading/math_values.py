"""Whether two expressions have the same value: exactly where they are rational, to many digits where they are not.

Unknowns are replaced by fixed rational numbers: two expressions that agree at all of them are the same, up to a chance
that no answer is long enough to reach. Digits grow with those that the expressions are written with, so that a long
decimal is never taken for the irrational number that it approximates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from mpmath.ctx_mp import MPContext

from reasonmill.grading.math_node import Node
from reasonmill.grading.math_tokens import Unreadable

_MAX_BITS = 40_000
_MAX_FACTORIAL = 1000
_MAX_DIGITS = 4000
_SPARE_DIGITS = 40
# Digits times functions, powers and roots: some tenths of a second.
_MAX_WORK = 20_000
# Unknowns take these kinds of numbers: all positive twice, of both signs, and whole.
_PLACES = ("positive", "more", "mixed")
_WHOLE = "whole"


class NoValue(ValueError):
    """The expression has no value: it divides by zero, or calculates with infinity."""


class TooLarge(Unreadable):
    """The value, or what it takes to compute it, is too large."""


def same_value(left: Node, right: Node) -> bool:
    """Whether two expressions are equal, for all values of their unknowns.

    Raises:
        NoValue: one has none.
        Unreadable: it can't be decided.
    """
    names = sorted(symbols(left) | symbols(right))
    outcomes = [_same_at(left, right, _numbers(names, place)) for place in (_PLACES if names else _PLACES[:1])]
    if all(outcomes):
        return True
    if names and (outcomes[0] and outcomes[1]):
        raise Unreadable("the two are equal for positive unknowns only")
    if names and _same_at_whole_numbers(left, right, names):
        raise Unreadable("the two are equal for whole numbers, and perhaps for no others")
    return False


def constant_ratio(left: Node, right: Node) -> bool:
    """Whether two expressions differ by a constant factor that is not 0, as those of equivalent equations do."""
    names = sorted(symbols(left) | symbols(right))
    if not names:
        return False
    first = _numbers(names, "positive")
    ratio: Any = None
    for place in _PLACES:
        at = _numbers(names, place)
        # left(at) * right(first) = right(at) * left(first)
        one = Node("product", (substituted(left, at), substituted(right, first)))
        two = Node("product", (substituted(right, at), substituted(left, first)))
        ratio = _same_at(one, two, {})
        if not ratio:
            return False
    zero = Node("number", value=Fraction(0))
    return not _same_at(left, zero, first) and not _same_at(right, zero, first)


def symbols(node: Node) -> frozenset[str]:
    """The names of an expression's unknowns; i and e are numbers."""
    if node.kind == "symbol":
        return frozenset() if node.name in ("i", "e") else frozenset({node.name})
    return frozenset().union(*map(symbols, node.parts)) if node.parts else frozenset()


def substituted(node: Node, numbers: Mapping[str, Fraction]) -> Node:
    """The expression with numbers in place of unknowns."""
    if node.kind == "symbol" and node.name in numbers:
        return Node("number", value=numbers[node.name])
    return node._replace(parts=tuple(substituted(part, numbers) for part in node.parts)) if node.parts else node


def exact_value(node: Node, numbers: Mapping[str, Fraction] = {}) -> Fraction | None:  # only read
    """The value where it is rational and found by arithmetic alone; None where it takes more."""
    kind, parts = node.kind, node.parts
    if kind == "number":
        return node.value
    if kind == "symbol":
        return numbers.get(node.name)
    if kind not in ("sum", "product", "ratio", "power", "percent", "unit", "call"):
        return None
    if kind == "call" and node.name not in ("factorial", "binomial", "abs", "floor", "ceil", "root"):
        return None
    values = [exact_value(part, numbers) for part in parts]
    if any(value is None for value in values):
        return None
    return _EXACT[node.name if kind == "call" else kind](*values)


def real_order(node: Node) -> Fraction | Any:
    """A number that can be ordered, for the ends of intervals: a fraction, a float of many digits, or an infinity.

    Raises:
        Unreadable: it is no real number, or has unknowns.
    """
    infinite = infinity_sign(node)
    if infinite:
        return math.inf * infinite
    if symbols(node):
        raise Unreadable("the ends of an interval are not known numbers")
    exact = exact_value(node)
    if exact is not None:
        return exact
    context = _context(_SPARE_DIGITS + _digits_of(node))
    value = context.mpc(_evaluate(node, {}, context))
    if abs(value.imag) > context.mpf(10) ** -_SPARE_DIGITS:
        raise Unreadable("the ends of an interval are no real numbers")
    return value.real


def infinity_sign(node: Node) -> int:
    """1 or -1 for plus or minus infinity, 0 for all else."""
    if node.kind == "constant" and node.name == "infinity":
        return 1
    if node.kind == "product" and len(node.parts) == 2 and node.parts[0].kind == "number":
        return infinity_sign(node.parts[1]) * (1 if node.parts[0].value > 0 else -1)
    return 0


# Exact arithmetic


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise TooLarge("its value is too large")
    return value


def _sum(*values: Fraction) -> Fraction:
    return _bounded(sum(values, Fraction(0)))


def _product(*values: Fraction) -> Fraction:
    product = Fraction(1)
    for value in values:
        product = _bounded(product * value)
    return product


def _ratio(above: Fraction, below: Fraction) -> Fraction:
    if below == 0:
        raise NoValue("it divides by zero")
    return above / below


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _root(base**1, Fraction(exponent.denominator), exponent.numerator) if base > 0 else None
    if base == 0:
        if exponent <= 0:
            raise NoValue("it raises zero to a power that is not positive")
        return base
    if abs(base) == 1:
        return base ** (int(exponent) % 2)
    if abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > _MAX_BITS:
        raise TooLarge("its value is too large")
    return base ** int(exponent)


def _root(base: Fraction, index: Fraction, power: int = 1) -> Fraction | None:
    """An exact root, or None where it is irrational."""
    if index.denominator != 1 or not 1 <= index <= 64 or abs(power) > 64 or (base < 0 and index % 2 == 0):
        return None
    found = []
    for whole in (abs(base.numerator), base.denominator):
        root = _whole_root(whole, int(index))
        if root ** int(index) != whole:
            return None
        found.append(root)
    value = Fraction(found[0], found[1]) * (-1 if base < 0 else 1)
    if value == 0 and power < 0:
        raise NoValue("it divides by zero")
    return _power(value, Fraction(power))


def _whole_root(whole: int, index: int) -> int:
    """The largest integer whose power is no more than a whole number."""
    if whole < 2 or index == 1:
        return whole
    if index == 2:
        return math.isqrt(whole)
    low, high = 1, 1 << (whole.bit_length() // index + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**index <= whole else (low, middle - 1)
    return low


def _factorial(value: Fraction) -> Fraction | None:
    if value.denominator != 1 or value < 0:
        return None
    if value > _MAX_FACTORIAL:
        raise TooLarge("its factorial is too large")
    return Fraction(math.factorial(int(value)))


def _binomial(above: Fraction, below: Fraction) -> Fraction | None:
    if above.denominator != 1 or below.denominator != 1 or above < 0 or below < 0:
        return None
    if above > 10 * _MAX_FACTORIAL or min(below, above - below) > _MAX_FACTORIAL:
        raise TooLarge("its binomial coefficient is too large")
    return Fraction(math.comb(int(above), int(below)))


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "sum": _sum,
    "product": _product,
    "ratio": _ratio,
    "power": _power,
    "percent": lambda value: value / 100,
    "unit": lambda value: value,
    "factorial": _factorial,
    "binomial": _binomial,
    "abs": abs,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "root": _root,
}


# To many digits


def _numbers(names: list[str], place: str) -> dict[str, Fraction]:
    """A number for each unknown, always the same ones."""
    numbers = {}
    for name in names:
        drawn = int.from_bytes(hashlib.blake2b(f"{place} {name}".encode(), digest_size=6).digest(), "big")
        if place == _WHOLE:
            numbers[name] = Fraction(3 + drawn % 9)
            continue
        value = Fraction(drawn % 1_000_003 + 300_007, 499_979)
        numbers[name] = (
            -value if (place == "mixed" and drawn >> 40 & 1) or (place == "mixed" and len(names) == 1) else value
        )
    return numbers


def _same_at_whole_numbers(left: Node, right: Node, names: list[str]) -> bool:
    numbers = _numbers(names, _WHOLE)
    return all(_same_at(left, right, {name: value + step for name, value in numbers.items()}) for step in range(3))


def _same_at(left: Node, right: Node, numbers: Mapping[str, Fraction]) -> bool:
    one, two = exact_value(left, numbers), exact_value(right, numbers)
    if one is not None and two is not None:
        return one == two
    digits = _SPARE_DIGITS + _digits_of(left) + _digits_of(right) + 8 * len(numbers)
    return _same_to(digits, left, right, numbers) and _same_to(2 * digits, left, right, numbers)


def _same_to(digits: int, left: Node, right: Node, numbers: Mapping[str, Fraction]) -> bool:
    """Whether two values agree to about so many digits: relatively, or both are 0."""
    if digits > _MAX_DIGITS or digits * (_roots(left) + _roots(right)) > _MAX_WORK:
        raise TooLarge("it takes too many digits")
    context = _context(digits + 20)
    one, two = _evaluate(left, numbers, context), _evaluate(right, numbers, context)
    scale, least = max(abs(one), abs(two)), context.mpf(10) ** (5 - digits)
    if not context.isfinite(scale):
        raise NoValue("it has no finite value")
    return bool(abs(one - two) <= least * scale or scale <= least)


def _roots(node: Node) -> int:
    """How many parts of an expression take more than arithmetic."""
    return (node.kind in ("call", "power", "degree")) + sum(map(_roots, node.parts))


def _context(digits: int) -> Any:
    """Arithmetic of at least so many digits; contexts are dear, so that there is one for each fifty digits."""
    return _kept_context(-(-digits // 50) * 50)


@cache
def _kept_context(digits: int) -> Any:
    context = MPContext()
    context.dps = digits
    return context


def _digits_of(node: Node) -> int:
    """How many digits the numbers of an expression take, with those that powers make of them."""
    if node.kind == "number":
        return len(str(abs(node.value.numerator))) + len(str(node.value.denominator)) - 1
    found = sum(map(_digits_of, node.parts))
    if node.kind == "power":
        exponent = exact_value(node.parts[1])
        if exponent is not None:
            found *= max(1, math.ceil(min(abs(exponent), Fraction(_MAX_DIGITS))))
    return found


def _evaluate(node: Node, numbers: Mapping[str, Fraction], context: Any) -> Any:
    kind = node.kind
    exact = exact_value(node, numbers) if kind != "unit" else None
    if exact is not None:
        return context.mpf(exact.numerator) / exact.denominator
    if kind == "symbol":
        if node.name == "e":
            return context.e * 1
        return context.mpc(0, 1)  # i; every other unknown has a number
    if kind == "constant":
        if node.name == "pi":
            return context.pi * 1
        raise NoValue(f"it calculates with {node.name}")
    values = [_evaluate(part, numbers, context) for part in node.parts]
    if kind == "sum":
        return sum(values[1:], values[0])
    if kind == "product":
        return math.prod(values[1:], start=values[0])
    if kind == "ratio":
        return _divided(values[0], values[1], context)
    if kind == "power":
        return _raised(values[0], values[1], exact_value(node.parts[1], numbers), context)
    if kind == "degree":
        return values[0] * context.pi / 180
    if kind in ("percent", "unit"):
        return values[0] / (100 if kind == "percent" else 1)
    if kind == "call":
        return _called(node, values, numbers, context)
    raise Unreadable(f"a {kind} is no number")


def _divided(above: Any, below: Any, context: Any) -> Any:
    if abs(below) <= context.mpf(10) ** (30 - context.dps) * (1 + abs(above)):
        raise NoValue("it divides by zero")
    return above / below


def _raised(base: Any, exponent: Any, exact: Fraction | None, context: Any) -> Any:
    if abs(exponent) > 10**9:
        raise TooLarge("its exponent is too large")
    if base == 0:
        raise NoValue("it raises zero to a power")
    if exact is not None and exact.denominator % 2 and exact.denominator > 1 and _is_negative(base, context):
        return (-1) ** exact.numerator * abs(base) ** exponent  # the real root
    if abs(exponent) * (abs(context.log(abs(base))) + 1) > 10**9:
        raise TooLarge("its value is too large")
    return base**exponent


def _is_negative(value: Any, context: Any) -> bool:
    value = context.mpc(value)
    return bool(value.imag == 0 and value.real < 0)


def _called(node: Node, values: list[Any], numbers: Mapping[str, Fraction], context: Any) -> Any:
    name, value = node.name, values[0]
    if name == "root":
        index = exact_value(node.parts[1], numbers)
        if index == 0:
            raise NoValue("a root of index 0")
        if index is not None and index % 2 == 1 and _is_negative(value, context):
            return -(abs(value) ** (1 / values[1]))
        return context.sqrt(value) if index == 2 else value ** (1 / values[1])
    if name in ("log", "lg", "ln"):
        if value == 0:
            raise NoValue("the logarithm of zero")
        if len(values) > 1:
            return _divided(context.log(value), context.log(values[1]), context)
        return context.log(value) / (1 if name == "ln" else context.log(10))
    if name in ("factorial", "binomial", "floor", "ceil") and any(context.mpc(each).imag for each in values):
        raise NoValue(f"the {name} of a complex number")
    if name in ("factorial", "binomial"):
        if any(abs(each) > _MAX_FACTORIAL for each in values):
            raise TooLarge("its factorial is too large")
        return context.factorial(value) if name == "factorial" else context.binomial(*values)
    if name == "exp" and abs(value) > 10**6:
        raise TooLarge("its value is too large")
    if name not in _FUNCTIONS:
        raise Unreadable(f"the function {name} is not computed here")
    try:
        return getattr(context, _FUNCTIONS[name])(value)
    except (ZeroDivisionError, ValueError) as error:
        raise NoValue(f"the {name} has no value") from error


_FUNCTIONS: Mapping[str, str] = {
    **{
        name: name
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "floor", "ceil")
    },
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    "abs": "fabs",
    "cbrt": "cbrt",
    "Re": "re",
    "Im": "im",
}


def with_signs(node: Node) -> Iterator[Node]:
    """An expression for each reading of its plus-or-minus signs, which are all upper or all lower at once."""
    if not _has_sign(node):
        yield node
        return
    for upper in (True, False):
        yield _with_sign(node, upper)


def _has_sign(node: Node) -> bool:
    return node.kind == "sign" or any(map(_has_sign, node.parts))


def _with_sign(node: Node, upper: bool) -> Node:
    parts = tuple(_with_sign(part, upper) for part in node.parts)
    if node.kind != "sign":
        return node._replace(parts=parts)
    if (node.name == "+-") == upper:
        return parts[0]
    return Node("product", (Node("number", value=Fraction(-1)), parts[0]))
