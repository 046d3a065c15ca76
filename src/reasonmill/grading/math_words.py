"""Answers in words: numbers that are spelled out, sentences around one number, and answers that are no numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from reasonmill.grading.math_spelling import WORD_CLOSE, WORD_OPEN

_ONES = dict(
    zip(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ],
        range(20),
        strict=True,
    )
)
_TENS = dict(
    zip(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], range(20, 100, 10), strict=True)
)
_ORDINALS = {
    name: place
    for place, name in enumerate(
        ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"), start=1
    )
}
_MAX_UNIT_WORDS = 3
# Longer answers are not read.
_MAX_CHARACTERS = 4000
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
}
_PARTS |= {"ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000}
_MIXED_IN_WORDS = re.compile(r"(\d{1,30}) and (\d{1,30})\s*/\s*(\d{1,30})")
_OUT_OF = re.compile(r"(\d{1,30}) (?:out of|in) (\d{1,30})")
_NUMBER_OF_PARTS = re.compile(r"(\d{1,30})[ -]([a-z]{4,})")
_NOT_A_WORD = re.compile(r"[^a-z0-9]+")
_ARTICLES = {"the", "an", "and"}
# What turns a sentence around a number into something else than this number.
NEGATIONS = re.compile(
    r"\b(?:not|never|neither|nor|isn't|wrong|incorrect|except|no|cannot|can't)\b|n't\b", re.IGNORECASE
)
_HEDGES = re.compile(
    r"\b(?:or|either|than|least|most|about|approximately|approx|around|roughly|nearly|almost|between|under|over|below|above"
    r"|maybe|perhaps|possibly|probably|might|could|if|unless|minus|negative|half|quarter|third|dozen|times|plus|squared|cubed"
    r"|hundred|thousand|million|billion|percent|factorial|root|pi|infinity|to|greater|less|more|fewer|up)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"^\W*(?:it |this |that |the answer )?(?:is |was )?not\b|\b(?:is|was|be)\s+(?:not|wrong|incorrect|false)\b"
    r"|\b(?:isn't|wasn't|never|rejected|discarded|extraneous|invalid)\b|\bnot\W+[\d\\]|\b(?:wrong|incorrect)\W*$",
    re.IGNORECASE,
)
_QUALIFIED = re.compile(
    r"\b(?:at least|at most|than|maybe|perhaps|possibly|probably|about|approximately|roughly|almost|nearly|or so|up to"
    r"|minus|times|factorial|plus|rejected|discarded|extraneous|invalid)\b|\d\s*(?:squared|cubed)\b",
    re.IGNORECASE,
)
# What leaves open whether the answer is meant: a number is to be named, and not to be tried.
_DOUBTED = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|presumably|might be|could be|may be|not sure|unsure|i guess)\b"
    r"|\bor\s+(?:none|nothing|something|anything|neither|not)\b|\b(?:none|nothing|neither)\s+or\b",
    re.IGNORECASE,
)
# Two numbers with a space or a word of no meaning between them: "12 dragons 13", "12 13"; but "12 of 13", "1 1/2".
_SIDE_BY_SIDE = re.compile(
    r"(?<![\w./])-?\d[\d.]*\s+(?:(?!(?:of|in|per|at|by|to|from|for|over|out|times|plus|minus|is|are|x|mod|hundred|thousand"
    r"|million|billion|trillion|and|with|on|after|before)\b)[A-Za-z]+\s+)?-?(?!\d{3}\b)\d[\d.]*(?![\d/,]*[/\w])\W*$",
    re.IGNORECASE,
)
# A unit behind a comma, where the next member of a list is due.
_UNIT_AS_MEMBER = re.compile(rf"\d\s*,\s*{WORD_OPEN}\s*[^{WORD_CLOSE}\d]+{WORD_CLOSE}\W*$")
_ONE_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Several numbers for one to be right: "15 or 16", "15, 16, 17".
_OFFERED = re.compile(
    r"\d[\s,;.$)]*\b(?:or|maybe|perhaps|possibly|wait|no|but|also|rather|else)\b"
    r"(?:[\s,;.]*\b(?:or|maybe|perhaps|possibly|wait|no|also|even|rather|else)\b)*[\s,;.$(]*-?\d[\d.,/]*(?=\s*(?:$|[!?);]|or\b|[^\W\d]+\W*$))"
    r"|\d[\s$]*[,;][\s$]*-?\d[\d.]*[\s$]*[,;][\s$]*(?:and\s+|or\s+)?-?\d",
    re.IGNORECASE,
)
_JOINED = re.compile(r"[,;/]|\bor\b|\band\b", re.IGNORECASE)
AND = re.compile(r"\band\b|&", re.IGNORECASE)
_NAMES_APART = re.compile(r",|&|\band\b", re.IGNORECASE)
_MAX_ITEM_WORDS = 2
_OPENINGS = {
    *("so", "thus", "hence", "therefore", "then", "finally", "yes", "well", "ok", "okay", "altogether", "overall"),
    *("total", "answer", "sum", "result", "indeed", "ans", "and", "or"),
}
_OTHER_ANSWER = re.compile(r"\(?(?:[A-Z]\)|[A-Z][a-z]+\.?$|\(?[A-Z]\)?$|-?\d|\\)")
_CODE = re.compile(r"[_\"=;<>\[\]{}@#`\\^|~&]|\w\(|\)\.")
_PREFIX = re.compile(
    r"^\s*(?:(?:so|thus|hence|therefore|and|then|we get|we have|i get|finally)\b[,:]?\s*)*(?:(?:(?:the|my|our)\s+)?"
    r"(?:(?:final|correct|required|desired)\s+)?(?:answer|result|value|solution|sum|total)s?(?:\s+of\s+\$?\\?[A-Za-z]+\$?)?"
    r"\s*(?:is|are|was|equals|:|=)\s*(?:equal to\s+)?:?|it is|it's|equals|is|=|\\approx|ans(?:wer)?:)\s*(?=\S)",
    re.IGNORECASE,
)
_CONNECTOR = re.compile(r"^\s*(?:so|thus|hence|therefore|then|finally)\b[,:]?\s*(?=\S)", re.IGNORECASE)
_LABEL = re.compile(
    rf"^\s*(?:(?:{WORD_OPEN}[^{WORD_CLOSE}]*{WORD_CLOSE}|\b(?!lambda|return|print|def)[A-Za-z]{{3,}}\b)\s*){{1,8}}"
    r"(?:=|:)\s*(?=\S)"
)
_CHOICE = re.compile(r"^\(?\s*([A-Z])\s*\)?[.:]?$")
_OPTION = re.compile(
    rf"{WORD_OPEN}\s*\(([A-J])\)\s*{WORD_CLOSE}?[\s~:.]*([^\s~:.,;{WORD_CLOSE}][^{WORD_CLOSE}]*){WORD_CLOSE}?"
)
_LETTER = re.compile(r"\b[A-J]\b")
_FIRST_OF_LETTERS = frozenset("(⟦ABCDEFGH")
_BETWEEN_LETTERS = re.compile(r"\band\b|[\s,;&()]")
_LETTERS_LISTED = re.compile(r"[A-H]{2,8}")
_CHOSEN = re.compile(r"^(?:option|choice)?\s*\(?\s*([A-Za-z])\s*(?:\)|\.|:|$)\s*", re.IGNORECASE)


def without_prefix(text: str) -> str:
    """An answer without "the answer is", "Total =" and the like before it."""
    previous = None
    while previous != text and len(text) <= _MAX_CHARACTERS:
        previous = text
        text = _LABEL.sub("", _PREFIX.sub("", _CONNECTOR.sub("", text, count=1), count=1), count=1)
    return text


def without_marks(text: str) -> str:
    """A text without the marks around its words."""
    return " ".join(text.replace(WORD_OPEN, " ").replace(WORD_CLOSE, " ").split())


def has_words_only(text: str) -> bool:
    """Whether a text is words and no mathematics: marked, or of letters that are no row of unknowns."""
    bare = without_marks(text)
    if re.search(r"[\d\\^=+*/<>|{}\[\]]", bare):
        return False
    return WORD_OPEN in text or bool(re.search(r"[A-Za-z]{3,}", bare))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, without case, punctuation and articles."""
    words = [word for word in _NOT_A_WORD.split(without_marks(text).lower()) if word and word not in _ARTICLES]
    return tuple(words[1:] if len(words) > 1 and words[0] == "a" and len(words[1]) > 1 else words)


def contains_words(text: str, wanted: tuple[str, ...]) -> bool:
    """Whether a text has these words, one after the other."""
    words = words_of(text)
    return any(words[place : place + len(wanted)] == wanted for place in range(len(words) - len(wanted) + 1))


def choice_of(gold: str) -> str:
    """The letter of a reference such as "\\text{(C)}"; nothing for other references."""
    match = _CHOICE.fullmatch(without_marks(gold))
    return match[1] if match else ""


def option_of(gold: str) -> tuple[str, str]:
    """The letter and the text of a reference such as "\\textbf{(D)} 5"; nothing for other references."""
    match = _OPTION.fullmatch(gold)
    return (match[1], match[2]) if match else ("", "")


def letters_of(answer: str) -> set[str]:
    """The letters that stand alone in an answer, as those of options do."""
    return set(_LETTER.findall(without_marks(answer)))


def chosen(answer: str) -> str:
    """The letter that an answer such as "(C) 12" begins with."""
    match = _CHOSEN.match(without_marks(answer))
    return match[1].upper() if match else ""


def spelled_number(text: str) -> Fraction | None:
    """The number that English words spell, up to billions: "forty-two", "one hundred and five", "two thirds"."""
    words = [word for word in _NOT_A_WORD.split(text.lower()) if word and word != "and"]
    if len(words) > 20:
        return None
    sign = -1 if words[:1] in (["minus"], ["negative"]) else 1
    words = words[sign == -1 :]
    if len(words) > 2 and words[-2:] == ["a", "half"]:
        whole = _whole_number(words[:-2])
        return None if whole is None else sign * (whole + Fraction(1, 2))
    below = 1
    if len(words) > 1 and (words[-1] in _PARTS or words[-1].removesuffix("s") in _PARTS):
        last_word = words.pop()
        below = _PARTS.get(last_word) or _PARTS[last_word.removesuffix("s")]
        words = ["one"] if words == ["a"] else words
    above = _whole_number(words)
    return None if above is None else sign * Fraction(above, below)


def with_digits(text: str) -> str:
    """A spelled number in digits, with the words behind it: "three hours" is "3 hours"; nothing where there is none."""
    words = text.replace("-", " ").split()
    for count in range(len(words), max(0, len(words) - _MAX_UNIT_WORDS - 1), -1):
        spelled = spelled_number(" ".join(words[:count]))
        if spelled is not None:
            rest = " ".join(words[count:])
            return f"{spelled} {rest}".strip() if not qualified(rest) else ""
    return ""


def number_with_words(text: str) -> str:
    """One number that is told with words between its digits: "2 and 1/2", "7 out of 12", "3 quarters"; else nothing."""
    bare = without_marks(text)
    ordinal = _ORDINALS.get(bare.lower().removeprefix("the "))
    if ordinal:
        return str(ordinal)
    mixed, share, parts = (each.fullmatch(bare) for each in (_MIXED_IN_WORDS, _OUT_OF, _NUMBER_OF_PARTS))
    if mixed:
        return f"{mixed[1]} {mixed[2]}/{mixed[3]}"
    if share:
        return f"{share[1]}/{share[2]}"
    below = _PARTS.get(parts[2]) or _PARTS.get(parts[2].removesuffix("s")) if parts else None
    return f"{parts[1]}/{below}" if parts and below else ""


def _whole_number(words: list[str]) -> int | None:
    if not words:
        return None
    total = part = 0
    last = 10**9 + 1
    for word in words:
        if word in _ONES or word in _TENS:
            value = _ONES.get(word, _TENS.get(word, 0))
            if not (last >= 100 or (last >= 20 and value < 10)):
                return None
            part, last = part + value, value
        elif word in _LARGE and part:
            factor = _LARGE[word]
            part, total, last = (part * 100, total, 100) if factor == 100 else (0, total + part * factor, factor)
        else:
            return None
    return total + part


def offers_several(text: str) -> bool:
    """Whether a text offers several numbers beside each other: "15 or 16", "15, 16, 17"."""
    bare = _THOUSANDS.sub("", without_marks(text))
    return bool(_OFFERED.search(bare) or _SIDE_BY_SIDE.search(bare))


def doubts(text: str) -> bool:
    """Whether an answer leaves open whether it is meant: "maybe 16", "16 or none"."""
    return bool(_DOUBTED.search(without_marks(text)))


def ends_in_a_unit(text: str) -> bool:
    """Whether the last member of a list is a unit: "3,5,cm"."""
    return bool(_UNIT_AS_MEMBER.search(text))


def names_beside(text: str, wanted: str = "") -> bool:
    """Whether an answer stands in a list beside others of another kind: a name, the letter of an option, a number.

    Args:
        wanted: the words of the reference; for references that are numbers nothing, and numbers are not looked at.
    """
    items = [item.strip() for item in _JOINED.split(without_marks(text)) if item.strip()]
    own = words_of(wanted)
    others = [item for item in items if words_of(item) != own and item.lower() not in _OPENINGS]
    if wanted and len(others) == len(items):
        return False
    if not wanted and any(re.search(r"\d", item) and len(item.split()) > _MAX_ITEM_WORDS for item in items):
        return False  # a sentence with a number in it
    return len(items) > 1 and any(
        _OTHER_ANSWER.match(item) and not item.endswith("ly") and bool(wanted or item[:2].strip("(")[:1].isalpha())
        for item in others
    )


def offers_another(text: str, gold: str) -> bool:
    """Whether an answer offers the reference, and something else for it to be: "red or blue", "Ann, Ben and Cora" for
    "Ann and Ben"."""
    said = without_marks(text)
    offered = [words_of(each) for each in re.split(r"\bor\b", said, flags=re.IGNORECASE)]
    if len(offered) > 1 and words_of(gold) in offered:
        return True
    wanted, given = (set(filter(None, map(words_of, _NAMES_APART.split(each)))) for each in (without_marks(gold), said))
    return len(wanted) > 1 and wanted < given


def same_names(gold: str, text: str) -> bool:
    """Whether two texts list the same names, in whatever order: "Ann and Ben" and "Ben, Ann"."""
    listed, given = (sorted(map(words_of, _NAMES_APART.split(without_marks(each)))) for each in (gold, text))
    return len(listed) > 1 and [name for name in listed if name] == [name for name in given if name]


def beside_choice(text: str) -> str:
    """What stands behind the letter that an answer such as "(C) 12" begins with."""
    return _CHOSEN.sub("", without_marks(text), count=1)


def letters_listed(text: str) -> str:
    """The letters of several options, as in "ACD" and "A, C and D", in order; nothing for all else."""
    if text[:1] not in _FIRST_OF_LETTERS:
        return ""
    letters = "".join(sorted(_BETWEEN_LETTERS.sub("", without_marks(text))))
    return letters if _LETTERS_LISTED.fullmatch(letters) and len(set(letters)) == len(letters) else ""


def denies_choice(text: str) -> bool:
    """Whether an answer such as "(B) is wrong" says so of the letter that it begins with."""
    rest = beside_choice(text)
    return bool(
        re.match(
            r"(?:is|was) (?:not|wrong|incorrect|false)\b|(?:isn't|wasn't)\b|(?:wrong|incorrect|rejected)\W*$", rest
        )
    )


def denies(text: str) -> bool:
    """Whether an answer says that it is none: "not 42", "42 is wrong"."""
    return bool(_DENIED.search(without_marks(text)))


def qualified(text: str) -> bool:
    """Whether words around a number make something else of it: "42 at least", "no more than 42"."""
    bare = without_marks(text)
    return bool(NEGATIONS.search(bare) or _QUALIFIED.search(bare))


def number_in_sentence(text: str) -> tuple[str, str]:
    """The one number of a sentence, and why there is none; both are empty where the text is no sentence at all."""
    bare = without_marks(text)
    if _CODE.search(bare):
        return "", ""
    numbers = _ONE_NUMBER.findall(bare)
    if not numbers or not re.search(r"[A-Za-z]", bare):
        return "", ""
    if len(numbers) > 1:
        return "", "it has several numbers"
    if denies(bare):
        return "", ""
    if NEGATIONS.search(bare):
        return "", "it negates something"
    if _HEDGES.search(bare):
        return "", "it says something about the number besides naming it"
    return numbers[0].rstrip(","), ""
