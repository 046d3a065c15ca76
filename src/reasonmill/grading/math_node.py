"""The tree that mathematics is read into."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple


class Node(NamedTuple):
    """A part of an expression.

    Kinds: number (value), symbol and constant (name), sum and product, ratio (name: ":" if written so), proportion
    (three numbers or more with ":" between them), power, call (name), sign (name "+-" or "-+": before its part),
    percent, degree, unit (name), list (name: ",", "or", "and"), group (name: its brackets), matrix (parts: rows, which
    are lists), relation (name: its signs, with a space between them), regions (name: "cup", "cap", "setminus").
    """

    kind: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


def number(value: int | Fraction) -> Node:
    """A number as a tree."""
    return Node("number", value=Fraction(value))


def negated(node: Node) -> Node:
    """Minus an expression; of a number, the negative number."""
    if node.kind == "number":
        return Node("number", value=-node.value)
    if node.kind in ("unit", "percent", "degree"):  # the sign belongs to the number
        return node._replace(parts=(negated(node.parts[0]),))
    return Node("product", (number(-1), node))


def multiplied(left: Node, right: Node) -> Node:
    """The product of two expressions; a product that goes on stays flat."""
    return Node("product", (*left.parts, right) if left.kind == "product" else (left, right))


def ratio_of(node: Node, other: Node, sign: str) -> Node:
    """A ratio; with a colon as its sign it may go on, as the proportion of three numbers or more."""
    if sign != ":":
        return Node("ratio", (node, other))
    if node.kind == "proportion" or (node.kind == "ratio" and node.name):
        return Node("proportion", (*node.parts, other))
    return Node("ratio", (node, other), ":")
