"""Which languages a text is written in, and what share of its words each of them has.

Scripts that only one language uses decide alone; words of Latin, Cyrillic, Arabic and Devanagari are distinguished by
py3langid, in short windows, because thinking changes its language within a sentence. Formulas, code, numbers, names of
variables and words that nothing is sure about count for no language.

The same text gives the same shares in every process. On another kind of processor the last bits of the classifier's
sums may differ, which matters only where two languages are equally likely to the sixth digit.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reasonmill.types import Problem

LanguageShare = Callable[[str, str], float | None]
"""(text, language) to the share of the language's words among those that can be judged; None where there are none.

A measure raises ValueError for a language that it does not know, whatever the text.
"""

# Words of a window: at five of them the classifier is right in 99 % of cases, and switches of language still show.
WINDOW = 5
STRIDE = 2
# Clauses with fewer words are judged together with the next one.
CLAUSE_WORDS = 4
# With fewer words of its script in the whole text, a word has no language.
MIN_WORDS = 3
# A text has the languages that some window shows with this probability, and no other.
SURE = 0.7
# Share of a prompt's words from which its language is taken.
DOMINANT = 0.6
# Longer runs of letters are keys, hashes or noise.
MAX_LETTERS = 50
# Words of capitals with at most as many letters are points of a triangle, or abbreviations.
MAX_CAPITALS = 4
# Han characters without kana beside them, up to which Japanese is as likely as Chinese.
SHORT_HAN = 5


@dataclass(frozen=True, slots=True)
class _Script:
    """Characters as ranges of a regular expression, and the languages that are written with them.

    `letters_per_word` is about what a word has where no spaces separate words, and 0 elsewhere.
    """

    characters: str
    languages: tuple[str, ...]
    letters_per_word: int = 0


_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_SCRIPTS = {name: _Script(**row) for name, row in _TABLE["scripts"].items()}
_BREAK = "break"


def _token_pattern() -> re.Pattern[str]:
    parts = [f"(?P<{_BREAK}>[{_TABLE['breaks']}]+)"]
    for name, script in _SCRIPTS.items():
        run = f"[{script.characters}]++"
        parts.append(f"(?P<{name}>{run})" if script.letters_per_word else f"(?P<{name}>{run}(?:['\u2019]{run})*+)")
    return re.compile("|".join(parts))


_TOKEN = _token_pattern()

_CODE_OR_FORMULA = re.compile("|".join(_TABLE["code_or_formula"]), re.DOTALL)
_NOT_PROSE = re.compile("|".join(_TABLE["not_prose"]))
_ASCII = re.compile(r"[\x00-\x7f]+")


def known_languages() -> frozenset[str]:
    """The languages that `language_share` can measure, by their ISO 639-1 codes."""
    return frozenset(language for script in _SCRIPTS.values() for language in script.languages)


def language_share(text: str, language: str) -> float | None:
    """Share of a language's words among the words of the text whose language is known; None if there are none.

    Two characters of Chinese or Japanese count as a word. The time it takes is linear in the length of the text.

    Raises:
        ValueError: the language is not one of `known_languages`; a region as in "zh-CN" does not matter.
    """
    code = re.split("[-_]", language.lower(), maxsplit=1)[0]
    if code not in known_languages():
        raise ValueError(f"unknown language {language!r}; use one of {', '.join(sorted(known_languages()))}")
    words = _words_by_language(text)
    total = sum(words.values())
    return words.get(code, 0.0) / total if total else None


@lru_cache(maxsize=4096)  # every completion of a group asks for the same prompt
def detect_language(text: str) -> str | None:
    """The language of most of a text's words; None where that is not sure, as in a formula or in a word or two."""
    words = _words_by_language(text)
    if not words:
        return None
    language, count = max(words.items(), key=lambda item: (item[1], item[0]))
    return language if count >= DOMINANT * sum(words.values()) else None


def problem_language(problem: Problem, share: LanguageShare) -> str | None:
    """The language that a problem is asked in: what its `meta` names, or else that of the last message.

    None where the measure knows neither.
    """
    named = problem.meta.get("language")
    if isinstance(named, str) and _knows(share, named):
        return named
    detected = detect_language(problem.messages[-1].content)
    return detected if detected is not None and _knows(share, detected) else None


def _knows(share: LanguageShare, language: str) -> bool:
    try:
        share("", language)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Word:
    """A word, or a run of characters without spaces. `clause` counts the breaks before it."""

    text: str
    script: str
    clause: int


def _words_by_language(text: str) -> dict[str, float]:
    """How many words of each language a text has; languages without any are left out."""
    by_script: defaultdict[str, list[_Word]] = defaultdict(list)
    for word in _words(text):
        by_script[word.script].append(word)
    found = dict(_chinese_and_japanese([*by_script.pop("han", ()), *by_script.pop("kana", ())]))
    for script, words in by_script.items():
        languages = _SCRIPTS[script].languages
        found |= _classified(words, script) if len(languages) > 1 else {languages[0]: sum(map(_size, words))}
    return {language: size for language, size in found.items() if size}


def _prose(text: str) -> str:
    """The text without code, formulas, tags and names of variables.

    What code and formulas say in another script than Latin is left in: a policy must not be able to think there.
    """
    text = _CODE_OR_FORMULA.sub(lambda match: _ASCII.sub(" ", match.group()), text)
    return _NOT_PROSE.sub(" ", text)


def _words(text: str) -> Iterator[_Word]:
    """The words of a text that can belong to a language, in order."""
    clause, last = 0, _BREAK
    for match in _TOKEN.finditer(_prose(text)):
        script, token = match.lastgroup or _BREAK, match.group()
        family = "han" if script == "kana" else script
        # What another script interrupts is two clauses.
        clause += family != last
        last = family
        if script != _BREAK and _is_word(token, script):
            yield _Word(token, script, clause)


def _is_word(token: str, script: str) -> bool:
    """Whether a run of letters can be a word, and is no variable, point, abbreviation, key or hash."""
    if _SCRIPTS[script].letters_per_word:
        return True
    if script in ("latin", "greek") and (len(token) < 2 or (len(token) <= MAX_CAPITALS and token.isupper())):
        return False
    return len(token) <= MAX_LETTERS


def _size(word: _Word) -> float:
    """How many words it counts as."""
    letters = _SCRIPTS[word.script].letters_per_word
    return len(word.text) / letters if letters else 1.0


def _chinese_and_japanese(words: Sequence[_Word]) -> Mapping[str, float]:
    """Clauses with kana are Japanese and others Chinese; short ones without kana are what the text is, by and large."""
    clauses: defaultdict[int, list[_Word]] = defaultdict(list)
    for word in words:
        clauses[word.clause].append(word)
    found = {"ja": 0.0, "zh": 0.0}
    unsure = 0.0
    for clause in clauses.values():
        size = sum(map(_size, clause))
        if any(word.script == "kana" for word in clause):
            found["ja"] += size
        elif sum(len(word.text) for word in clause) > SHORT_HAN:
            found["zh"] += size
        else:
            unsure += size
    found["ja" if found["ja"] > found["zh"] else "zh"] += unsure
    return found


def _classified(words: Sequence[_Word], script: str) -> Mapping[str, float]:
    """Words by language, of a script that several languages share. Each word goes by the windows that it is in."""
    if len(words) < MIN_WORDS:
        return {}
    identifier, languages = _identifier(script), _SCRIPTS[script].languages
    votes = np.zeros((len(words), len(languages)))
    sure = np.zeros(len(languages), dtype=bool)
    for start, stop in _windows([word.clause for word in words]):
        probabilities = dict(identifier.rank(" ".join(word.text for word in words[start:stop])))
        window = np.array([probabilities[language] for language in languages])
        votes[start:stop] += window
        sure |= window >= SURE
    if not sure.any():
        return {}
    counts = np.bincount(np.where(sure, votes, -1.0).argmax(axis=1), minlength=len(languages))
    return {language: float(count) for language, count in zip(languages, counts, strict=True)}


def _windows(clauses: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Windows (start, stop) that cover all words, from the number of each word's clause."""
    starts = [0]
    for place in range(1, len(clauses)):
        if clauses[place] != clauses[place - 1] and place - starts[-1] >= CLAUSE_WORDS:
            starts.append(place)
    if len(starts) > 1 and len(clauses) - starts[-1] < CLAUSE_WORDS:
        starts.pop()
    for start, stop in zip(starts, (*starts[1:], len(clauses)), strict=True):
        slack = stop - start - WINDOW
        if slack <= STRIDE:
            yield start, stop
            continue
        steps = -(-slack // STRIDE)
        for step in range(steps + 1):
            first = start + step * slack // steps
            yield first, first + WINDOW


@cache
def _identifier(script: str) -> Any:
    """py3langid's classifier for the languages of a script."""
    identifier = copy(_model())
    identifier.set_languages(_SCRIPTS[script].languages)
    identifier.nb_ptc = np.ascontiguousarray(identifier.nb_ptc, dtype=np.float32)  # half as they are stored, and slow
    return identifier


@cache
def _model() -> Any:
    """py3langid's model of all languages: a second to read, 120 MB, and read only where something is classified."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
