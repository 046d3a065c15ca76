"""The words of the tiny world's two languages, and what a text's language is.

No word belongs to both languages: a word that is spelled the same in English and German ("in", "was", "die") would
make the language of a text a guess, so the world does without it. Names belong to no language. German is written
without umlauts, with words that have none, so that every text of the world is ASCII.
"""

import re
from typing import Literal

from reasonmill.world.tables import table

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")

_TABLE = table(__name__)

# Words of the reasoning traces by their purpose: openings of a try, rejections and successes that end it, steps of
# arithmetic, and what gives up. An entry means the same in both languages at the same place.
TRACE_WORDS: dict[str, dict[Language, tuple[str, ...]]] = _TABLE["traces"]
PROMPT_WORDS: dict[Language, tuple[str, ...]] = _TABLE["prompts"]

_REASONING_WORDS = (*TRACE_WORDS.values(), PROMPT_WORDS)
WORDS: dict[Language, frozenset[str]] = {
    language: frozenset(_TABLE["talk"][language]).union(*(words[language] for words in _REASONING_WORDS))
    for language in LANGUAGES
}

# {"places": ..., "people": ...}
NAMES_OF: dict[str, tuple[str, ...]] = _TABLE["names"]
NAMES: frozenset[str] = frozenset(name for names in NAMES_OF.values() for name in names)

_TAG = re.compile(r"</?[a-z_]+>")
_LETTERS = re.compile(r"[^\W\d_]+")


# What takes back what is said with it: no answer that holds has one of these words.
NEGATIONS = frozenset(_TABLE["negations"])


def words_in(text: str) -> list[str]:
    """The words of a text in order, lower-case: runs of letters outside tags such as <think>."""
    return _LETTERS.findall(_TAG.sub(" ", text.lower()))


def language_of(word: str) -> Language | None:
    """The language that a lower-case word belongs to; None for names, numbers and unknown words."""
    return next((language for language in LANGUAGES if word in WORDS[language]), None)


def language_share(text: str, language: str) -> float | None:
    """Share of the words of `language` among the words that belong to either language; None if there is no such word.

    Numbers, operators, tags, names and unknown words do not count (DeepSeek-R1, language-consistency reward).

    Raises:
        ValueError: the world does not speak the language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}; the tiny world speaks {' and '.join(LANGUAGES)}")
    languages = [found for word in words_in(text) if (found := language_of(word)) is not None]
    if not languages:
        return None
    return sum(found == language for found in languages) / len(languages)
