"""Arithmetic expressions, read by a parser of our own: model-written text never reaches eval."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_DEPTH = 32
_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))", re.ASCII)


class ExpressionError(ValueError):
    """The text is not an arithmetic expression, or has no value."""


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression's exact value and the integers it is written with, in order."""

    value: Fraction
    numbers: tuple[int, ...]


def read_expression(text: str) -> Expression:
    """Reads integers joined by + - * / and parentheses, with the usual precedence.

    Signs are binary only: "-3" is no expression, because a sign would be an operation that nobody counts.

    Raises:
        ExpressionError: anything else, a division by zero, a text of more than 200 characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    parser = _Parser(_tokens(text))
    value = parser.sum(depth=0)
    if parser.position != len(parser.tokens):
        raise ExpressionError(f"unexpected {parser.tokens[parser.position]!r}")
    return Expression(value, tuple(parser.numbers))


def _tokens(text: str) -> list[str]:
    text = text.rstrip()
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected character {text[position]!r}")
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum -> product -> atom."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.numbers: list[int] = []

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self.position += 1
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self._peek() in ("+", "-"):
            operator = self._take()
            operand = self.product(depth)
            value = value + operand if operator == "+" else value - operand
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self._peek() in ("*", "/"):
            operator = self._take()
            operand = self.atom(depth)
            if operator == "/" and operand == 0:
                raise ExpressionError("division by zero")
            value = value * operand if operator == "*" else value / operand
        return value

    def atom(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
        token = self._take()
        if token == "(":
            value = self.sum(depth + 1)
            if self._take() != ")":
                raise ExpressionError("a parenthesis is not closed")
            return value
        if not token.isdigit():
            raise ExpressionError(f"expected a number, found {token or 'the end'!r}")
        self.numbers.append(int(token))
        return Fraction(int(token))
