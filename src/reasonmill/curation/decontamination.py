"""Nothing of an evaluation in the training data: what shares a 10-gram with it is dropped (R1 paper, decontamination).

Every 10-gram of an evaluation's questions and reference solutions counts, whether or not other evaluation problems
have it too. A text is read in two ways, and a match in either is one: with all its signs, so that the operators and
parentheses of a formula count, and without punctuation and markup, so that a comma, bold letters or LaTeX's dollars
hide nothing. Capitals and forms of the same character never count.

A prompt that is shorter than an n-gram ("make 24 from 3 8 1" has six tokens) is compared as a whole with the data's
whole prompts: a part of another prompt would say little ("make 24 from 3 8 1 5" is another problem).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from reasonmill.types import Conversation, Problem

GRAM_TOKENS = 10

Gram = tuple[str, ...]

# Tags of the transcript: an n-gram does not go from the thinking into the answer.
_TAG = re.compile(r"</?(?:think|answer)>")
# Scripts that put no space between words, where a character is a token: kana, Han, Thai, Lao, Burmese, Khmer.
_UNSPACED = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_TOKEN = re.compile(rf"\d+|[{_UNSPACED}]|[^\W\d{_UNSPACED}]+|[^\w\s]")
# What is no more than markup or spelling: bold letters, emphasis, hyphens, commas in thousands.
_MARKUP = re.compile(r"\*\*|_|(?<=[^\W\d])[*-]|[*-](?=[^\W\d])|(?<=\d),(?=\d{3}(?!\d))")
_SAME = str.maketrans("\u2212\u00d7\u00f7\u00b7\u22c5", "-*/**")  # minus, times, divided by, two dots
_OPERATORS = frozenset("+-*/=<>^%\u00b1\u2264\u2265\u2260\u221a")


def readings_of(text: str) -> tuple[Gram, Gram]:
    """The tokens of a text in order: words, numbers and all signs; and words, numbers and operators alone."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_SAME)
    spaced = _MARKUP.sub(lambda mark: "" if mark[0] == "," else " ", text)
    plain = tuple(token for token in _TOKEN.findall(spaced) if token[0].isalnum() or token in _OPERATORS)
    return tuple(_TOKEN.findall(text)), plain


def grams_of(tokens: Gram) -> Iterator[Gram]:
    """All runs of `GRAM_TOKENS` tokens; none of a shorter text."""
    return (tokens[start : start + GRAM_TOKENS] for start in range(len(tokens) - GRAM_TOKENS + 1))


class HeldOut:
    """What evaluation problems say, ready to be looked for.

    Attributes:
        found: what of it was found in how many conversations.

    Args:
        open_ended: tasks whose gold answer is no solution but one of many good answers, made of stock phrases such as
            "I can't help with that": only their prompts count.
        wording: texts around the questions that say nothing of them, instructions for example. Grams of them, and such
            as reach into them, do not count.
    """

    def __init__(
        self, problems: Iterable[Problem], *, open_ended: Collection[str] = (), wording: Sequence[str] = ()
    ) -> None:
        self.found: Counter[str] = Counter()
        self._prompts: set[Gram] = set()
        self._grams: set[Gram] = set()
        cuts = [reading for text in wording for reading in readings_of(text) if reading]
        for problem in problems:
            # A system prompt stands before every problem, those of the training data as well.
            asked = [message for message in problem.messages if message.role != "system"]
            for message in asked:
                if message.role == "user":
                    self._prompts |= {reading for reading in readings_of(message.content) if reading}
            solutions = () if problem.task in open_ended else (problem.answer, str(problem.meta.get("solution", "")))
            for reading in (r for text in (*(m.content for m in asked), *solutions) for r in readings_of(text)):
                for piece in _without(reading, cuts):
                    self._grams.update(grams_of(piece))

    def overlaps(self, conversation: Conversation) -> bool:
        """Whether a turn of the user is a held-out prompt, or anything in the conversation shares an n-gram with a
        held-out problem or its solution."""
        match = next(self._matches(conversation), None)
        if match is not None:
            self.found[" ".join(match)] += 1
        return match is not None

    def _matches(self, conversation: Conversation) -> Iterator[Gram]:
        for message in conversation.messages:
            for reading in readings_of(message.content):
                if message.role == "user" and reading in self._prompts:
                    yield reading
                yield from (gram for gram in grams_of(reading) if gram in self._grams)
        for text in _TAG.split(conversation.response):
            for reading in readings_of(text):
                yield from (gram for gram in grams_of(reading) if gram in self._grams)


def _without(tokens: Gram, cuts: Iterable[Gram]) -> list[Gram]:
    """What is left of a text on both sides of each place where it has the tokens of a cut."""
    pieces = [tokens]
    for cut in cuts:
        pieces = [part for piece in pieces for part in _split(piece, cut)]
    return pieces


def _split(tokens: Gram, cut: Gram) -> Iterator[Gram]:
    start = place = 0
    while place <= len(tokens) - len(cut):
        if tokens[place : place + len(cut)] == cut:
            yield tokens[start:place]
            start = place = place + len(cut)
        else:
            place += 1
    yield tokens[start:]
