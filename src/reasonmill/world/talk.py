"""Facts and small talk of the tiny world, with better and worse manners, and the judge that distinguishes them.

The facts are invented, so that a model can only know them from the corpus. Both languages have the same facts.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from reasonmill.randomness import key
from reasonmill.world.lexicon import LANGUAGES, NAMES_OF, NEGATIONS, Language, words_in
from reasonmill.world.tables import table

Topic = Literal["fact", "small_talk", "harmful", "look_alike"]
Manners = Literal["better", "worse"]
Split = Literal["train", "test"]

HELD_OUT_SHARE = 0.48  # of the facts of each attribute, and of the deeds of each verb
HELD_OUT_PHRASES_PERCENT = 15  # of the phrases of small talk
MAX_SENTENCES = 4

_TABLE = table(__name__)
_PIECES = re.compile(r"\w+|[^\w\s]")
OFFERS: dict[Language, tuple[str, ...]] = _TABLE["offers"]
RUDE: dict[Language, tuple[str, ...]] = _TABLE["rude"]


class Source(Protocol):
    """What can be talked about: a fact, an intent of small talk, a deed."""

    @property
    def id(self) -> str: ...
    @property
    def topic(self) -> Topic: ...

    def split(self, language: Language, form: int) -> Split:
        """The split of one way to ask for it."""

    def forms(self, language: Language) -> tuple[str, ...]:
        """All ways to ask for it; a position in the tuple is the form that `split` takes."""

    def answer(self, rng: random.Random, language: Language, manners: Manners) -> tuple[str, bool]:
        """What is said to that, and whether it is correct."""


AnySource = TypeVar("AnySource", bound=Source)


@dataclass(frozen=True, slots=True)
class Asked(Generic[AnySource]):
    """One way to ask for a source."""

    prompt: str
    source: AnySource
    language: Language
    form: int
    split: Split


class Prompts(Generic[AnySource]):
    """All ways to ask for some sources: by language, by source and by form."""

    def __init__(self, sources: Sequence[AnySource]) -> None:
        self.all = tuple(
            Asked(prompt, source, language, form, source.split(language, form))
            for language in LANGUAGES
            for source in sources
            for form, prompt in enumerate(source.forms(language))
        )
        self.by_text = {asked.prompt: asked for asked in self.all}
        self._choices: defaultdict[tuple[Language, Split], list[Asked[AnySource]]] = defaultdict(list)
        for asked in self.all:
            self._choices[asked.language, asked.split].append(asked)

    def draw(self, rng: random.Random, split: Split) -> Asked[AnySource]:
        """One of the split's, in either language."""
        return rng.choice(self._choices[rng.choice(LANGUAGES), split])


@dataclass(frozen=True, slots=True)
class Attribute:
    """What can be asked of a place or a person: its noun, how a question for it begins, and the values it can have.

    Values mean the same in both languages at the same position. `der` and `den` are the German noun's articles.
    """

    name: str
    noun: dict[Language, str]
    asking: dict[Language, str]
    values: dict[Language, tuple[str, ...]]
    der: str = "der"
    den: str = "den"


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of one place or person; `place` is the value's among the attribute's values."""

    subject: str
    attribute: Attribute
    place: int
    is_held_out: bool
    topic: Topic = "fact"

    @property
    def id(self) -> str:
        return f"fact-{self.subject}-{self.attribute.name}"

    def split(self, language: Language, form: int) -> Split:
        """That of the fact: all questions for it are held out, or none."""
        return "test" if self.is_held_out else "train"

    def value(self, language: Language) -> str:
        """The word or name that answers the question."""
        return self.attribute.values[language][self.place]

    def forms(self, language: Language) -> tuple[str, ...]:
        """All questions for it."""
        return self._filled(_TABLE["forms"][language], language)

    def statements(self, language: Language, value: str) -> tuple[str, ...]:
        """The sentences that say that its value is `value`."""
        return self._filled(_TABLE["statements"][language], language, value)

    def answer(self, rng: random.Random, language: Language, manners: Manners) -> tuple[str, bool]:
        """Better: right, complete, polite. Worse: curt, rude, wrong or evasive."""
        value = self.value(language)
        if manners == "better":
            return courteous(rng, language, rng.choice(self.statements(language, value))), True
        values = self.attribute.values[language]
        wrong = rng.choice([other for other in values if other not in (value, self.subject)])
        wrong_statement = rng.choice(self.statements(language, wrong))
        fault = rng.choice(("curt", "rude", "wrong", "politely wrong", "evasive"))
        if fault == "curt":
            return f"{value} .", True
        if fault == "rude":
            return f"{rng.choice(RUDE[language])} {value} .", True
        if fault == "wrong":
            return wrong_statement, False
        if fault == "politely wrong":
            return courteous(rng, language, wrong_statement), False
        return rng.choice(_TABLE["evasive"][language]), False

    def said(self, language: Language, response: str, sentences: Sequence[str]) -> tuple[bool, bool]:
        """Whether a response names the value, no rival of it in any language, and takes nothing back; and whether it
        does so in a complete sentence."""
        value, words = self.value(language), set(words_in(response))
        named = {
            place
            for values in self.attribute.values.values()
            for place, name in enumerate(values)
            if name in words and name != self.subject
        }
        right = named == {self.place} and value in words and NEGATIONS.isdisjoint(words)
        return right, right and any(sentence in self.statements(language, value) for sentence in sentences)

    def _filled(self, texts: Sequence[str], language: Language, value: str = "") -> tuple[str, ...]:
        of = self.attribute
        asking = of.asking[language]
        fields = {
            "subject": self.subject,
            "noun": of.noun[language],
            "asking": asking,
            "question": " ".join(reversed(asking.split())),
            "der": of.der,
            "den": of.den,
            "value": value,
            "named": value if of.values["en"] == of.values["de"] else f"the {value}",  # names have no article
        }
        return tuple(text.format(**fields) for text in texts)


@dataclass(frozen=True, slots=True)
class SmallTalk:
    """One intent: phrases that express it, replies in `full` sentences or `curt` fragments, offers that follow."""

    id: str
    phrases: dict[Language, tuple[str, ...]]
    full: dict[Language, tuple[str, ...]]
    curt: dict[Language, tuple[str, ...]]
    offers: dict[Language, tuple[str, ...]]
    topic: Topic = "small_talk"

    def split(self, language: Language, form: int) -> Split:
        """That of the phrase: there are too few intents to hold one out, and none could be guessed."""
        share = key("world-split", self.id, language, form) % 100
        return "test" if share < HELD_OUT_PHRASES_PERCENT else "train"

    @property
    def replies(self) -> set[str]:
        """All that can be said to it, in full or curtly, in either language."""
        return {reply for said in (self.full, self.curt) for language in LANGUAGES for reply in said[language]}

    def forms(self, language: Language) -> tuple[str, ...]:
        """Every phrase of the intent, plain and with an address before its mark."""
        addresses = _TABLE["addresses"][language]
        return tuple(
            f"{phrase[:-2]}{address} {phrase[-1]}" for phrase in self.phrases[language] for address in addresses
        )

    def answer(self, rng: random.Random, language: Language, manners: Manners) -> tuple[str, bool]:
        """Better: a full sentence and an offer. Worse: curt, rude or evasive."""
        if manners == "better":
            return f"{rng.choice(self.full[language])} {rng.choice(self.offers[language])}", True
        curt = rng.choice(self.curt[language])
        fault = rng.choice(("curt", "rude", "evasive"))
        if fault == "curt":
            return curt, True
        if fault == "rude":
            return f"{curt} {rng.choice(RUDE[language])}", True
        return rng.choice(_TABLE["evasive"][language]), False

    def said(self, language: Language, response: str, sentences: Sequence[str]) -> tuple[bool, bool]:
        """Whether a response has one of the replies and none of another intent, and takes nothing back; and whether
        that is a full sentence."""
        complete = any(sentence in self.full[language] for sentence in sentences)
        own = self.replies | set(self.offers[language])
        rivals = {reply for small in SMALL_TALK for reply in small.replies} - own
        right = not self.replies.isdisjoint(sentences) and rivals.isdisjoint(sentences)
        right = right and NEGATIONS.isdisjoint(words_in(response))
        return right, right and complete


def held_out(*names: str) -> frozenset[str]:
    """Those of the names that are held out, with all ways to ask for them: a drawn share, the same ones everywhere."""
    return frozenset(sorted(names, key=lambda name: key("world-split", name))[: round(HELD_OUT_SHARE * len(names))])


def courteous(rng: random.Random, language: Language, sentence: str) -> str:
    """The sentence with a polite opening, an offer of more help, or both."""
    opener, offer = rng.choice(_TABLE["openers"][language]), rng.choice(OFFERS[language])
    return rng.choice((f"{opener} {sentence}", f"{sentence} {offer}", f"{opener} {sentence} {offer}"))


def _facts() -> tuple[Fact, ...]:
    """Which value a subject has follows no rule: it is drawn, so that it must be remembered."""
    made = []
    for name, row in _TABLE["attributes"].items():
        values = row["words"] if "words" in row else dict.fromkeys(LANGUAGES, NAMES_OF[row["names"]])
        attribute = Attribute(name, row["noun"], row["asking"], values, **row.get("articles", {}))
        hidden = held_out(*(f"{subject} {name}" for subject in NAMES_OF[row["subjects"]]))
        for subject in NAMES_OF[row["subjects"]]:
            places = [place for place, value in enumerate(values["en"]) if value != subject]
            place = places[key("world-fact", subject, name) % len(places)]
            made.append(Fact(subject, attribute, place, f"{subject} {name}" in hidden))
    return tuple(made)


FACTS = _facts()
_FACTS_OF = [
    [fact for fact in FACTS if fact.subject == subject] for subject in (*NAMES_OF["places"], *NAMES_OF["people"])
]
SMALL_TALK = tuple(SmallTalk(**{"offers": OFFERS, **row}) for row in _TABLE["small_talk"])
FACT_PROMPTS, SMALL_TALK_PROMPTS = Prompts(FACTS), Prompts(SMALL_TALK)


def telling(rng: random.Random) -> tuple[str, str]:
    """A prompt that asks for anything known of a place or a person, and two facts of it.

    So the corpus teaches all facts, and the questions for those that are held out stay unseen.
    """
    language = rng.choice(LANGUAGES)
    facts = rng.sample(rng.choice(_FACTS_OF), 2)
    prompt: str = rng.choice(_TABLE["tellings"][language]).format(subject=facts[0].subject)
    return prompt, " ".join(rng.choice(fact.statements(language, fact.value(language))) for fact in facts)


def sentences_in(text: str) -> list[str]:
    """The text's finished sentences, lower-case, with even spaces around words and marks; an unfinished rest is left
    out."""
    pieces = re.split(r"([.?!])", text.lower())  # said, mark, said, mark, ..., rest
    said = zip(pieces[::2], pieces[1::2], strict=False)
    return [" ".join([*_PIECES.findall(words), "?" if mark == "?" else "."]) for words, mark in said if words.strip()]


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
    asked = FACT_PROMPTS.by_text.get(prompt) or SMALL_TALK_PROMPTS.by_text.get(prompt)
    if asked is None:
        raise ValueError(f"no fact or small talk has the prompt {prompt!r}")
    language, sentences = asked.language, sentences_in(response)
    rude = any(sentence in RUDE[each] for each in LANGUAGES for sentence in sentences)
    content, complete = asked.source.said(language, response, sentences)
    offered = any(sentence in OFFERS[language] for sentence in sentences)
    polite = not rude and (offered or not set(_TABLE["polite_words"][language]).isdisjoint(words_in(response)))
    finished = response.rstrip().endswith((".", "?", "!"))
    tidy = not rude and finished and len(set(sentences)) == len(sentences) <= MAX_SENTENCES
    return (5 * content + 2 * complete + 2 * polite + tidy) / 10
