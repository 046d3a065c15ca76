"""The grader of short texts: names, words, phrases; equal, or similar enough."""

from __future__ import annotations

import difflib
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Literal

from reasonmill.errors import RecipeError
from reasonmill.grading.math_words import NEGATIONS
from reasonmill.grading.places import ASKS, Place, answer_text, check_place, find_answer
from reasonmill.grading.verdict import Isolation, Verdict
from reasonmill.types import Problem

_MAX_CHARACTERS = 10_000
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "“”‘’«»…–—", " "))
_NUMBERS = re.compile(r"\d+")

Match = Literal["exact", "strict", "fuzzy"]


class TextGrader:
    """Decides whether the final answer of a response is the reference text.

    `problem.meta["answers"]` may list further texts that are right.

    Args:
        match: "exact" leaves case, punctuation, articles and spaces out; "strict" compares every character but
            spaces at both ends; "fuzzy" also allows slips of spelling.
        similarity: from which share of common characters on two texts are alike; for "fuzzy" only.
        answer_in: where the answer stands: auto, answer, boxed, last-line, last-number or pattern.
        pattern: a regular expression; its group is the answer.

    Raises:
        RecipeError: a setting is wrong, or has no effect.
    """

    isolation: Isolation = "none"

    def __init__(
        self,
        match: Match = "exact",
        similarity: float | None = None,
        answer_in: Place = "auto",
        pattern: str | None = None,
    ) -> None:
        if similarity is not None and match != "fuzzy":
            raise RecipeError('similarity has no effect without match = "fuzzy"', fix="leave it out")
        if similarity is not None and not 0 < similarity <= 1:
            raise RecipeError(f"similarity must lie in (0, 1], got {similarity}")
        self._match = match
        self._similarity = 0.9 if similarity is None else similarity
        self._pattern = check_place(answer_in, pattern)
        self._place = answer_in
        self.asks = ASKS[answer_in]

    def answer_of(self, response: str) -> str | None:
        """The final answer of a response, as it writes it; None where there is none."""
        return answer_text(find_answer(response, self._place, self._pattern))

    def judge(self, problem: Problem, response: str) -> Verdict:
        """Judges one response; the part `similarity` is that of its answer to the reference that is closest."""
        wanted = [problem.answer, *map(str, problem.meta.get("answers", ()))]
        if not any(text.strip() for text in wanted):
            return Verdict.could_not_tell("the reference is empty")
        found = find_answer(response, self._place, self._pattern)
        if not found.texts:
            return Verdict.wrong(found.reason, {"answered": 0.0})
        if max(map(len, wanted)) > _MAX_CHARACTERS:
            return Verdict.could_not_tell(f"a reference of more than {_MAX_CHARACTERS:,} characters")
        if max(map(len, found.texts)) > _MAX_CHARACTERS:
            return Verdict.wrong(f"an answer of more than {_MAX_CHARACTERS:,} characters", {"answered": 1.0})
        each = [self._of_one(text, wanted) for text in found.texts]
        parts = {"answered": 1.0, "similarity": min(similarity for _, similarity in each)}
        if all(right for right, _ in each):
            return Verdict.right(parts=parts)
        if len(each) > 1:
            return Verdict.wrong(f"it gives {len(each)} final answers that differ", parts)
        return Verdict.wrong(f"{found.texts[0][:60]!r} is not {wanted[0][:60]!r}", parts)

    def _of_one(self, answer: str, wanted: Sequence[str]) -> tuple[bool, float]:
        """Whether an answer is one of the texts, and its similarity to the closest."""
        answer = _without_command(answer)
        if self._match == "strict":
            right = any(answer.strip() == text.strip() for text in wanted)
            return right, float(right)
        plain = plain_text(answer)
        best = 0.0
        for text in map(plain_text, wanted):
            if plain == text:
                return True, 1.0
            best = max(best, _similarity(plain, text))
        return self._match == "fuzzy" and best >= self._similarity, best


def plain_text(text: str) -> str:
    """A text without case, punctuation, articles and superfluous spaces; of punctuation alone, the text itself."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = " ".join(_ARTICLES.sub(" ", folded.translate(_PUNCTUATION)).split())
    return plain or " ".join(folded.split())


def _similarity(one: str, two: str) -> float:
    """Share of common characters; 0 where numbers or a negation differ, which no slip of spelling explains."""
    if _NUMBERS.findall(one) != _NUMBERS.findall(two) or bool(NEGATIONS.search(one)) != bool(NEGATIONS.search(two)):
        return 0.0
    return difflib.SequenceMatcher(None, one, two, autojunk=False).ratio()


def _without_command(text: str) -> str:
    match = re.fullmatch(r"\s*\$?\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}\$?\s*", text)
    return match[1] if match else text
