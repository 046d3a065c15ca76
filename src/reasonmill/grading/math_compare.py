"""Whether an answer is the reference: quantities, lists, sets, tuples, matrices, equations, sets of real numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from reasonmill.grading.math_labels import (
    apart_from_conditions,
    items_of,
    label_of,
    solutions,
    unknowns_of,
    unlabelled,
    value_sides,
    with_argument_of,
)
from reasonmill.grading.math_node import Node, multiplied, number
from reasonmill.grading.math_regions import is_region, is_region_or_interval, region
from reasonmill.grading.math_tokens import Unreadable
from reasonmill.grading.math_units import LETTERS, NO_UNIT, Unit, read_unit
from reasonmill.grading.math_values import (
    NoValue,
    constant_ratio,
    exact_value,
    infinity_sign,
    same_value,
    symbols,
    with_signs,
)

_MAX_ITEMS = 40
_ROUNDED = Fraction(1, 50)
_HUNDRED, _HALF_TURN = number(100), number(180)
_ZERO = number(0)
_PI = Node("constant", name="pi")


def same(gold: Node, answer: Node, equal: Callable[[Node, Node], bool] = same_value) -> bool:
    """Whether an answer is the reference.

    Args:
        equal: whether two expressions without units are equal.

    Raises:
        NoValue: one of the two has no value.
        Unreadable: it can't be decided.
    """
    return _Comparison(equal).same(gold, answer)


class _Comparison:
    def __init__(self, equal: Callable[[Node, Node], bool]) -> None:
        self._equal = equal

    def same(self, gold: Node, answer: Node) -> bool:
        if gold.kind == "list" or answer.kind == "list":
            (gold, wanted), (answer, given) = apart_from_conditions(gold), apart_from_conditions(answer)
            if wanted and given and not self._same_regions(_all_of(wanted), _all_of(given)):
                return False
            if bool(wanted) != bool(given) and self.same(gold, answer):
                raise Unreadable("only one of the two says for which values it holds")
        gold, answer = _spread(gold), _spread(answer)
        if gold.kind == "group" and answer.kind == "product":
            answer = unlabelled(answer)
        if is_region(gold) or is_region(answer):
            return self._same_regions(gold, answer)
        if _is_equation(gold) or _is_equation(answer):
            return self._same_equations(gold, answer)
        if gold.kind == "relation" or answer.kind == "relation":
            return self._same_relations(gold, answer)
        if gold.kind in ("list", "group") or answer.kind in ("list", "group"):
            return self._same_lists(gold, answer)
        if gold.kind == "matrix" or answer.kind == "matrix":
            return gold.kind == answer.kind and self._same_matrices(gold, answer)
        if gold.kind == "proportion" or answer.kind == "proportion":
            return gold.kind == answer.kind and self._same_proportions(gold.parts, answer.parts)
        return self._same_quantities(gold, answer)

    # Sets of real numbers

    def _same_regions(self, gold: Node, answer: Node) -> bool:
        gold, answer = _right_of_in(gold), _right_of_in(answer)
        if not (is_region(gold) or is_region_or_interval(gold)):
            return False  # the reference is a number, or the like
        if not (is_region(answer) or is_region_or_interval(answer)):
            return False
        return region(gold).same(region(answer))

    # Equations and labels

    def _same_relations(self, gold: Node, answer: Node) -> bool:
        answer = with_argument_of(gold, answer)
        (gold_label, gold_sides), (label, sides) = value_sides(gold), value_sides(answer)
        if gold_label and label and gold_label != label and ("(" in gold_label) == ("(" in label):
            return self._same_equations(gold, answer)
        if len(sides) == 1:
            return self.same(gold_sides[-1], sides[0])
        # A chain: what is known of it must hold, and rounded sides may stand beside the exact one.
        rounded = "~" in answer.name
        for one, two in pairwise(sides):
            if _is_plain_number(one) and _is_plain_number(two) and not self._agree(one, two, rounded):
                return False
        wanted = gold_sides[-1]
        if rounded:
            return any(self._maybe(wanted, side) for side in sides)
        return self.same(wanted, sides[-1])

    def _agree(self, one: Node, two: Node, rounded: bool) -> bool:
        if self._same_quantities(one, two):
            return True
        left, right = exact_value(one), exact_value(two)
        if not rounded:
            return False
        return left is None or right is None or abs(left - right) <= _ROUNDED * max(abs(left), abs(right))

    def _maybe(self, gold: Node, answer: Node) -> bool:
        try:
            return self.same(gold, answer)
        except Unreadable:
            return False

    def _same_equations(self, gold: Node, answer: Node) -> bool:
        if gold.kind != "relation" or answer.kind != "relation":
            other = answer if gold.kind == "relation" else gold
            if other.kind in ("list", "group", "matrix") or not symbols(other):
                return False
            raise Unreadable("one of the two is an equation, and the other is none")
        if len(gold.parts) != 2 or len(answer.parts) != 2 or gold.name != "=" or answer.name != "=":
            raise Unreadable("a chain of equations")
        return constant_ratio(_difference(gold), _difference(answer))

    # Lists, sets, tuples, matrices

    def _same_lists(self, gold: Node, answer: Node) -> bool:
        if answer.kind == "matrix" or gold.kind == "matrix":
            return self._matrix_and_tuple(gold, answer)
        gold, answer = solutions(gold), solutions(answer)
        if gold.kind not in ("list", "group"):
            wanted = gold
            if answer.kind == "group" and answer.name != r"\{\}":
                return False
            return bool(answer.parts) and all(self.same(wanted, unlabelled(item)) for item in answer.parts)
        if answer.kind not in ("list", "group"):
            if gold.kind == "group" and gold.name != r"\{\}":
                return False
            answer = Node("list", (answer,), ",")
        if len(gold.parts) > _MAX_ITEMS or len(answer.parts) > _MAX_ITEMS:
            raise Unreadable(f"a list of more than {_MAX_ITEMS} items")
        gold_items, items = items_of(gold, answer), items_of(answer, gold)
        unknowns = unknowns_of(gold)
        if unknowns and unknowns_of(answer) == unknowns:
            return all(map(self.same, gold_items, items))
        ordered = _is_ordered(gold) or _is_ordered(answer)
        if gold.kind == answer.kind == "group" and gold.name != answer.name:
            return self._other_brackets(gold, answer, gold_items, items)
        if ordered:
            in_order = len(gold_items) == len(items) and all(map(self.same, gold_items, items))
            if not in_order and gold.kind == "list" and not unknowns and self._same_members(gold_items, items):
                raise Unreadable("the same items in another order, and as a tuple")
            return in_order
        return self._same_members(gold_items, items)

    def _other_brackets(self, gold: Node, answer: Node, gold_items: Sequence[Node], items: Sequence[Node]) -> bool:
        """Tuples are told from intervals by their ends; a set and a tuple of the same items are nobody's to judge."""
        in_order = len(gold_items) == len(items) and all(map(self.same, gold_items, items))
        if r"\{\}" in (gold.name, answer.name):
            if self._same_members(gold_items, items):
                raise Unreadable("one of the two is a set, and the other is a tuple")
            return False
        ends = [exact_value(item) for item in gold_items]
        if in_order and len(ends) == 2 and (ends[0] is None or ends[1] is None or ends[0] < ends[1]):
            return False  # (1, 2) and [1, 2]
        return in_order

    def _same_members(self, left: Sequence[Node], right: Sequence[Node]) -> bool:
        """Whether each item of one is among those of the other, as in sets."""
        return all(self._among(item, right) for item in left) and all(
            self._among(item, left, swapped=True) for item in right
        )

    def _among(self, item: Node, others: Sequence[Node], swapped: bool = False) -> bool:
        undecided: Unreadable | None = None
        for other in others:
            try:
                if self.same(other, item) if swapped else self.same(item, other):
                    return True
            except Unreadable as error:
                undecided = error
        if undecided is not None:
            raise undecided
        return False

    def _same_matrices(self, gold: Node, answer: Node) -> bool:
        if [len(row.parts) for row in gold.parts] != [len(row.parts) for row in answer.parts]:
            return False
        return all(
            self.same(one, two)
            for rows in zip(gold.parts, answer.parts, strict=True)
            for one, two in zip(rows[0].parts, rows[1].parts, strict=True)
        )

    def _matrix_and_tuple(self, gold: Node, answer: Node) -> bool:
        """A column is the tuple of its entries; rows in brackets within brackets are a matrix."""
        matrix, other = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        if all(len(row.parts) == 1 for row in matrix.parts):
            column = Node("group", tuple(row.parts[0] for row in matrix.parts), "()")
            pair = (column, other._replace(kind="group", name="()"))
            return self._same_lists(*(pair if matrix is gold else pair[::-1]))
        if other.kind == "group" and all(item.kind == "group" for item in other.parts):
            rows = Node("matrix", tuple(Node("list", item.parts) for item in other.parts))
            return self._same_matrices(*((matrix, rows) if matrix is gold else (rows, matrix)))
        return False

    def _same_proportions(self, gold: Sequence[Node], answer: Sequence[Node]) -> bool:
        if len(gold) != len(answer) or all(self._equal(_ZERO, part) for part in answer):
            return False
        return all(
            self._equal(multiplied(one, answer[0]), multiplied(two, gold[0]))
            for one, two in zip(gold[1:], answer[1:], strict=True)
        )

    # Numbers with and without units

    def _same_quantities(self, gold: Node, answer: Node) -> bool:
        (wanted, unit), (value, other) = _quantity(gold), _quantity(answer)
        if infinity_sign(wanted) or infinity_sign(value):
            return infinity_sign(wanted) == infinity_sign(value)
        if "percent" in (unit, other) or "degree" in (unit, other):
            return self._same_shares(wanted, unit, value, other)
        given, said = _known_unit(unit), _known_unit(other)
        if (given.counted == 1) != (said.counted == 1) and self._equal(wanted, value):
            raise Unreadable(f"only one of the two says {other if given.counted == 1 else unit!r}")
        wanted, value = _times(wanted, given.counted), _times(value, said.counted)
        if not given.dimension or not said.dimension:
            if self._equal(wanted, value):
                return True
            letter = _without_letter(value) if not symbols(wanted) else None
            if letter is not None and given.dimension and not given.words:
                number, named = letter
                return named.dimension == given.dimension and self._equal(
                    _scaled(wanted, given), _scaled(number, named)
                )
            if letter is not None:
                return self._equal(wanted, letter[0])
            if given.factor != said.factor and self._equal(_scaled(wanted, given), _scaled(value, said)):
                raise Unreadable("only one of the two says in which unit it is")
            return False
        if given.dimension == said.dimension:
            return self._equal(_scaled(wanted, given), _scaled(value, said))
        if _is_named_by_power(given) or _is_named_by_power(said):
            return _powers(given) == _powers(said) and self._equal(wanted, value)
        if (given.words or said.words) and self._equal(wanted, value):
            raise Unreadable(f"the number is right, but {other!r} is not known to be {unit!r}")
        return False

    def _same_shares(self, wanted: Node, unit: str, value: Node, other: str) -> bool:
        """Percents and degrees: the number alone will do, and so will what it stands for."""
        if unit == other:
            return self._equal(wanted, value)
        if unit and other:
            return False
        if self._equal(wanted, value):
            if other == "percent" and (small := exact_value(value)) is not None and 0 < abs(small) <= 1:
                raise Unreadable("only the answer says that it is in percent")
            return True
        meant = [_meaning(side, of) for side, of in ((wanted, unit), (value, other))]
        return self._equal(*meant)


def _spread(node: Node) -> Node:
    """Plus-or-minus signs as two items, in lists and sets among the others."""
    if node.kind == "relation" and node.name == "in" and node.parts[1].name == r"\{\}":
        node = node.parts[1]
    if node.kind in ("list", "group"):
        parts = tuple(signed for part in node.parts for signed in _readings(part))
        return node._replace(parts=parts)
    readings = _readings(node)
    return node if len(readings) == 1 else Node("list", readings, "or")


def _readings(node: Node) -> tuple[Node, ...]:
    if node.kind == "relation" and len(node.parts) == 2 and node.name == "=" and label_of(node.parts[0]):
        return tuple(node._replace(parts=(node.parts[0], value)) for value in with_signs(node.parts[1]))
    return tuple(with_signs(node))


def _is_equation(node: Node) -> bool:
    """Whether a relation says what unknowns fulfil, and not what one of them, or a number, is."""
    if node.kind != "relation" or set(node.name.split()) - {"=", "~"}:
        return False
    label, sides = value_sides(node)
    if label or len(sides) == 1:
        return False
    first, last = sides[0], sides[-1]
    if not symbols(first):
        return bool(symbols(last))
    return len(sides) == 2 and not same_value(first, last)


def _is_ordered(node: Node) -> bool:
    return node.kind == "group" and node.name != r"\{\}"


def _difference(equation: Node) -> Node:
    left, right = equation.parts
    return Node("sum", (left, multiplied(number(-1), right)))


def _right_of_in(node: Node) -> Node:
    return node.parts[1] if node.kind == "relation" and node.name == "in" else node


def _all_of(conditions: tuple[Node, ...]) -> Node:
    return conditions[0] if len(conditions) == 1 else Node("list", conditions, "and")


def _is_plain_number(node: Node) -> bool:
    return node.kind not in ("list", "group", "matrix", "relation", "regions") and not symbols(node)


def _quantity(node: Node) -> tuple[Node, str]:
    """A number and its unit: "percent", "degree", the words behind it, or nothing."""
    if node.kind == "unit":
        words = node.name.lower().strip(" .")
        value, inner = _quantity(node.parts[0])
        if words in ("percent", "percents", "per cent", "percentage", "percent of the total"):
            return value, "percent"
        if words in ("degrees", "degree", "deg"):
            return value, "degree"
        return value, inner or node.name
    if node.kind in ("percent", "degree"):
        return node.parts[0], node.kind
    if node.kind == "product" and node.parts[-1].kind in ("percent", "degree", "unit"):
        inside, unit = _quantity(node.parts[-1])
        return node._replace(parts=(*node.parts[:-1], inside)), unit
    if node.kind == "product" and node.parts[0].kind == "number" and node.parts[0].value == -1 and len(node.parts) == 2:
        inside, unit = _quantity(node.parts[1])
        return node._replace(parts=(node.parts[0], inside)), unit
    return node, ""


def _known_unit(words: str) -> Unit:
    return read_unit(words) if words and words not in ("percent", "degree") else NO_UNIT


def _times(value: Node, factor: Fraction) -> Node:
    return multiplied(value, number(factor)) if factor != 1 else value


def _scaled(value: Node, unit: Unit) -> Node:
    return _times(value, unit.factor)


def _meaning(value: Node, unit: str) -> Node:
    if unit == "percent":
        return Node("ratio", (value, _HUNDRED))
    return Node("ratio", (multiplied(value, _PI), _HALF_TURN)) if unit == "degree" else value


def _is_named_by_power(unit: Unit) -> bool:
    """Whether it is square or cubic units of whatever length."""
    return [kind for kind, _ in unit.dimension] == ["unit"]


def _powers(unit: Unit) -> list[int]:
    return [power for _, power in unit.dimension]


def _without_letter(value: Node) -> tuple[Node, Unit] | None:
    """A number without the letter of its unit, as in "5 m", and the unit; None where it has none."""
    if value.kind != "product":
        return None
    *rest, last = value.parts
    base, power = last.parts if last.kind == "power" else (last, number(1))
    if base.kind != "symbol" or base.name not in LETTERS or power.kind != "number":
        return None
    node = rest[0] if len(rest) == 1 else value._replace(parts=tuple(rest))
    return None if symbols(node) else (node, read_unit(f"{base.name}^{power.value}"))


__all__ = ["NoValue", "same"]
