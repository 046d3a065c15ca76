"""One spelling for arithmetic: what a model writes in LaTeX or with typographic signs means the same as in ASCII."""

import re
from fractions import Fraction

from reasonmill.tasks.expression import ExpressionError, read_expression

# What LaTeX puts around text, and its fractions; the innermost are read first.
_AROUND = re.compile(r"\\(?:[fm]?box(?:ed)?|text|math(?:rm|bf))\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
# How deep these are read in each other: a bound, for the time that endless nesting would take.
_NESTED = 8
_SIGNS = {
    "*": ("×", "✕", "✖", "⋅", "·", "∗", r"\times", r"\cdot", r"\ast"),
    "/": ("÷", "∕", "⁄", r"\div"),
    "-": ("−", "–", "—"),
    "(": ("[", r"\left("),
    ")": ("]", r"\right)"),
    " ": ("$", r"\(", r"\)", r"\[", r"\]", r"\,", r"\;", r"\:", r"\!", "`", "**", "\u00a0", "\u202f"),
}
# The longest first, so that "\left(" is read before "(" of "\(" could be.
_SPELLED = {spelling: plain for plain, spellings in _SIGNS.items() for spelling in spellings}
_SPELLING = re.compile("|".join(map(re.escape, sorted(_SPELLED, key=len, reverse=True))))
_BETWEEN_NUMBERS = re.compile(r"(?<=[\d)\s])[xX](?=[\s\d(])")
_NOTHING_AFTER_POINT = re.compile(r"(\d)\.0+(?!\d)")


def plain_sides(answer: str) -> list[str]:
    """The sides of an equation, or the one expression that an answer is, in plain ASCII arithmetic.

    Only the spelling changes: what is no arithmetic stays, and is refused by whoever reads it. An answer in a box is
    what stands in the box, unless something else stands beside it. A full stop at the end means nothing, nor does
    ".0" after a whole number.
    """
    for _ in range(_NESTED):
        answer = _FRACTION.sub(r" ((\1)/(\2)) ", _AROUND.sub(r" \1 ", answer))
    text = _SPELLING.sub(lambda match: _SPELLED[match[0]], answer)
    text = _NOTHING_AFTER_POINT.sub(r"\1", _BETWEEN_NUMBERS.sub("*", text)).strip()
    return [side.strip() for side in text.removesuffix(".").split("=")]


def number_said(answer: str) -> Fraction | None:
    """The number that an answer names: alone, or as the last side of an equation that holds. None where it names none.

    "16 no 17", "not 16" and "16 or 17" name none, and so does an equation that does not hold.
    """
    try:
        sides = [read_expression(side) for side in plain_sides(answer)]
    except ExpressionError:
        return None
    number = sides[-1].value
    return number if len(sides[-1].numbers) == 1 and all(side.value == number for side in sides) else None
