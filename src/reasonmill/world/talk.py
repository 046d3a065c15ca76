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
from reasonmill.world.tables import table

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


_TABLE = table(__name__)
_NAMES = {"places": PLACES, "capitals": CAPITALS, "rivers": RIVERS, "dukes": DUKES, "people": PEOPLE}

ATTRIBUTES: dict[str, Attribute] = {
    name: Attribute(
        row["noun"], row["asking"], row["words"] if "words" in row else dict.fromkeys(LANGUAGES, _NAMES[row["names"]])
    )
    for name, row in _TABLE["attributes"].items()
}
FACTS: tuple[Fact, ...] = tuple(
    Fact(subject, attribute, value)
    for attribute, row in _TABLE["attributes"].items()
    for subject, value in zip(_NAMES[row["subjects"]], row["values"], strict=True)
)

_FORMS: dict[Language, tuple[str, ...]] = _TABLE["forms"]
_OPENERS: dict[Language, tuple[str, ...]] = _TABLE["openers"]
OFFERS: dict[Language, tuple[str, ...]] = _TABLE["offers"]
RUDE: dict[Language, tuple[str, ...]] = _TABLE["rude"]
_EVASIVE: dict[Language, tuple[str, ...]] = _TABLE["evasive"]
_POLITE_WORDS = {language: frozenset(words) for language, words in _TABLE["polite_words"].items()}
_ADDRESSES: dict[Language, tuple[str, ...]] = _TABLE["addresses"]
SMALL_TALK = tuple(SmallTalk(**{"offers": OFFERS, **row}) for row in _TABLE["small_talk"])


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
