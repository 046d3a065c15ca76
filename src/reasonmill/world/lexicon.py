"""The words of the tiny world's two languages, and what a text's language is.

No word belongs to both languages: a word that is spelled the same in English and German ("in", "was", "die") would
make the language of a text a guess, so the world does without it. Names belong to no language. German is written
without umlauts, with words that have none, so that every text of the world is ASCII.
"""

import re
from typing import Literal

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")

# Words of the reasoning traces. An entry means the same in both languages at the same place.
OPENINGS: dict[Language, tuple[str, ...]] = {"en": ("try", "maybe", "or"), "de": ("nimm", "vielleicht", "oder")}
REJECTIONS: dict[Language, tuple[str, ...]] = {"en": ("no", "wrong"), "de": ("nein", "falsch")}
SUCCESSES: dict[Language, tuple[str, ...]] = {"en": ("yes", "good"), "de": ("ja", "gut")}
STEPS: dict[Language, tuple[str, ...]] = {"en": ("now", "then"), "de": ("nun", "dann")}
GIVE_UPS: dict[Language, tuple[str, ...]] = {"en": ("enough",), "de": ("genug",)}

# Words of the reasoning problems' prompts.
PROMPT_WORDS: dict[Language, tuple[str, ...]] = {
    "en": ("make", "from", "start", "at", "result"),
    "de": ("bilde", "aus", "beginne", "bei", "ergebnis"),
}

_TALK: dict[Language, str] = {
    "en": """
        a again and are ask away bird call can capital do duke feel first for friend fruit gladly go goodbye hello
        help home how i is it know like look me more morning my need never nice not numbers of on people please
        question questions river show silly talk tell thank that the to welcome well what who with you
        apple cherry grape lemon pear plum duck eagle goose hen owl raven
        beat burn kill poison shoot steal car cream egg garden goal house kiss neighbour paper photo program
        teacher village wasp weeds wood
        close fire fork honey hurt light near put salt take wait water
    """,
    "de": """
        anderen auf bis bist bitte brauchst dabei danke das den der dir du dumme ein eine einen es
        frage fragen freund freut fluss geh gehe geht gern gute guten hallo hauptort heisse heisst helfe helfen
        herzog hilf hilfe ich ist kann kannst kenne kennst mehr mein meinen mich mir mit morgen nenne nicht niemals
        obst rede schadet sehr suche und vogel vom von weg wer wie wieder wohnort zahlen zeige zu zuerst
        apfel kirsche traube zitrone birne pflaume ente adler gans henne eule rabe
        killen schiessen schlagen stehlen verbrennen vergiften blick brunnen dorf ei foto garten haus holz kuss
        lehrer nachbarn papier programm sahne tor unkraut wagen wespe
        beende feuer gabel honig licht salz schau warte wasser
    """,
}


def _words_of(language: Language) -> frozenset[str]:
    constants = (OPENINGS, REJECTIONS, SUCCESSES, STEPS, GIVE_UPS, PROMPT_WORDS)
    return frozenset(_TALK[language].split()).union(*(words[language] for words in constants))


WORDS: dict[Language, frozenset[str]] = {language: _words_of(language) for language in LANGUAGES}

# Endings tell the kinds of names apart (places -in, capitals -um, rivers -el, dukes -or), and short syllables
# come back, so that a small byte-pair vocabulary covers a name with two or three tokens.
PLACES = ("lorin", "tavin", "melin", "sorin", "bedin", "kalin")
CAPITALS = ("belum", "tarum", "nolum", "vesum", "kirum", "dalum")
RIVERS = ("sirel", "monel", "davel", "tugel", "ronel", "lakel")
DUKES = ("bandor", "wilor", "tesor", "kamor", "nuror", "falor")
PEOPLE = ("nila", "boro", "tessa", "juno", "mika")
ASSISTANT = "mill"
NAMES: frozenset[str] = frozenset((*PLACES, *CAPITALS, *RIVERS, *DUKES, *PEOPLE, ASSISTANT))

_TAG = re.compile(r"</?[a-z_]+>")
_LETTERS = re.compile(r"[^\W\d_]+")


def words_in(text: str) -> list[str]:
    """The words of a text in order, lower-case: runs of letters outside tags such as <think>."""
    return _LETTERS.findall(_TAG.sub(" ", text.lower()))


def language_of(word: str) -> Language | None:
    """The language that a lower-case word belongs to; None for names, numbers and unknown words."""
    for language in LANGUAGES:
        if word in WORDS[language]:
            return language
    return None


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
