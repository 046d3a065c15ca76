"""Twenty-five checks of whether a reply follows an instruction, written after the descriptions in the IFEval paper.

Names and arguments are those of the IFEval data set (Zhou et al. 2023, arXiv:2311.07911, appendix), so that its rows
and those of data sets that took over its names can be checked as they are. The checks are our own: sentences are
split by rules and not by a trained model, and languages are found by `reasonmill.languages`. Each looks at a reply a
few times at most, whatever it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from reasonmill.grading.reply import without_fence
from reasonmill.languages import known_languages, language_share

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

# A reply is in a language that at least so much of its words are in: names and quotations may be in another.
_MOSTLY = 0.8
_WORD = re.compile(r"\w+")
_HYPHENED_WORD = re.compile(r"\w+(?:-\w+)*")
# "U.S." and "DON'T" are one word each.
_WRITTEN_WORD = re.compile(r"\w+(?:['’.-]\w+)*")
# Where a sentence may end: a mark or several, closing quotes and brackets, and then space or the end.
_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|no|fig|inc|ltd|co|approx|dept|est|e\.g|i\.e|a\.m|p\.m|u\.s|u\.k)"
    r"|(?:^|[\s.(])[A-Za-z])\.$",
    re.IGNORECASE,
)
_LAST_CHARACTERS = 12
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_BULLET = re.compile(r"^[ \t]*[*-][ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]*[^*\s][^*\n]*\*\*")
_ITALIC = re.compile(r"\*[^*\n]*[^*\s][^*\n]*\*")
_TITLE = re.compile(r"<<[^<>\n]*[^<>\s][^<>\n]*>>")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
# A divider stands between spaces or ends of lines; what has no space beside it begins or ends bold italics.
_RULE = re.compile(r"(?<!\S)\*\*\*(?!\S)")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_BETWEEN_RESPONSES = "******"


class InstructionError(ValueError):
    """An instruction that can't be checked, because it is not known or its arguments are not what it needs."""


def number_of_sentences(text: str) -> int:
    """How many sentences a text has. Abbreviations and initials end none; what stands after the last mark is one."""
    count, start = 0, 0
    for match in _END.finditer(text):
        if _ABBREVIATION.search(text[max(start, match.end() - _LAST_CHARACTERS) : match.end()]):
            continue
        count += _WORD.search(text, start, match.end()) is not None
        start = match.end()
    return count + (_WORD.search(text, start) is not None)


def _needed(given: Arguments, name: str, kind: type) -> Any:
    value = given.get(name)
    if isinstance(value, float) and kind is int and value.is_integer():  # as Parquet gives numbers beside nulls
        return int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InstructionError(f"needs {name!r}, and has {value!r}")
    return value


def _text(given: Arguments, name: str) -> str:
    value: str = _needed(given, name, str)
    if not value.strip():
        raise InstructionError(f"needs {name!r}, which is empty")
    return value


def _texts(given: Arguments, name: str) -> list[str]:
    values = _needed(given, name, list)
    if not values or not all(isinstance(value, str) and value for value in values):
        raise InstructionError(f"needs {name!r} as a list of texts, and has {values!r}")
    return list(values)


def _number(given: Arguments, name: str) -> int:
    value: int = _needed(given, name, int)
    return value


def _compares(count: int, given: Arguments, number: str, relation: str) -> bool:
    """Whether a count is as the arguments want it: "at least" or "less than" a number."""
    wanted, how = _number(given, number), given.get(relation)
    if how not in ("at least", "less than"):
        raise InstructionError(f"{relation!r} must be 'at least' or 'less than', and is {how!r}")
    return count >= wanted if how == "at least" else count < wanted


def _whole_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _share(reply: str, language: str) -> float | None:
    if language.split("-")[0].lower() not in known_languages():
        raise InstructionError(f"no measure knows the language {language!r}")
    return language_share(reply, language)


def _may_be_english(reply: str) -> bool:
    """Where only the letters' case is asked for, a reply of two words is taken for English."""
    share = _share(reply, "en")
    return share is None or share >= _MOSTLY


# Keywords


def _existence(reply: str, given: Arguments) -> bool:
    return all(keyword.lower() in reply.lower() for keyword in _texts(given, "keywords"))


def _frequency(reply: str, given: Arguments) -> bool:
    return _compares(reply.lower().count(_text(given, "keyword").lower()), given, "frequency", "relation")


def _forbidden(reply: str, given: Arguments) -> bool:
    return not any(_whole_word(word).search(reply) for word in _texts(given, "forbidden_words"))


def _letters(reply: str, given: Arguments) -> bool:
    letter = _text(given, "letter")
    if len(letter) != 1:
        raise InstructionError(f"needs one letter, and has {letter!r}")
    return _compares(reply.lower().count(letter.lower()), given, "let_frequency", "let_relation")


# Lengths


def _sentences(reply: str, given: Arguments) -> bool:
    return _compares(number_of_sentences(reply), given, "num_sentences", "relation")


def _words(reply: str, given: Arguments) -> bool:
    return _compares(len(_WORD.findall(reply)), given, "num_words", "relation")


def _between(pieces: list[str]) -> list[str]:
    """What stands between dividers: one before the first piece or behind the last one is a matter of taste."""
    stripped = [piece.strip() for piece in pieces]
    return stripped[not stripped[0] : len(stripped) - (not stripped[-1])] if len(stripped) > 1 else stripped


def _paragraphs(reply: str, given: Arguments) -> bool:
    wanted = _number(given, "num_paragraphs")
    pieces = _between(_RULE.split(reply))
    return all(pieces) and len(pieces) == wanted


def _first_word(reply: str, given: Arguments) -> bool:
    pieces = [piece.strip() for piece in _PARAGRAPH.split(reply) if piece.strip()]
    nth, wanted = _number(given, "nth_paragraph"), _text(given, "first_word")
    if not 1 <= nth <= _number(given, "num_paragraphs"):
        raise InstructionError(f"there is no paragraph {nth} of {given['num_paragraphs']}")
    if len(pieces) != given["num_paragraphs"]:
        return False
    first = _HYPHENED_WORD.search(pieces[nth - 1])
    return first is not None and first[0].lower() == wanted.strip().lower()


# Content and format


def _placeholders(reply: str, given: Arguments) -> bool:
    return len(_PLACEHOLDER.findall(reply)) >= _number(given, "num_placeholders")


def _postscript(reply: str, given: Arguments) -> bool:
    letters = [letter for letter in _text(given, "postscript_marker") if letter.isalnum()]
    if not letters:
        raise InstructionError(f"{given['postscript_marker']!r} marks no postscript")
    # Within a line it has its points; at the beginning of one, whatever its dress, "PS:" will do.
    begun, within = (rf"{stop}[ \t]?".join(map(re.escape, letters)) for stop in (r"\.?", r"\."))
    marker = rf"^(?:[^\w\n]|_)*{begun}(?!\w)|(?<![\w.]){within}\."
    found = re.search(marker, reply, re.IGNORECASE | re.MULTILINE)
    return found is not None and _WORD.search(reply, found.end()) is not None


def _bullets(reply: str, given: Arguments) -> bool:
    return len(_BULLET.findall(reply)) == _number(given, "num_bullets")


def _constrained(reply: str, given: Arguments) -> bool:
    return sum(answer in reply for answer in _ANSWERS) == 1


def _highlights(reply: str, given: Arguments) -> bool:
    bold = len(_BOLD.findall(reply))
    return bold + len(_ITALIC.findall(_BOLD.sub(" ", reply))) >= _number(given, "num_highlights")


def _sections(reply: str, given: Arguments) -> bool:
    splitter = _text(given, "section_spliter").strip()
    heads = re.findall(rf"(?<!\w){re.escape(splitter)}[ \t]*(\d+)", reply)
    return len(set(heads)) >= _number(given, "num_sections")


def _json(reply: str, given: Arguments) -> bool:
    try:
        return isinstance(json.loads(without_fence(reply)), dict | list)
    except (ValueError, RecursionError):
        return False


def _title(reply: str, given: Arguments) -> bool:
    return _TITLE.search(reply) is not None


def _two_responses(reply: str, given: Arguments) -> bool:
    pieces = _between(reply.split(_BETWEEN_RESPONSES))
    return len(pieces) == 2 and all(pieces) and pieces[0] != pieces[1]


def _repeat(reply: str, given: Arguments) -> bool:
    asked = _text(given, "prompt_to_repeat").strip().lower()
    said = reply.strip().lower()
    return said.startswith(asked) and len(said) > len(asked)


def _end(reply: str, given: Arguments) -> bool:
    return reply.strip().strip('"').lower().endswith(_text(given, "end_phrase").strip().strip('"').lower())


def _quotation(reply: str, given: Arguments) -> bool:
    said = reply.strip()
    return len(said) > 2 and said[0] == said[-1] == '"'


# Letters


def _capital_words(reply: str, given: Arguments) -> bool:
    count = sum(word.isupper() for word in _WRITTEN_WORD.findall(reply))
    return _compares(count, given, "capital_frequency", "capital_relation")


def _capitals(reply: str, given: Arguments) -> bool:
    return reply.isupper() and _may_be_english(reply.lower())


def _lowercase(reply: str, given: Arguments) -> bool:
    return reply.islower() and _may_be_english(reply)


def _language(reply: str, given: Arguments) -> bool:
    share = _share(reply, _text(given, "language"))
    return share is not None and share >= _MOSTLY


def _no_comma(reply: str, given: Arguments) -> bool:
    return "," not in reply


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capitals,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
