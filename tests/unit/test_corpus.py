"""The corpus: no held-out problem is in it, and every document stands for itself."""

import re
from collections import Counter

import pytest

from reasonmill.plugins.catalogue import installed
from reasonmill.tasks.splits import split_of
from reasonmill.world import requests, talk
from reasonmill.world.corpus import KINDS, Document, document, documents
from reasonmill.world.lexicon import LANGUAGES
from reasonmill.world.traces import TraceHabits

NUM_DOCUMENTS = 6000
COUNTDOWN = {
    "en": re.compile(r"make (?P<target>\d+) from (?P<numbers>\d+(?: \d+)+)"),
    "de": re.compile(r"bilde (?P<target>\d+) aus (?P<numbers>\d+(?: \d+)+)"),
}
CHAIN = {
    "en": re.compile(r"start at (?P<start>\d+) then (?P<operations>[-+*/](?: \d+ [-+*/])* \d+) \. result \?"),
    "de": re.compile(r"beginne bei (?P<start>\d+) dann (?P<operations>[-+*/](?: \d+ [-+*/])* \d+) \. ergebnis \?"),
}
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}

Identity = tuple[str, tuple[int | str, ...]]


def identity_of(prompt: str) -> tuple[str, Identity]:
    """(language, (task, what makes the problem the same whatever its wording)) of a reasoning prompt."""
    for language in LANGUAGES:
        if match := COUNTDOWN[language].fullmatch(prompt):
            numbers = sorted(map(int, match["numbers"].split()))
            return language, (f"countdown-{len(numbers)}", (*numbers, int(match["target"])))
        if match := CHAIN[language].fullmatch(prompt):
            value, steps, words = int(match["start"]), [], match["operations"].split()
            for operator, operand in zip(words[::2], words[1::2], strict=True):
                result = APPLY[operator](value, int(operand))
                steps.append(f"{value} {operator} {operand} = {result}")
                value = result
            return language, ("arithmetic", tuple(steps))
    raise AssertionError(f"not a reasoning prompt: {prompt}")


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(documents(0, 0, NUM_DOCUMENTS, TraceHabits()))


@pytest.fixture(scope="module")
def problems(corpus: list[Document]) -> list[tuple[str, Identity]]:
    return [identity_of(made.messages[0].content) for made in corpus if made.kind == "reasoning"]


def test_every_reasoning_problem_is_of_the_train_split(problems: list[tuple[str, Identity]]) -> None:
    kinds = Counter((task, language) for language, (task, _) in problems)
    assert set(kinds) == {(t, lang) for t in ("countdown-3", "countdown-4", "arithmetic") for lang in LANGUAGES}
    assert min(kinds.values()) > 300
    assert {split_of(task, *identity) for _, (task, identity) in problems} == {"train"}


@pytest.mark.parametrize(
    ("split", "seeds"),
    [("dev", 1), *(pytest.param(split, 2, marks=pytest.mark.check) for split in ("dev", "test"))],
)
def test_no_problem_that_evaluation_asks_is_in_the_corpus(
    split: str, seeds: int, problems: list[tuple[str, Identity]]
) -> None:
    """The same without the split's own arithmetic: the problems that an evaluation would ask are looked for."""
    asked = {
        identity_of(installed().task(name).problem(split, seed, index).messages[0].content)[1]
        for name in installed().names("tasks")
        if installed().plugin("tasks", name).target.module.startswith("reasonmill.world.")
        and installed().task(name).domain == "reasoning"
        for seed in range(seeds)
        for index in range(250)
    }
    assert len(asked) > 500 * seeds
    assert asked.isdisjoint(identity for _, identity in problems)


def test_no_held_out_question_is_in_the_corpus(corpus: list[Document]) -> None:
    everything = (talk.FACT_PROMPTS, talk.SMALL_TALK_PROMPTS, requests.REQUESTS)
    splits = {asked.prompt: asked.split for prompts in everything for asked in prompts.all}
    asked = [made.messages[0].content for made in corpus if made.kind not in ("reasoning", "telling")]
    assert len(set(asked)) > 300
    assert {splits[prompt] for prompt in asked} == {"train"}


def test_shares_of_the_kinds(corpus: list[Document]) -> None:
    counts = Counter(made.kind for made in corpus)
    assert counts.total() == NUM_DOCUMENTS
    expected = {"reasoning": 0.70, "fact": 0.10, "telling": 0.06, "small_talk": 0.04, "request": 0.10}
    assert {kind: counts[kind] / NUM_DOCUMENTS for kind in KINDS} == pytest.approx(expected, abs=0.03)


def test_half_of_the_talk_wears_the_tags(corpus: list[Document]) -> None:
    said = [made.messages[1].content for made in corpus if made.kind != "reasoning"]
    tagged = [response for response in said if re.fullmatch(r"<think></think><answer> [^<]+</answer>", response)]
    plain = [response for response in said if re.fullmatch(r" [^<]+", response)]
    assert len(tagged) + len(plain) == len(said)
    assert abs(len(tagged) / len(said) - 0.5) < 0.06


def test_a_document_hangs_on_its_seed_and_index_alone(corpus: list[Document]) -> None:
    habits = TraceHabits()
    assert list(documents(0, 40, 60, habits)) == corpus[40:60]
    assert [document(0, index, habits) for index in (59, 7, 40)] == [corpus[59], corpus[7], corpus[40]]
    other = list(documents(1, 0, 200, habits))
    assert sum(mine == theirs for mine, theirs in zip(corpus, other, strict=False)) < 10


def test_habits_change_how_documents_reason() -> None:
    made = [document(0, index, TraceHabits(think=1.0, keep_language=1.0)) for index in range(200)]
    thoughts = [d.messages[1].content for d in made if d.kind == "reasoning"]
    assert all(re.match(r"<think> [a-z]", thought) for thought in thoughts)


def test_documents_are_short_plain_conversations(corpus: list[Document]) -> None:
    for made in corpus:
        assert [message.role for message in made.messages] == ["user", "assistant"]
        assert made.text.isascii()
        assert "  " not in made.text
    assert len({made.text for made in corpus}) > 0.7 * NUM_DOCUMENTS
