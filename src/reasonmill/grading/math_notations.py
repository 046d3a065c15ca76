"""Notations of other schools and of keyboards as the usual ones: ]0, 1[, C_5^2, 3 x 10^4, 2h 30min.

Each rewriting is tried only where a sign of it is there, so that plain numbers pay nothing.
"""

from __future__ import annotations

import re

_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)|(?<=\d)\s+[xX]\s+(?=\d)")
_OPEN_BY_TURNED_BRACKETS = re.compile(r"([\[\]])([^\[\](){}]*(?:\{[^{}]*\}[^\[\](){}]*)*)([\[\]])")
_CHOOSE = re.compile(r"\{?\s*([^\s{}\\]{1,20})\s*\\choose\s*([^\s{}\\]{1,20})\s*\}?")
# Combinations as C with two indices, as C between them, and as a function.
_COMBINATIONS = re.compile(
    r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?|(?:\{\})?_\{?(\d+)\}?C_\{?(\d+)\}?|(?<![A-Za-z])C\(\s*(\d+)\s*,\s*(\d+)\s*\)"
)
_ROWS = re.compile(r"\[\s*([^\[\](),;]+(?:;[^\[\](),;]+)+)\]")
_TRANSPOSED = re.compile(r"([)\]])\^\{?\s*(?:T|\\top)\s*\}?$")
_ANGLES = re.compile(r"<([^<>=,]+,[^<>=]+)>")
_SEGMENT = re.compile(r"\\overline\s*\{\s*([A-Z]{2})\s*\}")
_LOG_WITH_BASE = re.compile(r"(?<![A-Za-z\\])log(\d+)(?=\()")
_RATIO_IN_WORDS = re.compile(r"(-?\d+(?:\.\d+)?)\s*⟦?\s*to\s*⟧?\s*(-?\d+(?:\.\d+)?)")
# "for every integer k", "k \in \mathbb{Z}", "where n is an integer", behind what they speak of.
_ANY_INTEGER = re.compile(
    r"(?<=[^\s,;(⟦])[\s,;(⟦]*(?:(?:where|for|with)\s*)?(?:any |all |every |some |each )?"
    r"(?:integers?\s*⟧?\s*(?P<before>[a-z])"
    r"|⟧?\s*(?P<behind>[a-z])\s*(?:\\in\s*⟦integers⟧|⟦?\s*(?:is )?an integer))[\s⟧)]*$"
)
_ARROW = re.compile(r"^([A-Za-z])\s*:\s*([A-Za-z])\s*\\(?:mapsto|to)\s*")
# A function and, in words, for which arguments it is that.
_FOR_ALL = re.compile(
    r"(?<=[^\s,(])[\s,(]*⟦?\s*\b(?:for|where) (?:all|every|any|each|some)\b(?:(?!⟦?\b(?:and|or)\b).){0,60}$"
)
_CONDITION_IN_WORDS = re.compile(
    r"[\s,]*⟦?\s*\b(?:for|where|with)\s*⟧?\s*(?=[a-z]\s*(?:[<>]|\\in(?![a-z])|\\ne(?![a-z])))"
)
_CONDITION_IN_PARENTHESES = re.compile(r"(?<=[^\s,])[\s,]*\(\s*([a-z]\s*(?:[<>]=?|\\in |\\ne )[^()]{1,60})\)$")
_DURATION = re.compile(r"(?<![\w.])(\d+)\s*h(?:rs?)?\.?\s*(\d+)\s*m(?:ins?)?\b\.?")


def usual_notation(text: str) -> str:
    """A text in the spelling of `plain_mathematics`, with other notations as the usual ones."""
    if "x" in text or "X" in text:
        text = _TIMES.sub(" * ", text)
    if "[" in text or "]" in text:
        text = _with_round_brackets(text)
        if ";" in text:
            text = _ROWS.sub(_matrix, text)
        text = _TRANSPOSED.sub(r"\1", text)
    if "C" in text:
        text = _COMBINATIONS.sub(_binomial, text)
    if r"\choose" in text:
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    if "<" in text and ">" in text:
        text = _ANGLES.sub(r"\\langle \1 \\rangle ", text)
    if r"\mapsto" in text or r"\to" in text:
        text = _ARROW.sub(r"\1(\2) = ", text)
    if "h" in text:
        text = _DURATION.sub(r"\1⟦hours⟧ \2⟦minutes⟧", text)
    if r"\overline" in text:
        text = _SEGMENT.sub(r"\1", text)
    if "log" in text:
        text = _LOG_WITH_BASE.sub(r"\\log_{\1}", text)
    if "to" in text:
        ratio = _RATIO_IN_WORDS.fullmatch(text)
        text = f"{ratio[1]}:{ratio[2]}" if ratio else text
    if "integer" in text:
        text = _with_one_parameter(text)
    if " for " in text or "⟦for" in text or " where " in text:
        text = _CONDITION_IN_WORDS.sub(", ", _FOR_ALL.sub("", text))
    if text.endswith(")") and "=" in text:
        text = _CONDITION_IN_PARENTHESES.sub(r", \1", text)
    return text


def _with_one_parameter(text: str) -> str:
    """What holds for every integer, which is called k, without saying so."""
    match = _ANY_INTEGER.search(text)
    if match is None:
        return text
    name = match["before"] or match["behind"]
    return re.sub(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", "k", text[: match.start()])


def _with_round_brackets(text: str) -> str:
    """Intervals whose brackets are turned outwards where an end is left out, with round ones there."""
    brackets = [sign for sign in text if sign in "[]"]
    if brackets[0] == "[" and brackets[-1] == "]":
        return text
    return _OPEN_BY_TURNED_BRACKETS.sub(_interval, text)


def _interval(match: re.Match[str]) -> str:
    opened, inside, closed = match.groups()
    if "," not in inside and ";" not in inside:
        return match[0]
    return f"{'[' if opened == '[' else '('}{inside}{']' if closed == ']' else ')'}"


def _matrix(match: re.Match[str]) -> str:
    """The rows of a matrix with a semicolon between them, and spaces between the entries of one."""
    rows = [row.split() for row in match[1].split(";")]
    if len({len(row) for row in rows}) > 1:
        return match[0]
    return r"\begin{bmatrix}" + r"\\".join("&".join(row) for row in rows) + r"\end{bmatrix}"


def _binomial(match: re.Match[str]) -> str:
    above, below = (part for part in match.groups() if part is not None)
    return f"\\binom{{{above}}}{{{below}}}" if int(above) >= int(below) else match[0]
