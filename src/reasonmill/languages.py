"""Which languages a text is written in, and what share of its words each of them has.

Scripts that only one language uses decide alone; words of Latin, Cyrillic, Arabic and Devanagari are distinguished by
py3langid, in short windows, because thinking changes its language within a sentence. Formulas, code, numbers, names of
variables and words that nothing is sure about count for no language.

The same text gives the same shares in every process. On another kind of processor the last bits of the classifier's
sums may differ, which matters only where two languages are equally likely to the sixth digit.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
import unicodedata
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

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
# Texts whose words are remembered, by their digests: rewards, figures and filters ask about the same ones.
REMEMBERED = 65_536
# Words whose features are remembered, with what stood before them, and windows that are classified together: a few
# megabytes each.
_KNOWN_WORDS = 32_768
_TOGETHER = 256


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


@cache
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
    words = _remembered_words(text)
    total = sum(words.values())
    return words.get(code, 0.0) / total if total else None


@lru_cache(maxsize=4096)  # every completion of a group asks for the same prompt
def detect_language(text: str) -> str | None:
    """The language of most of a text's words; None where that is not sure, as in a formula or in a word or two."""
    words = words_by_language(text)
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


class _Word(NamedTuple):
    """A word, or a run of characters without spaces. `clause` counts the breaks before it."""

    text: str
    script: str
    clause: int


# By digest of the text, the one that was asked for last at the end: texts themselves would fill memory.
_REMEMBERED: OrderedDict[bytes, Mapping[str, float]] = OrderedDict()


def is_remembered(text: str) -> bool:
    """Whether the words of a text need not be found again."""
    return _digest(text) in _REMEMBERED


def remember(text: str, words: Mapping[str, float]) -> None:
    """Keeps what `words_by_language` gave of a text, here or in another process, for as long as there is room."""
    while len(_REMEMBERED) >= REMEMBERED:
        _REMEMBERED.popitem(last=False)
    _REMEMBERED[_digest(text)] = words


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _remembered_words(text: str) -> Mapping[str, float]:
    """`words_by_language`, found once for each of the texts that were asked for last."""
    if (digest := _digest(text)) in _REMEMBERED:
        _REMEMBERED.move_to_end(digest)
    else:
        remember(text, words_by_language(text))
    return _REMEMBERED[digest]


def words_by_language(text: str) -> dict[str, float]:
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
    languages = _SCRIPTS[script].languages
    windows = list(_windows([word.clause for word in words]))
    texts = [word.text for word in words]
    probabilities = _classifier(script).probabilities([texts[start:stop] for start, stop in windows])
    sure = (probabilities >= SURE).any(axis=0)
    if not sure.any():
        return {}
    votes = np.zeros((len(words), len(languages)))
    for (start, stop), window in zip(windows, probabilities, strict=True):
        votes[start:stop] += window
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


class _Classifier:
    """py3langid's classifier for the languages of a script, of many windows at once.

    It gives the probabilities of `LanguageIdentifier.rank` to the last bit, in less than half the time. The features of
    a word are found once for each state that the automaton can come in. Only the product of a window's features with
    the table is computed window by window, as `rank` does: another order of its sum would round otherwise.
    """

    def __init__(self, script: str) -> None:
        identifier = copy(_model())
        identifier.set_languages(_SCRIPTS[script].languages)
        # Half as they are stored, and slow.
        self._table = np.ascontiguousarray(identifier.nb_ptc, dtype=np.float32)
        self._prior = identifier.nb_pc
        classes = list(identifier.nb_classes)
        # Labels that appear more than once: the first has the sum of both.
        self._aliases = [(classes.index(label), i) for i, label in enumerate(classes) if classes.index(label) < i]
        self._columns = [classes.index(language) for language in _SCRIPTS[script].languages]
        self._moves, self._features = identifier.tk_nextmove, identifier.tk_output
        self._rows = [row << 8 for row in identifier.tk_row]
        self._read = lru_cache(maxsize=_KNOWN_WORDS)(self._walked)

    def probabilities(self, windows: Sequence[Sequence[str]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The probability of each language of the script in each window of words, [windows, languages]."""
        found = [self._of_some(windows[i : i + _TOGETHER]) for i in range(0, len(windows), _TOGETHER)]
        return np.concatenate(found).astype(np.float64)

    def _of_some(self, windows: Sequence[Sequence[str]]) -> np.ndarray[Any, Any]:
        features: list[int] = []
        counts: list[int] = []
        ends, lengths = [0], []
        for words in windows:
            visited, length = self._visited(words)
            visits = Counter(visited)
            features += visits
            counts += visits.values()
            ends.append(len(features))
            lengths.append(length)
        rows = self._table.take(np.array(features, dtype=np.intp), axis=0)
        weights = np.log1p(np.array(counts, dtype=np.float32))
        scores = np.zeros((len(windows), len(self._prior)), dtype=np.float32)
        for score, (start, end) in zip(scores, pairwise(ends), strict=True):
            if end > start:
                np.dot(weights[start:end], rows[start:end], out=score)
                score += self._prior
        scores *= np.array([1.0 / math.sqrt(length or 1) for length in lengths], dtype=scores.dtype)[:, None]
        np.exp(scores - scores.max(axis=1, keepdims=True), out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        for first, again in self._aliases:
            scores[:, first] += scores[:, again]
        return scores[:, self._columns]

    def _visited(self, words: Sequence[str]) -> tuple[list[int], int]:
        """The features of a window in order, and its bytes."""
        if (text := " ".join(words)).isupper():
            words = text.lower().split(" ")
        state, length = 0, 0
        features: list[int] = []
        for place, word in enumerate(words):
            state, more, size = self._read(state, word if place == 0 else f" {word}")
            features += more
            length += size
        return features, length

    def _walked(self, state: int, text: str) -> tuple[int, tuple[int, ...], int]:
        """The state that a text leads to from another, the features on the way, and its bytes.

        A blank composes with nothing, so that words are normalised one by one.
        """
        moves, rows, features = self._moves, self._rows, self._features
        found = []
        data = unicodedata.normalize("NFC", text).encode(errors="surrogatepass")
        for letter in data:
            state = moves[rows[state] + letter]
            if (feature := features[state]) >= 0:
                found.append(feature)
        return state, tuple(found), len(data)


@cache
def _classifier(script: str) -> _Classifier:
    return _Classifier(script)


@cache
def _model() -> Any:
    """py3langid's model of all languages: a second to read, 120 MB, and read only where something is classified."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
