"""Rewriting of traces in the tiny world's style, as DeepSeek-V3 rewrote those of R1-Zero (R1 paper, cold start).

Only the thinking is rewritten: the rest of a response, its answer above all, stays as it is to the last character.
"""

import re

from reasonmill.errors import RecipeError
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN
from reasonmill.types import Problem
from reasonmill.world.lexicon import GIVE_UPS, LANGUAGES, OPENINGS, REJECTIONS, STEPS, SUCCESSES, Language

_TABLES = (OPENINGS, REJECTIONS, SUCCESSES, STEPS, GIVE_UPS)
# {language: {word of any language: the word of this language that means the same}}
_MEANINGS: dict[Language, dict[str, str]] = {
    language: {
        word: table[language][place]
        for table in _TABLES
        for other in LANGUAGES
        for place, word in enumerate(table[other])
    }
    for language in LANGUAGES
}
_WORD = re.compile(r"([^\W\d_]+)")


def _words_of(*tables: dict[Language, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(word for table in tables for language in LANGUAGES for word in table[language])


_OPENINGS, _REJECTIONS = _words_of(OPENINGS), _words_of(REJECTIONS)


def prompt_language(problem: Problem) -> Language:
    """The language of the world that the problem is asked in.

    Raises:
        RecipeError: the problem does not say.
    """
    for language in LANGUAGES:
        if problem.meta.get("language") == language:
            return language
    raise RecipeError(
        f"the problems of task {problem.task!r} do not say which language of the tiny world they are asked in",
        fix='leave rewrite = "world-style" out for this task: it is for the tasks of the tiny world',
    )


def in_world_style(response: str, language: Language, *, drop_repeated_tries: bool) -> str:
    """The response with its thinking in the prompt's language; tries that failed before are left out if asked for.

    Args:
        response: a well-formed response.
        language: that of the prompt.
    """
    head, opening, rest = response.partition(THINK_OPEN)
    thinking, closing, tail = rest.partition(THINK_CLOSE)
    if drop_repeated_tries:
        thinking = without_repeated_tries(thinking)
    return "".join((head, opening, translated(thinking, language), closing, tail))


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
