"""What the left side of "x = 2", "f(x) = 2x" or "(x, y) = (1, 2)" names, and lists of such."""

from __future__ import annotations

from reasonmill.grading.math_node import Node
from reasonmill.grading.math_regions import is_region
from reasonmill.grading.math_tokens import Unreadable
from reasonmill.grading.math_values import symbols

_WHOLE = frozenset("nmk")
_TUPLE = Node("group", (), "()")


def label_of(node: Node) -> str:
    """What an unknown alone is called, or a function of unknowns: x, f(x); nothing for all else."""
    if node.kind == "symbol" and node.name not in ("i", "e"):
        return node.name
    if node.kind == "product" and all(part.kind == "symbol" and part.name.isupper() for part in node.parts):
        return "".join(part.name for part in node.parts)  # an angle or a segment
    if node.kind == "product" and len(node.parts) == 2 and node.parts[0].kind == "symbol":
        arguments = node.parts[1].parts if node.parts[1].kind == "group" else node.parts[1:]
        if node.parts[0].name in "fghpqFGPQTSVAy" and all(part.kind in ("symbol", "number") for part in arguments):
            return f"{node.parts[0].name}({','.join(part.name or str(part.value) for part in arguments)})"
    if node.kind == "product" and _is_inverse(node.parts[0]) and all(part.kind == "symbol" for part in node.parts[1:]):
        return f"{node.parts[0].parts[0].name}^-1({','.join(part.name for part in node.parts[1:])})"
    if node.kind == "group" and all(part.kind == "symbol" for part in node.parts):
        return f"({','.join(part.name for part in node.parts)})"
    return ""


def _is_inverse(node: Node) -> bool:
    """Whether a node is the name of a function's inverse."""
    if node.kind != "power" or node.parts[0].kind != "symbol" or node.parts[0].name not in ("f", "g", "h", "F", "G"):
        return False
    return node.parts[1].kind == "number" and node.parts[1].value == -1


def with_argument_of(gold: Node, answer: Node) -> Node:
    """f(t) = 2t where the reference says f(x), with x in place of t."""
    if gold.kind != "relation" or answer.kind != "relation":
        return answer
    left, right = gold.parts[0], answer.parts[0]
    if not (left.kind == right.kind == "product" and len(left.parts) == len(right.parts) == 2):
        return answer
    (name, wanted), (other, given) = left.parts, right.parts
    both = {wanted.kind, given.kind, name.kind, other.kind} == {"symbol"} and name == other and "(" in label_of(left)
    return _renamed(answer, given.name, wanted.name) if both and wanted != given else answer


def _renamed(node: Node, old: str, new: str) -> Node:
    if node.kind == "symbol":
        return node._replace(name=new) if node.name == old else node
    return node._replace(parts=tuple(_renamed(part, old, new) for part in node.parts)) if node.parts else node


def value_sides(node: Node) -> tuple[str, tuple[Node, ...]]:
    """The label of `x = 5`, and the sides that say what it is."""
    if node.kind != "relation":
        return "", (node,)
    if set(node.name.split()) - {"=", "~"}:
        raise Unreadable("a relation that is neither an equation nor an inequality")
    label = label_of(node.parts[0])
    if label:
        return label, node.parts[1:]
    if label_of(node.parts[-1]) and len(node.parts) == 2 and not symbols(node.parts[0]):
        return label_of(node.parts[-1]), node.parts[:1]
    return "", node.parts


def unlabelled(node: Node) -> Node:
    """The value of `x = 5`, and of a point with its name, `P(1, 2)`; other nodes as they are."""
    if _is_point(node):
        return node.parts[1]
    label, sides = value_sides(node) if node.kind == "relation" and not is_region(node) else ("", (node,))
    return sides[-1] if label and len(sides) == 1 else node


def _is_point(node: Node) -> bool:
    """Whether a node is a capital letter before a tuple."""
    if node.kind != "product" or len(node.parts) != 2 or node.parts[0].kind != "symbol":
        return False
    return node.parts[0].name.isupper() and node.parts[1].kind == "group" and len(node.parts[1].parts) > 1


def _labels(node: Node) -> list[str]:
    return [value_sides(part)[0] if part.kind == "relation" and not is_region(part) else "" for part in node.parts]


def unknowns_of(node: Node) -> frozenset[str]:
    """The letters that the items of a list are said to be, each another one; empty where they are none. Those of one
    letter with indices are not told apart: roots have no order."""
    labels = _labels(node)
    return (
        frozenset(labels)
        if len(set(labels)) == len(labels) > 1 and all(len(each) == 1 for each in labels)
        else frozenset()
    )


def items_of(node: Node, other: Node) -> list[Node]:
    """The items of a list; labels that both have keep their order, others are what they say."""
    labels = _labels(node)
    if all(labels) and len(set(labels)) == len(labels) > 1:
        named = list(zip(labels, map(unlabelled, node.parts), strict=True))
        if all(len(label) == 1 for label in labels):
            named.sort(key=lambda pair: pair[0])
        others = [value_sides(part)[0] if part.kind == "relation" else "" for part in other.parts]
        if sorted(others) == sorted(labels) or other.kind == "group":
            return [value for _, value in named]
    return [unlabelled(part) for part in node.parts]


def apart_from_conditions(node: Node) -> tuple[Node, tuple[Node, ...]]:
    """The equation and the conditions of "y = x + 1, x > 0"; other nodes as they are, and none. That a whole number
    such as the n of a sequence is not too small goes without saying."""
    first, *rest = node.parts or (node,)
    is_said = node.kind == "list" and node.name == "," and first.kind == "relation" and first.name == "="
    if not is_said or not rest or not all(map(is_region, rest)):
        return node, ()
    if any(not symbols(each) or not symbols(each) <= symbols(first.parts[-1]) for each in rest):
        return node, ()
    return first, tuple(each for each in rest if not symbols(each) <= _WHOLE)


def solutions(node: Node) -> Node:
    """The pairs that "x = 2, y = 1, x = 1, y = 2" names; other nodes as they are."""
    labels = _labels(node)
    size = len(set(labels))
    if node.kind != "list" or not all(labels) or size < 2 or len(labels) % size or len(labels) == size:
        return node
    groups = [node.parts[start : start + size] for start in range(0, len(labels), size)]
    if any(len(set(labels[start : start + size])) < size for start in range(0, len(labels), size)):
        return node
    pairs = tuple(Node("group", tuple(items_of(Node("list", group, ","), _TUPLE)), "()") for group in groups)
    return Node("list", pairs, node.name)
