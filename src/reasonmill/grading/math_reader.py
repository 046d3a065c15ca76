"""Reads mathematics in plain LaTeX or ASCII into a tree, by a parser of our own: model-written text meets no eval.

Reading is linear in the text's length, bounded in length and depth, and computes nothing. What is no mathematics, or more
than this reads (integrals, sums, limits), is `Unreadable`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple, NoReturn

from reasonmill.grading.math_spelling import WORD_CLOSE, WORD_OPEN
from reasonmill.grading.math_units import KNOWN_WORDS, PREFIXES, SHORT_WORDS

MAX_CHARACTERS = 2000
MAX_DEPTH = 40
_MAX_EXPONENT_DIGITS = 4


class Unreadable(ValueError):
    """The text is no mathematics that is understood here.

    Attributes:
        mathematical: whether it may still be mathematics.
    """

    def __init__(self, why: str, *, mathematical: bool = True) -> None:
        super().__init__(why)
        self.mathematical = mathematical


class Node(NamedTuple):
    """A part of an expression.

    Kinds: number (value), symbol and constant (name), sum and product (parts), ratio, power, call (name, parts), sign (name
    "+-" or "-+": the part that it stands before), percent, degree, unit (name), list (name: ",", "or", "and"), group
    (name: its brackets), matrix (parts: rows, which are lists), relation (name: its signs, with a space between them),
    regions (name: "cup", "cap", "setminus").
    """

    kind: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


class _Token(NamedTuple):
    kind: str  # number, letter, command, word, sign, end
    text: str
    spaced: bool  # whether a space stands before it


FUNCTIONS = {
    *(
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "arcsin",
        "arccos",
        "arctan",
        "arccot",
        "arcsec",
    ),
    *("arccsc", "ln", "log", "lg", "exp", "sqrt", "cbrt", "abs", "floor", "ceil", "asin", "acos", "atan", "Re", "Im"),
}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}
_SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity"}
_GREEK = set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell".split()
)
_MATRICES = {"pmatrix", "bmatrix", "matrix", "Bmatrix", "array", "smallmatrix", "psmallmatrix"}
_RELATIONS = {"=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "=<": "<=", "=>": ">="}
_RELATION_COMMANDS = {"approx": "~", "sim": "~", "in": "in", "ne": "!=", "to": "->"}
_REGIONS = {"cup": "cup", "cap": "cap", "setminus": "setminus"}
_CLOSERS = {"(": ")]", "[": ")]", r"\{": r"\}", "{": "}", r"\langle": r"\rangle"}

_TOKEN = re.compile(
    r"(?P<space>\s*)(?:"
    r"(?P<thousands>[1-9]\d{0,2}(?:,\d{3})+(?![\d,]*,\s|\d)(?:\.\d+)?)"
    r"|(?P<european>[1-9]\d{0,2}(?:\.\d{3})+,\d+(?!\d))"
    r"|(?P<number>\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<environment>\\(?:begin|end)\s*\{[a-zA-Z]+\*?\}(?:\{[lcr| ]*\})?)"
    r"|(?P<command>\\(?:[A-Za-z]+|[{}\\]))"
    rf"|(?P<word>{WORD_OPEN}[^{WORD_CLOSE}]*{WORD_CLOSE})"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<sign><=|>=|==|=<|=>|!=|[-+*/^_!%'|(){}\[\],;:&=<>]))"
)
_EXPONENT = re.compile(r"[eE]([-+]?\d+)(?![A-Za-z\d.])")
_REPEATING = re.compile(r"\s*\\overline\s*(?:\{(\d+)\}|(\d))")
_DOTS = re.compile(r"\s*(?:\.\.\.|\\ldots(?![A-Za-z]))")
_UNION_LETTER = re.compile(r"(?<=[)\]}])\s*[Uu]\s*(?=[(\[{\\])")
_SEPARATORS = {"and", "or"}


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
    reader = _Reader(_tokens(_UNION_LETTER.sub(r" \\cup ", text), thousands), tight)
    node = reader.listing(("",), depth=0)
    if reader.peek.kind != "end":
        reader.fail()
    return node


def number(value: int | Fraction) -> Node:
    """A number as a tree."""
    return Node("number", value=Fraction(value))


def _tokens(text: str, thousands: bool) -> list[_Token]:
    tokens: list[_Token] = []
    place = depth = 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise Unreadable(f"{text[place:].lstrip()[:1]!r} is no mathematics", mathematical=False)
        kind, found, spaced = str(match.lastgroup), match[0].strip(), bool(match["space"])
        place = match.end()
        if kind == "thousands" and (depth or not thousands):
            found = found.partition(",")[0]
            kind, place = "number", match.end("space") + len(found)
        if kind in ("thousands", "european"):
            found = found.replace(".", "").replace(",", ".") if kind == "european" else found.replace(",", "")
            kind = "number"
        if kind == "number":
            found, place = _whole_number(text, place, found)
        elif found in ("(", "[", "{", r"\{"):
            depth += 1
        elif found in (")", "]", "}", r"\}"):
            depth -= 1
        if kind == "letters":
            tokens += _letters(found, spaced, tokens[-1] if tokens else None)
        elif kind == "word":
            tokens += _word(found[1:-1].strip(), spaced)
        elif kind == "command" and found == r"\\":
            tokens.append(_Token("sign", found, spaced))
        elif kind == "command" and found in (r"\{", r"\}"):
            tokens.append(_Token("sign", found, spaced))
        else:
            tokens.append(_Token(kind, found, spaced))
    return tokens


def _whole_number(text: str, place: int, found: str) -> tuple[str, int]:
    """The number's text as a fraction that Python reads, with its exponent and its repeating digits."""
    if "." in found:
        repeating = _REPEATING.match(text, place)
        if repeating:
            digits = repeating[1] or repeating[2]
            after = len(found.partition(".")[2])
            value = Fraction(found.rstrip(".")) + Fraction(int(digits), (10 ** len(digits) - 1) * 10**after)
            return str(value), repeating.end()
        dots = _DOTS.match(text, place)
        cycle = re.search(r"(\d+?)\1\1+$", found.partition(".")[2])
        if dots and cycle:
            before = found[: len(found) - len(cycle[0])]
            after = len(before.partition(".")[2])
            value = Fraction(before.rstrip(".") or 0) + Fraction(int(cycle[1]), (10 ** len(cycle[1]) - 1) * 10**after)
            return str(value), dots.end()
    exponent = _EXPONENT.match(text, place)
    if exponent:
        if len(exponent[1].lstrip("+-0")) > _MAX_EXPONENT_DIGITS:
            raise Unreadable("its exponent is too large")
        return str(Fraction(f"{found.rstrip('.')}e{exponent[1]}")), exponent.end()
    return found.rstrip(".") or "0", place


def _letters(run: str, spaced: bool, before: _Token | None) -> list[_Token]:
    """A run of letters: a function, a constant, "and", a word such as a unit, or letters that are multiplied."""
    lower = run.lower()
    if lower in _SEPARATORS:
        return [_Token("separator", lower, spaced)]
    if (run in FUNCTIONS or lower in _CONSTANTS or run in _GREEK) and (before is None or before.kind != "word"):
        return [_Token("command", f"\\{run if run in FUNCTIONS or run in _GREEK else lower}", spaced)]
    if before is not None and before.kind == "word" and spaced:
        return [_Token("word", run, spaced)]
    if len(run) == 1 or (before is not None and before.text == "_"):
        return [_Token("letter", letter, spaced and place == 0) for place, letter in enumerate(run)]
    if lower in KNOWN_WORDS and before is not None and before.kind != "sign" or lower in PREFIXES:
        return [_Token("word", run, spaced)]
    if before is not None and before.text in (")", "]", "}", "%", r"\}") and lower in KNOWN_WORDS:
        return [_Token("word", run, spaced)]
    for name in sorted(FUNCTIONS | {"pi"}, key=len, reverse=True):
        if run.startswith(name) and len(run) - len(name) <= 1:
            return [_Token("command", f"\\{name}", spaced), _Token("letter", run[-1], False)]
    behind_number = before is not None and (before.kind in ("number", "word") or before.text in (")", "}", "%"))
    if lower in SHORT_WORDS and spaced and behind_number:
        return [_Token("word", run, spaced)]
    if len(run) == 2 or _is_row_of_letters(lower):
        return [_Token("letter", letter, spaced and place == 0) for place, letter in enumerate(run)]
    return [_Token("word", run, spaced)]


def _is_row_of_letters(run: str) -> bool:
    """Whether letters are neighbours in the alphabet, as the names of unknowns are: xyz, bca."""
    places = sorted(map(ord, run))
    return places == list(range(places[0], places[0] + len(places)))


def _word(words: str, spaced: bool) -> list[_Token]:
    if words.lower() in _SEPARATORS:
        return [_Token("separator", words.lower(), True)]
    if words in FUNCTIONS:
        return [_Token("command", f"\\{words}", spaced)]
    if words in ("i", "e"):
        return [_Token("letter", words, spaced)]
    return [_Token("word", words, spaced)] if words else []


class _Reader:
    """Recursive descent: list -> relation -> union of regions -> sum -> product -> power -> atom."""

    def __init__(self, tokens: list[_Token], tight: bool) -> None:
        self._tokens = [*tokens, _Token("end", "", False)]
        self._place = 0
        self._tight = tight
        self._bars = 0

    @property
    def peek(self) -> _Token:
        return self._tokens[self._place]

    def take(self) -> _Token:
        token = self.peek
        self._place += token.kind != "end"
        return token

    def taken(self, *texts: str) -> str:
        """The next token's text where it is one of these, which it is then taken as; otherwise nothing."""
        return self.take().text if self.peek.text in texts and self.peek.kind not in ("word", "end") else ""

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
        return items[0] if len(items) == 1 else Node("list", tuple(items), joint)

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
        while self.peek.kind == "command" and self.peek.text[1:] in _REGIONS:
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
        while True:
            sign = self.taken("*", "/", ":")
            if sign:
                other = self._after_sign(depth)
                while sign == "/" and self._tight and self._begins_factor():
                    other = multiplied(other, self._factor(depth))
                node = multiplied(node, other) if sign == "*" else Node("ratio", (node, other))
            elif self._begins_factor():
                if node.kind == "unit" and self.peek.kind == "number":
                    raise Unreadable("a quantity in several units", mathematical=False)
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
        return Node("unit", (node,), prefix) if prefix and node.kind != "unit" else node

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
        while True:
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
        if name in _CONSTANTS:
            return Node("constant", name=_CONSTANTS[name])
        if name in _GREEK:
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
            return self._call(_SAME_FUNCTION.get(name, name), depth)
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
                self._tokens[self._place] = _Token("number", rest, False)
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
        if power is not None and power.kind == "number" and power.value == -1 and name in _INVERSE:
            name, power = _INVERSE[name], None
        if self.peek.text in ("(", "[", "{"):
            inside = self._atom(depth + 1)
        else:
            negative = bool(self.taken("-"))
            inside = self._factor(depth)
            while self._begins_factor() and self.peek.text[1:] not in FUNCTIONS and self.peek.text not in ("(", "["):
                inside = multiplied(inside, self._factor(depth))
            inside = negated(inside) if negative else inside
        node = Node("call", (inside, *base), name)
        return node if power is None else Node("power", (node, power))

    def _matrix(self, opening: str, depth: int) -> Node:
        name = opening.partition("{")[2].partition("}")[0]
        if name not in _MATRICES:
            raise Unreadable(f"the environment {name} is not read here")
        rows: list[Node] = []
        cells: list[Node] = []
        while True:
            if self.peek.text == r"\end{%s}" % name:  # noqa: UP031  # braces
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


def _is_whole(node: Node) -> bool:
    return node.kind == "number" and node.value.denominator == 1


def _mixed_or_product(whole: Node, other: Node) -> Node:
    if other.kind == "ratio" and all(map(_is_whole, other.parts)):
        above, below = (part.value for part in other.parts)
        if 0 < above < below:
            return Node("number", value=whole.value + above / below)
    return multiplied(whole, other)
