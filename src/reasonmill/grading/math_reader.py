"""Reads mathematics in plain LaTeX or ASCII into a tree, by a parser of our own: model-written text meets no eval.

Reading is linear in the text's length, bounded in length and depth, and computes nothing. What is no mathematics, or
more than this reads (integrals, sums, limits), is `Unreadable`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NoReturn

from reasonmill.grading.math_node import Node, multiplied, negated, number, ratio_of
from reasonmill.grading.math_tokens import (
    CONSTANTS,
    FUNCTIONS,
    GREEK,
    INVERSE,
    SAME_FUNCTION,
    Token,
    Unreadable,
    tokens_of,
)
from reasonmill.grading.math_units import PREFIXES, together

MAX_CHARACTERS = 2000
MAX_DEPTH = 40
# How many signs of one kind may follow each other where each nests the tree deeper.
_MAX_CHAIN = 30
_MATRICES = {"pmatrix", "bmatrix", "matrix", "Bmatrix", "array", "smallmatrix", "psmallmatrix"}
_RELATIONS = {"=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "=<": "<=", "=>": ">="}
_RELATION_COMMANDS = {"approx": "~", "sim": "~", "in": "in", "ne": "!=", "to": "->"}
_REGIONS = {"cup": "cup", "cap": "cap", "setminus": "setminus"}
_CLOSERS = {"(": ")]", "[": ")]", r"\{": r"\}", "{": "}", r"\langle": r"\rangle"}


def read_mathematics(text: str, *, thousands: bool = True, tight: bool = False) -> Node:
    """Reads a text in the spelling of `plain_mathematics`.

    Args:
        thousands: whether "1,234" outside of brackets is one number, and not two.
        tight: whether "1/2x" is 1/(2x); otherwise it is x/2.

    Raises:
        Unreadable: it is too long, nested too deeply, or nothing that is understood.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(f"longer than {MAX_CHARACTERS:,} characters")
    reader = _Reader(tokens_of(text, thousands), tight)
    node = reader.listing(("",), depth=0)
    if reader.peek.kind != "end":
        reader.fail()
    return node


class _Reader:
    """Recursive descent: list -> relation -> union of regions -> sum -> product -> power -> atom."""

    def __init__(self, tokens: list[Token], tight: bool) -> None:
        self._tokens = [*tokens, Token("end", "", False)]
        self._place = 0
        self._tight = tight
        self._bars = 0

    @property
    def peek(self) -> Token:
        return self._tokens[self._place]

    def take(self) -> Token:
        token = self.peek
        self._place += token.kind != "end"
        return token

    def taken(self, *texts: str) -> str:
        """The next token's text where it is one of these, which it is then taken as; otherwise nothing."""
        token = self._tokens[self._place]
        if token.text not in texts or token.kind == "word" or token.kind == "end":
            return ""
        self._place += 1
        return token.text

    def fail(self) -> NoReturn:
        token = self.peek
        if token.kind == "word":
            raise Unreadable(f"{token.text[:40]!r} is no mathematics", mathematical=False)
        raise Unreadable(f"did not expect {token.text[:40] or 'the end'!r}")

    def listing(self, closers: tuple[str, ...], depth: int) -> Node:
        """Items up to a closing bracket or the end: one item alone, or a list of them."""
        items = [self.relation(depth)]
        joint = ","
        while self.peek.text in (",", ";") or self.peek.kind == "separator":
            while self.peek.text in (",", ";") or self.peek.kind == "separator":
                token = self.take()
                joint = token.text if token.kind == "separator" else joint
            if self.peek.kind == "end" or self.peek.text in closers:
                break
            items.append(self.relation(depth))
        whole = together(*items) if joint != "or" and len(items) == 2 else None
        return whole or (items[0] if len(items) == 1 else Node("list", tuple(items), joint))

    def relation(self, depth: int) -> Node:
        sides, signs = [self.regions(depth)], []
        while True:
            token = self.peek
            sign = _RELATIONS.get(token.text) if token.kind == "sign" else _RELATION_COMMANDS.get(token.text[1:])
            sign = "!=" if token.text == "!=" else sign
            if sign is None or token.kind not in ("sign", "command"):
                break
            self.take()
            signs.append(sign)
            sides.append(self.regions(depth))
        return sides[0] if not signs else Node("relation", tuple(sides), " ".join(signs))

    def regions(self, depth: int) -> Node:
        node = self.sum(depth)
        joined = 0
        while self.peek.kind == "command" and self.peek.text[1:] in _REGIONS:
            joined = _counted(joined)
            name = _REGIONS[self.take().text[1:]]
            node = Node("regions", (node, self.sum(depth)), name)
        return node

    def sum(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")
        terms = [self._signed(depth)]
        while self.peek.text in ("+", "-", r"\pm", r"\mp"):
            terms.append(self._signed(depth))
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def _signed(self, depth: int) -> Node:
        """A term with the signs before it."""
        negative, both = False, ""
        while self.peek.text in ("+", "-", r"\pm", r"\mp"):
            sign = self.take().text
            negative ^= sign == "-"
            both = {r"\pm": "+-", r"\mp": "-+"}.get(sign, both)
        node = self.product(depth)
        if negative:
            node = negated(node)
        return Node("sign", (node,), both) if both else node

    def product(self, depth: int) -> Node:
        prefix = ""
        if self.peek.kind == "word" and self.peek.text.lower() in PREFIXES:
            prefix = self.take().text
        node = self._factor(depth)
        divided = 0
        while True:
            sign = self.taken("*", "/") or ("" if self._bars else self.taken(":"))
            if sign:
                divided = _counted(divided) if sign != "*" else divided
                other = self._after_sign(depth)
                while sign == "/" and self._tight and self._begins_factor():
                    other = multiplied(other, self._factor(depth))
                while sign == ":" and self._begins_factor():
                    other = multiplied(other, self._factor(depth))
                node = multiplied(node, other) if sign == "*" else ratio_of(node, other, sign)
            elif self._begins_factor():
                if node.kind == "unit" and self.peek.kind == "number":
                    whole = together(node, self.product(depth + 1))
                    if whole is None:
                        raise Unreadable("a quantity in several units", mathematical=False)
                    return whole
                if node.kind == "number" and self._tokens[self._place - 1].kind == "number" == self.peek.kind:
                    node = self._mixed(node, depth)
                elif self.peek.text == r"\frac" and _is_whole(node) and self._tokens[self._place - 1].kind == "number":
                    node = _mixed_or_product(node, self._factor(depth))
                else:
                    node = multiplied(node, self._factor(depth))
            elif self.peek.kind == "word":
                node = Node("unit", (node,), self._unit())
            else:
                break
        if prefix and node.kind == "unit":  # "$3 million"
            return node._replace(name=f"{node.name} {prefix}")
        return Node("unit", (node,), prefix) if prefix else node

    def _after_sign(self, depth: int) -> Node:
        negative = False
        while self.peek.text in ("+", "-"):
            negative ^= self.take().text == "-"
        node = self._factor(depth)
        return negated(node) if negative else node

    def _mixed(self, whole: Node, depth: int) -> Node:
        """Two numbers beside each other are a mixed number, "1 4/5", or nothing."""
        above = Fraction(self.take().text)
        if not self.taken("/") or self.peek.kind != "number":
            raise Unreadable("two numbers stand beside each other")
        below = Fraction(self.take().text)
        if not (0 < above < below and above.denominator == below.denominator == whole.value.denominator == 1):
            raise Unreadable("two numbers stand beside each other")
        return Node("number", value=whole.value + above / below)

    def _begins_factor(self) -> bool:
        token = self.peek
        if token.kind in ("number", "letter", "environment"):
            return not token.text.startswith(r"\end")
        if token.kind == "command":
            name = token.text[1:]
            return not (
                name in _RELATION_COMMANDS or name in _REGIONS or name in ("pm", "mp", "rfloor", "rceil", "rangle")
            )
        return token.text in ("(", "[", "{", r"\{") or (token.text == "|" and not self._bars)

    def _unit(self) -> str:
        """Words behind a number: its unit, as in `cm^2`, `m/s`, `miles per hour`."""
        parts: list[str] = []
        while True:
            if self.peek.kind == "word":
                parts.append((" " if parts and parts[-1] != "/" else "") + self.take().text)
            elif self.peek.text == "^" and self._place + 1 < len(self._tokens):
                self.take()
                braced = self.taken("{")
                parts.append("^" + ("-" if self.taken("-") else "") + self.take().text)
                if braced and not self.taken("}"):
                    self.fail()
            elif self.peek.text in ("/", "*") and self._tokens[self._place + 1].kind in ("word", "letter"):
                parts.append(self.take().text)
                if self.peek.kind == "letter":
                    parts.append(self.take().text)
            else:
                return "".join(parts)

    def _factor(self, depth: int) -> Node:
        node = self._atom(depth + 1)
        behind = 0
        while True:
            behind = _counted(behind)
            if self.taken("^"):
                node = self._raised(node, depth)
            elif self.taken("!"):
                node = Node("call", (node,), "factorial")
            elif self.taken("%"):
                node = Node("percent", (node,))
            else:
                return node

    def _raised(self, node: Node, depth: int) -> Node:
        if self.taken(r"\circ"):
            return self._degree(node)
        if self.peek.text == "{" and self._tokens[self._place + 1].text == r"\circ":
            self._place += 2
            if not self.taken("}"):
                self.fail()
            return self._degree(node)
        return Node("power", (node, self._exponent(depth + 1)))

    def _degree(self, node: Node) -> Node:
        if self.peek.text in ("C", "F") and self._tokens[self._place + 1].kind == "end":
            return Node("unit", (node,), f"degrees {self.take().text}")
        return Node("degree", (node,))

    def _exponent(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")
        negative = bool(self.taken("-"))
        node = self._atom(depth + 1)
        if self.taken("^"):
            node = Node("power", (node, self._exponent(depth + 1)))
        return negated(node) if negative else node

    def _atom(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")
        token = self.take()
        if token.kind == "number":
            if self.peek.text == "_":
                raise Unreadable("a number has an index")
            return Node("number", value=Fraction(token.text))
        if token.kind == "letter":
            return self._symbol(token.text)
        if token.kind == "environment" and token.text.startswith(r"\begin"):
            return self._matrix(token.text, depth)
        if token.kind == "command":
            return self._command(token.text, depth)
        if token.text == "|":
            return self._absolute(depth)
        if token.text in _CLOSERS and token.kind == "sign":
            return self._group(token.text, depth)
        self._place -= token.kind != "end"
        self.fail()

    def _absolute(self, depth: int) -> Node:
        self._bars += 1
        inside = self.sum(depth)
        self._bars -= 1
        if not self.taken("|"):
            self.fail()
        return Node("call", (inside,), "abs")

    def _group(self, opened: str, depth: int) -> Node:
        bars, self._bars = self._bars, int(opened == r"\{")
        if opened in (r"\{", "{") and self.taken(r"\}", "}"):
            return Node("group", (), r"\{\}")
        closers = (")", "]") if opened in ("(", "[") else (_CLOSERS[opened],)
        inside = self.listing(closers, depth)
        if opened in (r"\{", "{") and self.taken("|", ":"):
            inside = self.listing(closers, depth)  # {x | x > 2}: the condition says it all
            opened = "{"
        self._bars = bars
        closed = self.taken(*closers)
        if not closed:
            self.fail()
        if opened == r"\langle":
            opened, closed = "(", ")"
        if inside.kind == "list":
            brackets = r"\{\}" if opened == "{" else opened + closed
            return Node("group", inside.parts, brackets)
        if opened == r"\{":
            return Node("group", (inside,), r"\{\}")
        if (opened, closed) in (("(", "]"), ("[", ")")):
            raise Unreadable("its brackets do not match")
        return inside

    def _symbol(self, name: str) -> Node:
        if self.taken("_"):
            if self.taken("{"):
                index = []
                while self.peek.text != "}" and self.peek.kind != "end":
                    index.append(self.take().text)
                if not self.taken("}"):
                    self.fail()
                name += "_" + "".join(index)
            else:
                name += "_" + self.take().text
        while self.taken("'"):
            name += "'"
        return Node("symbol", name=name)

    def _command(self, text: str, depth: int) -> Node:
        name = text[1:]
        if name in CONSTANTS:
            return Node("constant", name=CONSTANTS[name])
        if name in GREEK:
            return self._symbol(text)
        if name in ("reals", "emptyset"):
            return Node("constant", name=name)
        if name in ("frac", "binom"):
            parts = (self._argument(depth), self._argument(depth))
            return Node("ratio", parts) if name == "frac" else Node("call", parts, "binomial")
        if name == "sqrt":
            return self._root(depth)
        if name in ("lfloor", "lceil"):
            inside = self.sum(depth)
            if not self.taken({"lfloor": r"\rfloor", "lceil": r"\rceil"}[name]):
                self.fail()
            return Node("call", (inside,), {"lfloor": "floor", "lceil": "ceil"}[name])
        if name == "langle":
            return self._group(text, depth)
        if name in FUNCTIONS:
            return self._call(SAME_FUNCTION.get(name, name), depth)
        if name == "circ":
            raise Unreadable("a composition of functions")
        raise Unreadable(f"{text} is not read here")

    def _root(self, depth: int) -> Node:
        index = number(2)
        if self.taken("["):
            index = self.sum(depth)
            if not self.taken("]"):
                self.fail()
        inside = self._atom(depth + 1)
        return Node("call", (inside, index), "root")

    def _argument(self, depth: int) -> Node:
        r"""What \frac takes: a group, or the next digit or letter alone."""
        token = self.peek
        if token.kind == "number":
            digit, rest = token.text[0], token.text[1:]
            if rest:
                self._tokens[self._place] = Token("number", rest, False)
            else:
                self.take()
            if not digit.isdigit():
                self.fail()
            return number(int(digit))
        return self._atom(depth + 1)

    def _call(self, name: str, depth: int) -> Node:
        base: tuple[Node, ...] = ()
        power: Node | None = None
        while self.peek.text in ("_", "^"):
            if self.take().text == "_":
                base = (self._atom(depth + 1),)
            else:
                power = self._exponent(depth + 1)
        if power is not None and power.kind == "number" and power.value == -1 and name in INVERSE:
            name, power = INVERSE[name], None
        if self.peek.text in ("(", "[", "{"):
            inside = self._atom(depth + 1)
        else:
            negative = bool(self.taken("-"))
            inside = self._factor(depth)
            while self._begins_factor() and not self._ends_argument():
                inside = multiplied(inside, self._factor(depth))
            inside = negated(inside) if negative else inside
        node = Node("call", (inside, *base), name)
        return node if power is None else Node("power", (node, power))

    def _ends_argument(self) -> bool:
        """Whether a function's argument without parentheses ends here: before another function or e, or a bracket."""
        return self.peek.text in ("(", "[", "e") or self.peek.text[1:] in FUNCTIONS

    def _matrix(self, opening: str, depth: int) -> Node:
        name = opening.partition("{")[2].partition("}")[0]
        if name not in _MATRICES:
            raise Unreadable(f"the environment {name} is not read here")
        rows: list[Node] = []
        cells: list[Node] = []
        while True:
            if self.peek.text == f"\\end{{{name}}}":
                break
            cells.append(self.sum(depth))
            if self.taken("&"):
                continue
            rows.append(Node("list", tuple(cells)))
            cells = []
            if not self.taken(r"\\") and not self.peek.text.startswith(r"\end"):
                self.fail()
        self.take()
        if not rows or len({len(row.parts) for row in rows}) > 1:
            raise Unreadable("a matrix whose rows differ in length")
        return Node("matrix", tuple(rows))


def _counted(chain: int) -> int:
    """One more of a chain that nests.

    Raises:
        Unreadable: the chain is too long.
    """
    if chain >= _MAX_CHAIN:
        raise Unreadable(f"nested deeper than {_MAX_CHAIN}")
    return chain + 1


def _is_whole(node: Node) -> bool:
    return node.kind == "number" and node.value.denominator == 1


def _mixed_or_product(whole: Node, other: Node) -> Node:
    if other.kind in ("percent", "degree"):
        return other._replace(parts=(_mixed_or_product(whole, other.parts[0]),))
    if other.kind == "ratio" and all(map(_is_whole, other.parts)):
        above, below = (part.value for part in other.parts)
        if 0 < above < below:
            return Node("number", value=whole.value + above / below)
    return multiplied(whole, other)
