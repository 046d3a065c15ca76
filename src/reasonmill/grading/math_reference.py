"""The reference that an answer is compared with, and how both are cleaned before they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from reasonmill.grading import math_words as words
from reasonmill.grading.math_compare import same
from reasonmill.grading.math_congruences import Congruence, congruence_of
from reasonmill.grading.math_moments import Date, Time, moment_of
from reasonmill.grading.math_node import Node
from reasonmill.grading.math_reader import read_mathematics
from reasonmill.grading.math_spelling import plain_mathematics
from reasonmill.grading.math_tokens import Unreadable
from reasonmill.grading.math_values import NoValue, symbols
from reasonmill.grading.places import find_answer

_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASE_WORDS |= {"eleven": 11, "twelve": 12, "sixteen": 16}
BASED = re.compile(r"\(?0*([0-9A-Za-z]+)\)?\s*(?:_\{?\s*⟦?(\w+)⟧?\s*\}?|⟦?\s*\(?(?:in )?base\s*⟧?\s*⟦?(\w+)\)?\s*⟧?)")
# How programs mark the base of a number.
_MARKS_OF_BASES = {2: "0B", 8: "0O", 16: "0X"}
_WORDS_ONLY = re.compile(r"[a-z][a-z' ]*")
_MEANINGS = {
    "nothing": re.compile(
        r"none|empty set|(?:there (?:is|are|exists?) )?(?:\w+ (?:has|have) )?"
        r"no (?:(?:real|such|integer|valid|positive) )*(?:solutions?|roots?|numbers?|values?|integers?)(?: exists?)?"
    ),
    "everything": re.compile(r"(?:all|every|any) real(?: numbers?|s)?(?: x)?|real numbers|all x"),
    "infinite": re.compile(r"infinitely many(?: \w+s)?|infinite(?: number of)?(?: solutions?)?|infty|infinity"),
    "undefined": re.compile(r"(?:(?:it|limit) )?does not exist|doesn t exist|dne|(?:is )?(?:undefined|not defined)"),
}
_INNER_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.DOTALL)
_STOP_IN_MARK = re.compile(r"(?<![.⟦])[.,;:]\s*⟧$")
# Spaces mean nothing, unless they keep numbers apart.
_SPACE = re.compile(r"(?<!\d) | (?!\d)")
# Braces around one sign that nothing follows say nothing: \pmod{4} is \pmod 4.
_ONE_IN_BRACES = re.compile(r"(?<![\d}])\{(\w)\}(?!\w)")
_NESTED_BOXES = 8
_ORDINAL = re.compile(r"(\d)(?:\^\{?)?\s*⟦?(?:st|nd|rd|th)⟧?\}?$")


@dataclass(frozen=True)
class Reference:
    """A reference, as far as it is understood.

    Attributes:
        plain: its text in one spelling.
        node: what it reads as; None where it is words, or unreadable for the `reason`.
        base: the base and digits of a number that names its base.
        is_words: whether it is words, and no mathematics.
        is_number: whether it is a rational number without a unit.
        moment: the time of day or date that it is, where it is one; a time without its half may also be a ratio.
        congruence: the congruence that it is, where it is one.
    """

    plain: str
    node: Node | None = None
    reason: str = ""
    base: tuple[int, str] | None = None
    is_words: bool = False
    is_number: bool = False
    moment: Time | Date | None = None
    congruence: Congruence | None = None

    @property
    def value(self) -> Fraction:
        """The number that it is."""
        assert self.node is not None
        return self.node.value


def reference_text(answer: str) -> str:
    r"""The reference within what a row calls its answer: behind GSM8K's ####, or in the last \boxed{} of a solution."""
    if "####" in answer:
        return answer.rpartition("####")[2].strip()
    if "\\boxed" in answer:
        found = find_answer(answer, "boxed")
        if found.texts:
            return ", ".join(found.texts)
    return answer.strip()


@lru_cache(maxsize=4096)
def read_reference(gold: str) -> Reference:
    plain = without_ordinal(trimmed(plain_mathematics(without_box(gold))))
    based = BASED.fullmatch(plain)
    if based and base_of(based):
        return Reference(plain, base=(base_of(based), based[1].upper().lstrip("0") or "0"))
    if words.choice_of(plain) and "⟦" in plain:
        return Reference(plain, is_words=True)
    moment, congruence = moment_of(plain), congruence_of(plain)
    if congruence is not None or isinstance(moment, Date) or (moment is not None and moment.half == "said"):
        return Reference(plain, moment=moment, congruence=congruence)
    try:
        node = read_plain(plain)
        if not symbols(node):
            same(node, node)  # it must have a value
    except NoValue as error:
        return Reference(plain, reason=str(error), moment=moment)
    except Unreadable as error:
        if words.has_words_only(plain):
            return Reference(plain, is_words=True)
        stripped = words.without_prefix(plain)
        if stripped != plain:
            return read_reference(stripped)
        # Words around one number: "5 apples". The letter of an option is no such word.
        said = "" if words.option_of(plain)[0] else words.number_in_sentence(plain)[0]
        return read_reference(said) if said else Reference(plain, reason=str(error))
    return Reference(plain, node, is_number=node.kind == "number", moment=moment)


def read_plain(plain: str) -> Node:
    """The answer or reference as a tree, with words for sets of numbers read as these sets."""
    meaning = meaning_of(words.words_of(plain)) if _WORDS_ONLY.fullmatch(words.without_marks(plain).lower()) else ""
    if meaning == "nothing":
        return Node("constant", name="emptyset")
    if meaning == "everything":
        return Node("constant", name="reals")
    return read_mathematics(plain)


def meaning_of(given: tuple[str, ...]) -> str:
    """What words of several spellings mean: "nothing" for no solution, "everything" for all real numbers, "infinite",
    "undefined"; empty for others."""
    text = " ".join(given)
    return next((meaning for meaning, said in _MEANINGS.items() if said.fullmatch(text)), "")


def base_of(based: re.Match[str]) -> int:
    """The base that a number names; 0 if it is none, or has digits that the base has not."""
    named = based[2] or based[3] or ""
    base = int(named) if re.fullmatch(r"\d{1,2}", named) else _BASE_WORDS.get(named.lower(), 0)
    return base if 2 <= base <= 36 and value_in(base, based[1]) is not None else 0


def value_in(base: int, digits: str) -> int | None:
    try:
        return int(digits, base)
    except ValueError:
        return None


def digits_in(base: int, plain: str) -> str:
    """The digits of an answer to a question about a base, which may leave the base out."""
    based = BASED.fullmatch(plain)
    if based:
        return (based[1].upper().lstrip("0") or "0") if base_of(based) == base else ""
    digits = plain.replace(" ", "").upper()
    return digits.removeprefix(_MARKS_OF_BASES.get(base, "")).lstrip("0") or "0"


def without_box(text: str) -> str:
    for _ in range(_NESTED_BOXES):
        match = _INNER_BOX.search(text) if "\\boxed" in text or "\\fbox" in text else None
        if match is None:
            break
        text = match[1]
    return text


def trimmed(plain: str) -> str:
    """Without the punctuation and the quotes around an answer."""
    plain = plain.strip().strip("\"'`").strip()
    while plain and plain[-1] in ".,;:?" and not plain.endswith(".."):
        plain = plain[:-1].rstrip()
    return _STOP_IN_MARK.sub("⟧", plain)


def without_ordinal(plain: str) -> str:
    """The number that an ordinal counts to: 7 for 7th."""
    return _ORDINAL.sub(r"\1", plain)


def bare(plain: str) -> str:
    return _SPACE.sub("", _ONE_IN_BRACES.sub(r"\1", words.without_marks(plain)))
