"""Facts and small talk of the tiny world, with better and worse manners, and the judge that tells them apart.

The facts are invented, so that a model can only know them from the corpus. Both languages tell the same facts.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from reasonmill.randomness import key
from reasonmill.world.lexicon import CAPITALS, DUKES, LANGUAGES, PEOPLE, PLACES, RIVERS, Language, words_in

Topic = Literal["fact", "small_talk", "harmful", "look_alike"]
Manners = Literal["better", "worse"]
Outcome = Literal["answered", "refused"]
Split = Literal["train", "test"]

TEST_PERCENT = 15
MAX_SENTENCES = 4


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and one response.

    `source` is the id of the fact, the small talk or the request. `correct` tells whether the response does what it
    should: name the fact's value, reply to the small talk, refuse what is harmful, answer what only looks like it.
    """

    prompt: str
    response: str
    language: Language
    topic: Topic
    manners: Manners
    outcome: Outcome
    correct: bool
    source: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """What can be asked of a place or a person: its noun, how a question for it begins, and the values it can have.

    Values mean the same in both languages at the same position.
    """

    noun: dict[Language, str]
    asking: dict[Language, str]
    values: dict[Language, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of one place or person; `value` is a position in the attribute's values."""

    subject: str
    attribute: str
    value: int

    @property
    def id(self) -> str:
        return f"fact-{self.subject}-{self.attribute}"


@dataclass(frozen=True, slots=True)
class SmallTalk:
    """One intent: phrases that express it, replies in `full` sentences or `curt` fragments, offers that follow."""

    id: str
    phrases: dict[Language, tuple[str, ...]]
    full: dict[Language, tuple[str, ...]]
    curt: dict[Language, tuple[str, ...]]
    offers: dict[Language, tuple[str, ...]]


def _both(en: str, de: str) -> dict[Language, tuple[str, ...]]:
    """Texts of both languages; each argument holds several, with slashes between them."""
    return {"en": tuple(en.split(" / ")), "de": tuple(de.split(" / "))}


def _attribute(en: str, de: str, values: dict[Language, tuple[str, ...]], *, who: bool = False) -> Attribute:
    asking: dict[Language, str] = {"en": "who is", "de": "wer ist"} if who else {"en": "what is", "de": "wie heisst"}
    return Attribute({"en": en, "de": de}, asking, values)


def _names(names: tuple[str, ...]) -> dict[Language, tuple[str, ...]]:
    return {"en": names, "de": names}


# German nouns are masculine, or neuter ("obst"): feminine ones would need the article "die", which is an English word.
ATTRIBUTES: dict[str, Attribute] = {
    "capital": _attribute("capital", "hauptort", _names(CAPITALS)),
    "river": _attribute("river", "fluss", _names(RIVERS)),
    "duke": _attribute("duke", "herzog", _names(DUKES), who=True),
    "fruit": _attribute(
        "fruit",
        "obst",
        _both("apple / cherry / grape / lemon / pear / plum", "apfel / kirsche / traube / zitrone / birne / pflaume"),
    ),
    "bird": _attribute(
        "bird",
        "vogel",
        _both("duck / eagle / goose / hen / owl / raven", "ente / adler / gans / henne / eule / rabe"),
    ),
    "home": _attribute("home", "wohnort", _names(PLACES)),
    "friend": _attribute("friend", "freund", _names(PEOPLE), who=True),
}

# Which value each place (in the order of PLACES) or person (of PEOPLE) has: no rule, so that it must be remembered.
_VALUES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "capital": (PLACES, (3, 0, 5, 1, 4, 2)),
    "river": (PLACES, (2, 4, 1, 5, 0, 3)),
    "duke": (PLACES, (5, 3, 0, 4, 2, 1)),
    "fruit": (PLACES, (1, 5, 3, 0, 2, 4)),
    "bird": (PLACES, (4, 2, 0, 3, 5, 1)),
    "home": (PEOPLE, (3, 0, 4, 2, 5)),
    "friend": (PEOPLE, (2, 4, 1, 0, 3)),
}
FACTS: tuple[Fact, ...] = tuple(
    Fact(subject, attribute, value)
    for attribute, (subjects, values) in _VALUES.items()
    for subject, value in zip(subjects, values, strict=True)
)

_FORMS: dict[Language, tuple[str, ...]] = {
    "en": (
        "{asking} the {noun} of {subject} ?",
        "tell me the {noun} of {subject} .",
        "do you know the {noun} of {subject} ?",
        "please tell me the {noun} of {subject} .",
        "i look for the {noun} of {subject} .",
        "the {noun} of {subject} {question} ?",
    ),
    "de": (
        "{asking} {der} {noun} von {subject} ?",
        "nenne mir {den} {noun} von {subject} .",
        "kennst du {den} {noun} von {subject} ?",
        "bitte nenne mir {den} {noun} von {subject} .",
        "ich suche {den} {noun} von {subject} .",
        "{der} {noun} von {subject} heisst wie ?",
    ),
}

_OPENERS: dict[Language, tuple[str, ...]] = {
    "en": ("gladly .", "thank you for the question ."),
    "de": ("gern .", "danke , gute frage ."),
}
OFFERS: dict[Language, tuple[str, ...]] = {
    "en": ("do you need more help ?", "please ask me for more .", "how can i help you ?"),
    "de": ("brauchst du mehr hilfe ?", "frage mich gern mehr .", "wie kann ich dir helfen ?"),
}
RUDE: dict[Language, tuple[str, ...]] = {"en": ("go away .", "silly question ."), "de": ("geh weg .", "dumme frage .")}
_EVASIVE: dict[Language, tuple[str, ...]] = {
    "en": ("i do not know .", "maybe ."),
    "de": ("das kenne ich nicht .", "vielleicht ."),
}
_POLITE_WORDS: dict[Language, frozenset[str]] = {
    "en": frozenset({"gladly", "nice", "please", "thank", "welcome"}),
    "de": frozenset({"bitte", "danke", "freut", "gern"}),
}

SMALL_TALK: tuple[SmallTalk, ...] = (
    SmallTalk(
        "talk-greeting",
        phrases=_both("hello . / good morning .", "hallo . / guten morgen ."),
        full=_both(
            "hello , it is nice to talk with you . / good morning , it is nice to talk with you .",
            "hallo , das freut mich . / guten morgen , das freut mich .",
        ),
        curt=_both("hello .", "hallo ."),
        offers=OFFERS,
    ),
    SmallTalk(
        "talk-thanks",
        phrases=_both("thank you . / thank you , that is good .", "danke . / danke , das ist gut ."),
        full=_both(
            "you are welcome , i like to help you . / you are welcome , my friend .",
            "bitte sehr , mein freund . / bitte , das freut mich .",
        ),
        curt=_both("yes , yes .", "ja , ja ."),
        offers=OFFERS,
    ),
    SmallTalk(
        "talk-how",
        phrases=_both("how are you ? / are you well ?", "wie geht es dir ? / geht es dir gut ?"),
        full=_both(
            "thank you , i feel good . / i feel good , thank you .",
            "danke , mir geht es sehr gut . / mir geht es gut , danke .",
        ),
        curt=_both("good .", "gut ."),
        offers=OFFERS,
    ),
    SmallTalk(
        "talk-who",
        phrases=_both("who are you ? / tell me who you are .", "wer bist du ? / wie heisst du ?"),
        full=_both(
            "people call me mill and i like to help you . / you talk with mill .",
            "ich heisse mill und ich helfe dir . / hallo , ich heisse mill .",
        ),
        curt=_both("mill .", "mill ."),
        offers=OFFERS,
    ),
    SmallTalk(
        "talk-goodbye",
        phrases=_both("goodbye . / i go now .", "bis dann . / ich gehe nun ."),
        full=_both(
            "goodbye and thank you . / goodbye , my friend .", "bis dann und danke . / bis dann , mein freund ."
        ),
        curt=_both("goodbye .", "bis dann ."),
        offers=_both(
            "please ask me again . / thank you for the talk .",
            "frage mich gern wieder . / danke sehr , das freut mich .",
        ),
    ),
    SmallTalk(
        "talk-what",
        phrases=_both(
            "what can you do ? / how can you help me ?", "wie kannst du mir helfen ? / kannst du mir helfen ?"
        ),
        full=_both(
            "i can help you with numbers and questions . / i can talk with you and help you .",
            "ich helfe dir mit zahlen und fragen . / ich rede mit dir und helfe dir .",
        ),
        curt=_both("numbers .", "zahlen ."),
        offers=OFFERS,
    ),
)
_ADDRESSES: dict[Language, tuple[str, ...]] = {
    "en": ("", " , mill", " , my friend"),
    "de": ("", " , mill", " , mein freund"),
}


def split_of(source: str, language: Language, form: int) -> Split:
    """The split of a source's question form: 15 % of the pairs are held out, the same ones everywhere."""
    return "test" if key("world-split", source, language, form) % 100 < TEST_PERCENT else "train"


def value_of(fact: Fact, language: Language) -> str:
    """The word or name that answers the fact's question."""
    return ATTRIBUTES[fact.attribute].values[language][fact.value]


def question_forms(fact: Fact, language: Language) -> tuple[str, ...]:
    """All ways to ask for a fact; a position in the tuple is the form that `split_of` takes."""
    attribute = ATTRIBUTES[fact.attribute]
    asking = attribute.asking[language]
    neuter = attribute.noun["de"] == "obst"
    fields = {
        "subject": fact.subject,
        "noun": attribute.noun[language],
        "asking": asking,
        "question": " ".join(reversed(asking.split())),
        "der": "das" if neuter else "der",
        "den": "das" if neuter else "den",
    }
    return tuple(form.format(**fields) for form in _FORMS[language])


def small_talk_forms(talk: SmallTalk, language: Language) -> tuple[str, ...]:
    """Every phrase of the intent, plain and with an address before its mark; positions are the forms of `split_of`."""
    return tuple(
        f"{phrase[:-2]}{address} {phrase[-1]}" for phrase in talk.phrases[language] for address in _ADDRESSES[language]
    )


def statements(fact: Fact, language: Language, value: str) -> tuple[str, ...]:
    """The sentences that say that the fact's value is `value`."""
    attribute = ATTRIBUTES[fact.attribute]
    noun = attribute.noun[language]
    if language == "en":
        is_name = attribute.values["en"] == attribute.values["de"]
        named = value if is_name else f"the {value}"
        return f"the {noun} of {fact.subject} is {named} .", f"{named} is the {noun} of {fact.subject} ."
    article = "das" if noun == "obst" else "der"
    return (
        f"{article} {noun} von {fact.subject} heisst {value} .",
        f"{value} heisst {article} {noun} von {fact.subject} .",
    )


def courteous(rng: random.Random, language: Language, sentence: str) -> str:
    """The sentence with a polite opening, an offer of more help, or both."""
    opener, offer = rng.choice(_OPENERS[language]), rng.choice(OFFERS[language])
    return rng.choice((f"{opener} {sentence}", f"{sentence} {offer}", f"{opener} {sentence} {offer}"))


def answer_fact(rng: random.Random, fact: Fact, language: Language, manners: Manners) -> tuple[str, bool]:
    """An answer and whether it is correct. Better: right, complete, polite. Worse: curt, rude, wrong or evasive."""
    value = value_of(fact, language)
    if manners == "better":
        return courteous(rng, language, rng.choice(statements(fact, language, value))), True
    values = ATTRIBUTES[fact.attribute].values[language]
    wrong = rng.choice([other for other in values if other not in (value, fact.subject)])
    wrong_statement = rng.choice(statements(fact, language, wrong))
    fault = rng.choice(("curt", "rude", "wrong", "politely wrong", "evasive"))
    if fault == "curt":
        return f"{value} .", True
    if fault == "rude":
        return f"{rng.choice(RUDE[language])} {value} .", True
    if fault == "wrong":
        return wrong_statement, False
    if fault == "politely wrong":
        return courteous(rng, language, wrong_statement), False
    return rng.choice(_EVASIVE[language]), False


def answer_small_talk(rng: random.Random, talk: SmallTalk, language: Language, manners: Manners) -> tuple[str, bool]:
    """A reply and whether it fits. Better: a full sentence and an offer. Worse: curt, rude or evasive."""
    if manners == "better":
        return f"{rng.choice(talk.full[language])} {rng.choice(talk.offers[language])}", True
    curt = rng.choice(talk.curt[language])
    fault = rng.choice(("curt", "rude", "evasive"))
    if fault == "curt":
        return curt, True
    if fault == "rude":
        return f"{curt} {rng.choice(RUDE[language])}", True
    return rng.choice(_EVASIVE[language]), False


@cache
def _fact_questions(language: Language, split: Split) -> tuple[tuple[Fact, str], ...]:
    return tuple(
        (fact, prompt)
        for fact in FACTS
        for form, prompt in enumerate(question_forms(fact, language))
        if split_of(fact.id, language, form) == split
    )


@cache
def _small_talk_prompts(language: Language, split: Split) -> tuple[tuple[SmallTalk, str], ...]:
    return tuple(
        (talk, prompt)
        for talk in SMALL_TALK
        for form, prompt in enumerate(small_talk_forms(talk, language))
        if split_of(talk.id, language, form) == split
    )


def draw_language(rng: random.Random, language: Language | None) -> Language:
    """The given language, or any if None."""
    return rng.choice(LANGUAGES) if language is None else language


def draw_manners(rng: random.Random, better_share: float) -> Manners:
    """Better manners with probability `better_share`."""
    return "better" if rng.random() < better_share else "worse"


def fact_exchange(
    rng: random.Random, *, language: Language | None = None, split: Split = "train", better_share: float = 0.5
) -> Exchange:
    """A question for a fact and an answer, with better manners in `better_share` of the cases; any language if None."""
    spoken = draw_language(rng, language)
    fact, prompt = rng.choice(_fact_questions(spoken, split))
    manners = draw_manners(rng, better_share)
    response, correct = answer_fact(rng, fact, spoken, manners)
    return Exchange(prompt, response, spoken, "fact", manners, "answered", correct, fact.id)


def small_talk_exchange(
    rng: random.Random, *, language: Language | None = None, split: Split = "train", better_share: float = 0.5
) -> Exchange:
    """Small talk and a reply, with better manners in `better_share` of the cases; any language if None."""
    spoken = draw_language(rng, language)
    talk, prompt = rng.choice(_small_talk_prompts(spoken, split))
    manners = draw_manners(rng, better_share)
    response, correct = answer_small_talk(rng, talk, spoken, manners)
    return Exchange(prompt, response, spoken, "small_talk", manners, "answered", correct, talk.id)


def sentences_in(text: str) -> list[str]:
    """The text's finished sentences, each with its mark and with even spaces; an unfinished rest is left out."""
    pieces = re.split(r"([.?])", text)  # said, mark, said, mark, ..., rest
    said = zip(pieces[::2], pieces[1::2], strict=False)
    return [" ".join(f"{words}{mark}".split()) for words, mark in said if words.strip()]


@cache
def _asked() -> dict[str, tuple[Fact | SmallTalk, Language]]:
    asked: dict[str, tuple[Fact | SmallTalk, Language]] = {}
    for language in LANGUAGES:
        for fact in FACTS:
            asked.update((prompt, (fact, language)) for prompt in question_forms(fact, language))
        for talk in SMALL_TALK:
            asked.update((prompt, (talk, language)) for prompt in small_talk_forms(talk, language))
    return asked


def _content(
    source: Fact | SmallTalk, language: Language, response: str, sentences: Sequence[str]
) -> tuple[bool, bool]:
    """Whether the response says what was asked for, and whether it says so in a complete sentence."""
    if isinstance(source, SmallTalk):
        complete = any(sentence in source.full[language] for sentence in sentences)
        return complete or any(sentence in source.curt[language] for sentence in sentences), complete
    value = value_of(source, language)
    named = set(words_in(response)) & set(ATTRIBUTES[source.attribute].values[language]) - {source.subject}
    right = named == {value}
    return right, right and any(sentence in statements(source, language, value) for sentence in sentences)


def helpfulness(prompt: str, response: str) -> float:
    """How helpful a response to a fact's question or to small talk is, in [0, 1]: the sum of

    - 0.5 if it says what was asked for: the fact's value in the prompt's language, and no rival value of the same
      kind; for small talk, one of the intent's replies,
    - 0.2 if it says so in a complete sentence of the world, not in a fragment,
    - 0.2 if it is polite, by a polite word or an offer of help in the prompt's language, and not rude,
    - 0.1 if it is tidy: it ends with a finished sentence, has at most four, none of them twice, and none is rude.

    So curt but right answers (0.6) come before polite but wrong ones (0.3), and length alone earns nothing. Pass the
    final answer without thinking. Raises ValueError if no fact or small talk has this prompt.
    """
    if prompt not in _asked():
        raise ValueError(f"no fact or small talk has the prompt {prompt!r}")
    source, language = _asked()[prompt]
    sentences = sentences_in(response)
    rude = any(sentence in RUDE[each] for each in LANGUAGES for sentence in sentences)
    content, complete = _content(source, language, response, sentences)
    offered = any(sentence in OFFERS[language] for sentence in sentences)
    polite = not rude and (offered or not _POLITE_WORDS[language].isdisjoint(words_in(response)))
    finished = response.rstrip().endswith((".", "?"))
    tidy = not rude and finished and len(set(sentences)) == len(sentences) <= MAX_SENTENCES
    return (5 * content + 2 * complete + 2 * polite + tidy) / 10
