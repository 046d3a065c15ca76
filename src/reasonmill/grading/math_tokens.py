"""The words of mathematics in the spelling of `math_spelling`: numbers, letters, commands, signs, and units."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from reasonmill.grading.math_spelling import WORD_CLOSE, WORD_OPEN
from reasonmill.grading.math_units import KNOWN_WORDS, PREFIXES, SHORT_WORDS

_MAX_EXPONENT, _MAX_EXPONENT_DIGITS = 3000, 30


class Unreadable(ValueError):
    """The text is no mathematics that is understood here.

    Attributes:
        mathematical: whether it may still be mathematics.
    """

    def __init__(self, why: str, *, mathematical: bool = True) -> None:
        super().__init__(why)
        self.mathematical = mathematical


class Token(NamedTuple):
    """A word of mathematics."""

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
# What is written right behind a function: "sinx"; "logs" is a word.
_UNKNOWNS = set("xyztnabABC")
INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}
SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity"}
GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    *("nu", "xi", "omicron", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta"),
    *("Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell"),
}
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
_REPEATING = re.compile(
    r"\s*\\overline\s*(?:\{(\d+)\}|(\d))|\((\d+)\)(?![\d(!^*])|\s*\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?"
)
_DOTS = re.compile(r"\s*(?:\.\.\.|\\ldots(?![A-Za-z]))")
_UNION_LETTER = re.compile(r"(?<=[)\]}])\s*[Uu]\s*(?=[(\[{\\])")
_A_DAY = re.compile(r"(?<=\d) an? (?=[A-Za-z]{3,})(?!sin|cos|tan|log|exp|sqrt|sec|csc|cot|and)")
_SEPARATORS = {"and", "or"}


def tokens_of(text: str, thousands: bool) -> list[Token]:
    """The words of a text.

    Args:
        thousands: whether "1,234" outside of brackets is one number.

    Raises:
        Unreadable: it has a sign that mathematics has not.
    """
    text = _A_DAY.sub(" per ", _UNION_LETTER.sub(r" \\cup ", text)).rstrip()
    tokens: list[Token] = []
    place = depth = 0
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
            tokens += _letters(found, spaced, tokens[-1] if tokens else None, _divides_unit(tokens))
        elif kind == "word":
            tokens += _word(found[1:-1].strip(), spaced)
        elif (kind == "command" and found == r"\\") or (kind == "command" and found in (r"\{", r"\}")):
            tokens.append(Token("sign", found, spaced))
        else:
            tokens.append(Token(kind, found, spaced))
    return tokens


def _whole_number(text: str, place: int, found: str) -> tuple[str, int]:
    """The number's text as a fraction that Python reads, with its exponent and its repeating digits."""
    if "." in found:
        repeating = _REPEATING.match(text, place)
        # Digits in parentheses repeat in 0.1(6); 2.5(4) may be a product.
        if repeating and (repeating[3] is None or found.endswith(".") or found.startswith("0.")):
            digits = "".join(filter(None, repeating.groups()))
            after = len(found.partition(".")[2])
            value = Fraction(found.rstrip(".")) + Fraction(int(digits), (10 ** len(digits) - 1) * 10**after)
            return str(value), repeating.end()
        dots = _DOTS.match(text, place)
        cycle = re.search(r"(\d+?)\1+$", found.partition(".")[2])
        if dots and cycle:
            before = found[: len(found) - len(cycle[0])]
            after = len(before.partition(".")[2])
            value = Fraction(before.rstrip(".") or 0) + Fraction(int(cycle[1]), (10 ** len(cycle[1]) - 1) * 10**after)
            return str(value), dots.end()
    exponent = _EXPONENT.match(text, place)
    if exponent:
        if len(exponent[1]) > _MAX_EXPONENT_DIGITS or abs(int(exponent[1])) > _MAX_EXPONENT:
            raise Unreadable("its exponent is too large")
        return str(Fraction(f"{found.rstrip('.')}e{exponent[1]}")), exponent.end()
    return found.rstrip(".") or "0", place


def _divides_unit(tokens: list[Token]) -> bool:
    """Whether the last of the words divides a unit, as in "5 mi/"."""
    return len(tokens) > 1 and tokens[-1].text == "/" and tokens[-2].kind == "word"


def _letters(run: str, spaced: bool, before: Token | None, divides_unit: bool) -> list[Token]:
    """A run of letters: a function, a constant, "and", a word such as a unit, or letters that are multiplied."""
    lower = run.lower()
    if lower in _SEPARATORS:
        return [Token("separator", lower, spaced)]
    if (run in FUNCTIONS or lower in CONSTANTS or run in GREEK) and (before is None or before.kind != "word"):
        return [Token("command", f"\\{run if run in FUNCTIONS or run in GREEK else lower}", spaced)]
    if before is not None and before.kind == "word" and spaced:
        return [Token("word", run, spaced)]
    if len(run) == 1 or (before is not None and before.text == "_"):
        return [Token("letter", letter, spaced and place == 0) for place, letter in enumerate(run)]
    if (lower in KNOWN_WORDS and before is not None and (before.kind != "sign" or divides_unit)) or lower in PREFIXES:
        return [Token("word", run, spaced)]
    if before is not None and before.text in (")", "]", "}", "%", r"\}") and lower in KNOWN_WORDS:
        return [Token("word", run, spaced)]
    for name in sorted(FUNCTIONS | {"pi"}, key=len, reverse=True):
        if run[:-1] == name and run[-1] in _UNKNOWNS:
            return [Token("command", f"\\{name}", spaced), Token("letter", run[-1], False)]
    behind_number = before is not None and (before.kind in ("number", "word") or before.text in (")", "}", "%"))
    if lower in SHORT_WORDS and spaced and behind_number:
        return [Token("word", run, spaced)]
    if len(run) == 2 or _is_row_of_letters(lower):
        return [Token("letter", letter, spaced and place == 0) for place, letter in enumerate(run)]
    return [Token("word", run, spaced)]


def _is_row_of_letters(run: str) -> bool:
    """Whether letters are neighbours in the alphabet, as the names of unknowns are: xyz, bca."""
    places = sorted(map(ord, run))
    return places == list(range(places[0], places[0] + len(places)))


def _word(words: str, spaced: bool) -> list[Token]:
    if words.lower() in _SEPARATORS:
        return [Token("separator", words.lower(), True)]
    if words.lower() in CONSTANTS:
        return [Token("command", f"\\{words.lower()}", spaced)]
    if words in FUNCTIONS:
        return [Token("command", f"\\{words}", spaced)]
    if words in ("i", "e"):
        return [Token("letter", words, spaced)]
    for word in ("and ", "or "):
        if words.lower().startswith(word):
            return [Token("separator", word.strip(), True), *_word(words[len(word) :].strip(), spaced)]
    for word in (" and", " or"):
        if words.lower().endswith(word):
            return [*_word(words[: -len(word)].strip(), spaced), Token("separator", word.strip(), True)]
    return [Token("word", words, spaced)] if words else []
