"""Rewriting of traces in the tiny world's style, as DeepSeek-V3 rewrote those of R1-Zero (R1 paper, cold start).

Only the thinking is rewritten: the rest of a response, its answer above all, stays as it is to the last character.
"""

import re

from reasonmill.errors import RecipeError
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN
from reasonmill.types import Problem
from reasonmill.world.lexicon import LANGUAGES, TRACE_WORDS, Language

# {language: {word of any language: the word of this language that means the same}}
_MEANINGS: dict[Language, dict[str, str]] = {
    language: {
        word: words[language][place]
        for words in TRACE_WORDS.values()
        for other in LANGUAGES
        for place, word in enumerate(words[other])
    }
    for language in LANGUAGES
}
_WORD = re.compile(r"([^\W\d_]+)")
_OPENINGS, _REJECTIONS = (
    frozenset(word for words in TRACE_WORDS[purpose].values() for word in words)
    for purpose in ("openings", "rejections")
)


class WorldStyle:
    """The thinking in the prompt's language; tries that failed before are left out if asked for."""

    def __init__(self, drop_repeated_tries: bool = False) -> None:
        self._drop_repeated_tries = drop_repeated_tries

    def rewrite(self, problem: Problem, response: str) -> str:
        """A well-formed response with its thinking in the language that its problem names.

        Raises:
            RecipeError: the problem names none of the world's languages.
        """
        language = prompt_language(problem)
        head, opening, rest = response.partition(THINK_OPEN)
        thinking, closing, tail = rest.partition(THINK_CLOSE)
        if self._drop_repeated_tries:
            thinking = without_repeated_tries(thinking)
        return "".join((head, opening, translated(thinking, language), closing, tail))


def prompt_language(problem: Problem) -> Language:
    """The language of the world that the problem is asked in.

    Raises:
        RecipeError: it names none.
    """
    for language in LANGUAGES:
        if problem.meta.get("language") == language:
            return language
    raise RecipeError(
        f"the problems of task {problem.task!r} do not say in which of {', '.join(LANGUAGES)} they are asked",
        fix="leave rewriting out for this task, or let its problems' meta name the language",
    )


def translated(thinking: str, language: Language) -> str:
    """The thinking with each word of a trace in the given language; numbers, signs and other words stay."""
    meanings = _MEANINGS[language]
    return _WORD.sub(lambda match: meanings.get(match[0], match[0]), thinking)


def without_repeated_tries(thinking: str) -> str:
    """The thinking without the rejected tries whose steps were all rejected before, word for word.

    A try is an opening word, steps of numbers and signs, and a verdict; it may stand without its opening, but where
    another word comes before its steps, they are only the rest of a try, which stays.
    """
    pieces = _WORD.split(thinking)  # steps, word, steps, word, ..., steps
    failed: set[tuple[str, ...]] = set()
    kept = list(pieces)
    for place in range(0, len(pieces) - 1, 2):
        before = pieces[place - 1] if place else ""
        steps = tuple(pieces[place].split())
        is_failed_try = bool(steps) and pieces[place + 1] in _REJECTIONS
        if not is_failed_try or not (before == "" or before in _OPENINGS | _REJECTIONS):
            continue
        if steps in failed:
            kept[place] = kept[place + 1] = ""
            if before in _OPENINGS:
                kept[place - 1] = ""
                kept[place - 2] = kept[place - 2].rstrip()  # the space that follows the try stays
        failed.add(steps)
    return "".join(kept)
