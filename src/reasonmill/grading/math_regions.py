"""Sets of real numbers: intervals, their unions, and inequalities; equal if they have the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from reasonmill.grading.math_node import Node
from reasonmill.grading.math_tokens import Unreadable
from reasonmill.grading.math_values import infinity_sign, real_order

Real = Fraction | float  # a float is an infinity


@dataclass(frozen=True)
class Region:
    """A set of real numbers that changes at finitely many places only.

    Attributes:
        places: where membership may change.
        contains: whether a number is in it.
    """

    places: tuple[Fraction, ...]
    contains: Callable[[Fraction], bool]

    def same(self, other: Region) -> bool:
        """Whether both have the same numbers: at each place where one changes, between them, and outside."""
        places = sorted({*self.places, *other.places})
        between = [(low + high) / 2 for low, high in pairwise(places)]
        outside = [places[0] - 1, places[-1] + 1] if places else [Fraction(0)]
        return all(self.contains(number) == other.contains(number) for number in (*places, *between, *outside))


def is_region(node: Node) -> bool:
    """Whether a node can only be a set of real numbers: a pair in round brackets could also be a point."""
    if node.kind == "regions" or (node.kind == "constant" and node.name in ("reals", "emptyset")):
        return True
    if node.kind == "relation":
        return any(sign in ("<", ">", "<=", ">=", "!=") for sign in node.name.split()) or (
            node.name == "in" and is_region_or_interval(node.parts[1])
        )
    if node.kind == "list":
        return any(map(is_region, node.parts)) and all(is_region(part) or _is_value(part) for part in node.parts)
    if node.kind != "group":
        return False
    if node.name in ("(]", "[)"):
        return True
    return node.name in ("()", "[]") and len(node.parts) == 2 and any(map(infinity_sign, node.parts))


def _is_value(node: Node) -> bool:
    """x = 2."""
    return node.kind == "relation" and node.name == "=" and len(node.parts) == 2 and _is_unknown(node.parts[0])


def is_region_or_interval(node: Node) -> bool:
    """Whether a node is a set of real numbers where it is known to be one."""
    if node.kind == "list":
        return all(map(is_region_or_interval, node.parts))
    return is_region(node) or (node.kind == "group" and len(node.parts) == 2) or node.name == r"\{\}"


def region(node: Node) -> Region:
    """The set of real numbers that a node is.

    Raises:
        Unreadable: it is none, or one whose ends are not known.
    """
    if node.kind == "regions":
        left, right = map(region, node.parts)
        return _joined(left, right, node.name)
    if node.kind == "constant" and node.name in ("reals", "emptyset"):
        everything = node.name == "reals"
        return Region((), lambda number: everything)
    if node.kind == "relation":
        return region(node.parts[1]) if node.name == "in" else _inequality(node)
    if node.kind == "list":
        parts = [region(part) for part in node.parts]
        whole = parts[0]
        for part in parts[1:]:
            whole = _joined(whole, part, "cap" if node.name == "and" else "cup")
        return whole
    if node.kind == "group" and node.name == r"\{\}":
        members = tuple(_finite(part) for part in node.parts)
        return Region(members, lambda number: number in members)
    if node.kind == "group" and len(node.parts) == 2:
        low, high = (_end(part) for part in node.parts)
        return _interval(low, high, node.name[0] == "[", node.name[1] == "]")
    raise Unreadable("it is no set of real numbers")


def _joined(left: Region, right: Region, how: str) -> Region:
    def contains(number: Fraction) -> bool:
        if how == "cup":
            return left.contains(number) or right.contains(number)
        return left.contains(number) and right.contains(number) == (how == "cap")

    return Region((*left.places, *right.places), contains)


def _end(node: Node) -> Real:
    """The end of an interval, in a form that two spellings of one number share: rounded to 35 digits if irrational."""
    value = real_order(node)
    if isinstance(value, (Fraction, float)):
        return value
    scaled = value * 10**35
    return Fraction(int(scaled.context.nint(scaled)), 10**35)


def _finite(node: Node) -> Fraction:
    value = _end(node)
    if isinstance(value, float):
        raise Unreadable("infinity is no member of a set of numbers")
    return value


def _interval(low: Real, high: Real, with_low: bool, with_high: bool) -> Region:
    def contains(number: Fraction) -> bool:
        return (low < number or (with_low and low == number)) and (number < high or (with_high and number == high))

    return Region(tuple(end for end in (low, high) if isinstance(end, Fraction)), contains)


def _inequality(node: Node) -> Region:
    """x < 2, 1 <= x < 3 and the like: one unknown alone between numbers."""
    signs, sides = node.name.split(), node.parts
    if len(sides) == 2 and sides[0].kind == "call" and sides[0].name == "abs":
        return _within(sides[0].parts[0], signs[0], _end(sides[1]))
    unknown = [place for place, side in enumerate(sides) if _is_unknown(side)]
    if len(unknown) != 1 or len(sides) > 3 or (len(sides) == 3 and unknown != [1]):
        raise Unreadable("an inequality that is not solved")
    whole = Region((), lambda number: True)
    for place, sign in enumerate(signs):
        number = _end(sides[place + 1] if unknown[0] == place else sides[place])
        if unknown[0] != place:  # 2 < x is x > 2
            sign = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(sign, sign)
        whole = _joined(whole, _half(number, sign), "cap")
    return whole


def _within(inside: Node, sign: str, end: Real) -> Region:
    """|x| < 2, |x + 1| >= 2 and the like."""
    unknown, shift = inside, Fraction(0)
    if inside.kind == "sum" and len(inside.parts) == 2:
        unknown, moved = inside.parts
        shift = _finite(moved)
    if not _is_unknown(unknown) or isinstance(end, float) or end < 0 or sign not in ("<", "<=", ">", ">="):
        raise Unreadable("an inequality that is not solved")
    inner = _interval(-end - shift, end - shift, sign in ("<=", ">"), sign in ("<=", ">"))
    everything = Region((), lambda number: True)
    return inner if sign[0] == "<" else _joined(everything, inner, "setminus")


def _is_unknown(node: Node) -> bool:
    """x or f(x)."""
    if node.kind == "product" and len(node.parts) == 2:
        return all(part.kind == "symbol" for part in node.parts)
    return node.kind == "symbol" and node.name not in ("i", "e")


def _half(end: Real, sign: str) -> Region:
    if sign in ("<", "<="):
        return _interval(-math.inf, end, False, sign == "<=")
    if sign in (">", ">="):
        return _interval(end, math.inf, sign == ">=", False)
    if sign in ("=", "!=") and isinstance(end, Fraction):
        return Region((end,), lambda number: (number == end) == (sign == "="))
    raise Unreadable("an inequality that is not solved")
