"""The grader of multiple choice: which option does the response choose?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from reasonmill.grading.math_spelling import plain_mathematics, without_markup
from reasonmill.grading.math_words import without_marks
from reasonmill.grading.places import ASKS, Place, answer_text, check_place, find_answer
from reasonmill.grading.verdict import Isolation, Verdict
from reasonmill.types import Problem

# A longer text chooses no option.
_MAX_CHARACTERS = 2000
_MARKS = "()[]{}<>*_.:`\"' "
_LETTER_FIRST = re.compile(
    r"^[(\[*_ ]*(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?[: ]*[(\[*_ ]*)?"
    r"([A-Za-z])[)\]*_ ]*(?:[.:)]|$|\s+-)",
    re.IGNORECASE,
)
# What stands between the letters of several options.
_BETWEEN = re.compile(r"[\s,;/&()\[\]*_.]+|\b(?:and|or)\b")
_STANDING = re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_NEGATED = re.compile(r"\b(?:not|never|neither|nor|except|wrong|incorrect)\b|n't\b", re.IGNORECASE)


class ChoiceGrader:
    """Decides whether a response chooses the right option.

    The reference is a letter ("B", "(B)"), several ("A, C"), the number of an option, or its text. Options stand in
    `problem.meta["options"]`: a list, or a table from letters to texts. With them, an answer may be an option's text.

    Args:
        answer_in: where the answer stands: auto, answer, boxed, last-line, last-number or pattern.
        pattern: a regular expression; its group is the answer.
        first: the number that the first option has in references that are numbers.

    Raises:
        RecipeError: the place is none.
    """

    isolation: Isolation = "none"

    def __init__(self, answer_in: Place = "auto", pattern: str | None = None, first: int = 0) -> None:
        self._pattern = check_place(answer_in, pattern)
        self._place = answer_in
        self._first = first
        self.asks = ASKS[answer_in].replace("answer", "answer, the letter of one option,", 1)

    def answer_of(self, response: str) -> str | None:
        """The final answer of a response, as it writes it; None where there is none."""
        return answer_text(find_answer(response, self._place, self._pattern))

    def judge(self, problem: Problem, response: str) -> Verdict:
        """Judges one response by the letters that its final answer names."""
        options = read_options(problem.meta.get("options", problem.meta.get("choices")))
        gold = self._letters_of_reference(problem.answer, options)
        if not gold:
            return Verdict.could_not_tell(f"the reference {problem.answer[:60]!r} names no option")
        found = find_answer(response, self._place, self._pattern)
        if not found.texts:
            return Verdict.wrong(found.reason, {"answered": 0.0})
        longest = max(_MAX_CHARACTERS, *map(len, options.values()), 0)
        if any(len(text) > longest for text in found.texts):
            return Verdict.wrong(f"an answer of more than {longest:,} characters", {"answered": 0.0})
        chosen: set[str] = set()
        for text in found.texts:
            letters = _chosen(text, options)
            if letters is None:
                return Verdict.could_not_tell(f"it is not clear which option {text[:60]!r} is")
            chosen |= letters
        if not chosen:
            return Verdict.wrong("it chooses no option", {"answered": 0.0})
        if chosen == gold:
            return Verdict.right(parts={"answered": 1.0})
        return Verdict.wrong(f"{', '.join(sorted(chosen))} is not {', '.join(sorted(gold))}", {"answered": 1.0})

    def _letters_of_reference(self, answer: str, options: Mapping[str, str]) -> set[str]:
        plain = _plain(answer)
        texts = [letter for letter, option in options.items() if _same_text(option, answer)]
        if len(texts) == 1 and not re.fullmatch(r"\(?[A-Z]\)?", plain):
            return set(texts)
        if re.fullmatch(r"\d{1,2}", plain):
            place = int(plain) - self._first
            return {chr(ord("A") + place)} if 0 <= place < (len(options) or 26) else set()
        if re.fullmatch(r"[A-Z]{2,}", plain) and (set(plain) <= set(options) or not options):
            return set(plain)
        return _chosen(answer, options) or set()


def read_options(options: Any) -> dict[str, str]:
    """Options by letter, from a list of texts or a table; none where there are none."""
    if isinstance(options, Mapping):
        if set(options) >= {"label", "text"}:  # columns of a table, as ARC has them
            return {
                str(letter).upper(): str(text) for letter, text in zip(options["label"], options["text"], strict=False)
            }
        return {str(letter).strip(_MARKS).upper(): str(text) for letter, text in options.items()}
    if isinstance(options, Sequence) and not isinstance(options, str):
        return {chr(ord("A") + place): str(text) for place, text in enumerate(options)}
    return {}


def _chosen(answer: str, options: Mapping[str, str]) -> set[str] | None:
    """The letters that an answer names; none where it names none, and None where that is not clear."""
    plain = _plain(answer)
    bare = plain.strip(_MARKS)
    if len(bare) == 1 and bare.isalpha():
        return {bare.upper()}
    several = [part for part in _BETWEEN.split(plain) if part]
    if len(several) > 1 and all(re.fullmatch("[A-Z]", part) for part in several):
        return set(several)
    if _NEGATED.search(plain):
        return set()
    texts = {letter for letter, option in options.items() if _same_text(option, answer)}
    if len(texts) == 1:
        return texts
    first = _LETTER_FIRST.match(plain)
    if first:
        others = {letter for letter in _STANDING.findall(plain[first.end() :]) if letter in options or not options}
        named = {letter for letter in others - {first[1].upper()} if re.search(rf"\({letter}\)", plain[first.end() :])}
        return {first[1].upper(), *named}
    letters = set(_STANDING.findall(plain)) - {"I"}
    if options:
        letters &= set(options)
        letters |= {
            letter for letter, option in options.items() if len(_words(option)) > 3 and _words(option) in _words(plain)
        }
    marked = set(re.findall(r"\(([A-Z])\)", plain))
    if marked:
        return marked
    if len(letters) == 1 and "A" not in letters:
        return letters
    return None if letters else set()


def _plain(text: str) -> str:
    return without_marks(plain_mathematics(text)).strip()


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w.+-]+", without_marks(plain_mathematics(without_markup(text))).lower()))


def _same_text(one: str, two: str) -> bool:
    return _words(one) == _words(two) != ""
