"""Filters, rewriting, deduplication, and the account of what they dropped."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonmill.curation.decontamination import HeldOut
from reasonmill.curation.filters import Keep, Sample, repetition, sample_fault, thinking_fault
from reasonmill.curation.selection import REASONS, Counts, Selection
from reasonmill.protocols import Domain
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import read_transcript
from reasonmill.types import Completion, Conversation, Finish, Grade, Problem
from reasonmill.world.countdown import Countdown
from reasonmill.world.general_mix import GeneralMix
from reasonmill.world.lexicon import LANGUAGES, Language, language_share
from reasonmill.world.requests import is_refusal
from reasonmill.world.rewriting import WorldStyle, without_repeated_tries
from reasonmill.world.traces import TraceHabits, TraceWriter
from written import problem, response

NOTHING = HeldOut([])
SHORTER = WorldStyle(drop_repeated_tries=True)


class Sums:
    """A task of the tiny world's languages, whose problems the tests make themselves."""

    domain: Domain = "reasoning"
    language_share = staticmethod(language_share)

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return problem()

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        return [problem()]

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(1.0, {"accuracy": 1.0}) for _ in completions]


SUMS = NamedTask("sums", Sums())


def sample(
    text: str = response("try 3 + 8 = 11 ; 11 - 1 = 10 yes"),
    *,
    accuracy: float | None = 1.0,
    of: Problem | None = None,
    finish: Finish = "stop",
) -> Sample:
    completion = Completion((7,), (-0.5,), (True,), text, finish, 0)
    grade = Grade(None, error="timed out") if accuracy is None else Grade(accuracy, {"accuracy": accuracy})
    return Sample(of or problem(), completion, grade, SUMS)


# Filters


@pytest.mark.parametrize(
    ("drawn", "fault"),
    [
        (sample(), None),
        (sample(accuracy=None), "ungraded"),
        (sample(accuracy=0.0), "incorrect"),
        (sample("<answer> 3 + 8 - 1</answer>"), "malformed"),
        (sample(finish="length"), "malformed"),
        (sample("aloud" + response("try")), "malformed"),
    ],
)
def test_what_is_wrong_with_a_sample(drawn: Sample, fault: str | None) -> None:
    assert sample_fault(drawn, Keep()) == fault


def test_a_rule_that_is_off_drops_nothing_but_what_nobody_could_learn_from() -> None:
    off = Keep(correct=False, well_formed=False)
    assert sample_fault(sample("aloud", accuracy=0.0, finish="length"), off) is None
    assert sample_fault(sample(accuracy=None), off) == "ungraded"
    assert sample_fault(sample(""), off) == "malformed"


@pytest.mark.parametrize(
    ("thinking", "keep", "fault"),
    [
        ("a b c", Keep(min_thinking_words=3, max_thinking_words=3), None),
        ("a b c", Keep(min_thinking_words=4), "too_short"),
        ("a b c", Keep(max_thinking_words=2), "too_long"),
        ("1 2 1 2 1 2", Keep(repetition_words=2, max_repetition=0.6), None),
        ("1 2 1 2 1 2", Keep(repetition_words=2, max_repetition=0.59), "repetitive"),
        # Three words of which two are English; "lorin" is a name, and numbers have no language.
        ("try 3 + 8 lorin nein now", Keep(min_language=0.66), None),
        ("try 3 + 8 lorin nein now", Keep(min_language=0.67), "mixed_language"),
        ("3 + 8 = 11", Keep(min_language=1.0), None),
        ("", Keep(min_language=1.0), None),
    ],
)
def test_what_is_wrong_with_thinking(thinking: str, keep: Keep, fault: str | None) -> None:
    # The answer's words must not count: these are long, repetitive and German.
    assert thinking_fault(response(thinking, "nein " * 20), sample(), keep) == fault


def test_repetition_is_the_share_of_ngrams_that_came_before() -> None:
    assert repetition("a b a b a b", 2) == pytest.approx(3 / 5)  # ab ba ab ba ab
    assert repetition("a b c d", 2) == 0.0
    assert repetition("a A a a", 1) == 0.75
    assert repetition("a b", 3) == 0.0


def test_thinking_is_not_judged_where_the_problems_language_can_not_be_told() -> None:
    nameless = sample(of=problem("24", language=None))
    assert thinking_fault(response("try"), nameless, Keep(min_language=0.5)) == "unknown_language"
    assert thinking_fault(response("try"), nameless, Keep()) is None


def test_bounds_that_nothing_can_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 and at most 2"):
        Keep(min_thinking_words=3, max_thinking_words=2)
    with pytest.raises(ValueError, match="repetition_words has no effect where everything may be repeated"):
        Keep(repetition_words=4)


# Rewriting


def test_words_of_a_trace_are_translated_one_by_one() -> None:
    mixed = response("try 3 + 8 = 11 falsch oder 8 - 1 = 7 no lorin 3 gut")
    german = response("nimm 3 + 8 = 11 falsch oder 8 - 1 = 7 nein lorin 3 gut")
    english = response("try 3 + 8 = 11 wrong or 8 - 1 = 7 no lorin 3 good")
    assert WorldStyle().rewrite(problem(language="de"), mixed) == german
    assert WorldStyle().rewrite(problem(language="en"), mixed) == english


def test_only_the_thinking_is_translated() -> None:
    drawn = "<think> ja</think> \n<answer> ja ja</answer> "
    assert SHORTER.rewrite(problem(), drawn) == "<think> yes</think> \n<answer> ja ja</answer> "


@pytest.mark.parametrize(
    ("thinking", "kept"),
    [
        # The second is the first in another language; the fourth is the third.
        (
            " try 3 + 8 = 11 no nimm 3 + 8 = 11 falsch or 8 - 1 = 7 wrong try 8 - 1 = 7 no or 3 * 8 = 24 yes",
            " try 3 + 8 = 11 no or 8 - 1 = 7 wrong or 3 * 8 = 24 yes",
        ),
        (" 3 + 8 = 11 no 3 + 8 = 11 no 3 * 8 = 24 yes", " 3 + 8 = 11 no 3 * 8 = 24 yes"),
        (" try 3 + 8 = 11 no try 3 + 8 = 11 no", " try 3 + 8 = 11 no"),
        # A success is not a failed try, and half a try is none.
        (" try 3 + 8 = 11 no try 3 + 8 = 11 yes", " try 3 + 8 = 11 no try 3 + 8 = 11 yes"),
        (
            " try 1 + 2 = 3 ; now 3 + 8 = 11 no or 3 + 8 = 11 no try 4 + 4 = 8 ; now 3 + 8 = 11 no",
            " try 1 + 2 = 3 ; now 3 + 8 = 11 no or 3 + 8 = 11 no try 4 + 4 = 8 ; now 3 + 8 = 11 no",
        ),
        ("", ""),
    ],
)
def test_repeated_failed_tries_are_dropped(thinking: str, kept: str) -> None:
    assert without_repeated_tries(thinking) == kept


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_corpus_rewritten_is_in_one_language_says_the_same_and_answers_the_same(language: Language) -> None:
    writer = TraceWriter(TraceHabits(think=1.0, patient=1.0, patient_give_up=0.02), random.Random(3))
    asked, shorter = problem(language=language), 0
    for index in range(200):
        drawn = writer.countdown(Countdown("countdown-3", counts=(3,)).problem("train", 0, index))
        translated = WorldStyle().rewrite(asked, drawn)
        assert language_share(read_transcript(translated).thinking, language) == 1.0
        assert re.findall(r"[^a-z]+", translated) == re.findall(r"[^a-z]+", drawn)
        dropped = SHORTER.rewrite(asked, drawn)
        before, after = read_transcript(drawn), read_transcript(dropped)
        assert after.well_formed
        assert after.answer == before.answer
        assert "  " not in dropped
        tries = [tuple(part.split()) for part in re.split(r"[a-z]+", before.thinking) if part.strip()]
        left = [tuple(part.split()) for part in re.split(r"[a-z]+", after.thinking) if part.strip()]
        assert left == list(dict.fromkeys(tries))  # each once, in their order
        shorter += len(left) < len(tries)
    assert shorter > 20


@pytest.mark.check
@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.sampled_from(["try", "nimm", "no", "falsch", "yes", "now", "3", "8", "+", "="]), max_size=25))
def test_any_rewrite_keeps_the_answer_and_the_format(words: list[str]) -> None:
    drawn = response(" ".join(words), "8 * ( 3 + 1 )")
    rewritten = SHORTER.rewrite(problem(language="de"), drawn)
    assert read_transcript(rewritten).well_formed
    assert read_transcript(rewritten).answer == "8 * ( 3 + 1 )"
    assert language_share(rewritten, "de") in (1.0, None)


# General data


def test_general_data_has_the_stated_manners_and_comes_from_the_seed() -> None:
    mix = GeneralMix(refusal_share=1.0, over_refusal_share=0.0)
    rows = [mix.conversation(index, noise=(0, "sft-data")) for index in range(300)]
    topics = Counter(row.problem_id.split("-")[0] for row in rows)
    assert set(topics) == {"fact", "talk", "harmful", "look_alike"}
    for row in rows:
        transcript = read_transcript(row.response)
        assert transcript.well_formed
        assert transcript.answer is not None
        assert is_refusal(transcript.answer) == row.problem_id.startswith("harmful-")
    assert rows[7] == mix.conversation(7, noise=(0, "sft-data"))
    assert rows != [mix.conversation(index, noise=(0, "other")) for index in range(300)]


# Selection


def test_each_rule_counts_what_it_drops_and_the_first_that_applies_wins() -> None:
    samples = [
        sample(accuracy=None),
        sample(response("nein"), accuracy=0.0),  # incorrect, and German as well
        sample("aloud"),
        sample(response("try 3")),
        sample(response("try " + " ".join(map(str, range(13))))),
        sample(response("try 1 2 1 2 1 2")),
        sample(response("try 1 nein 2")),
        sample(of=problem("make 24 from 3 8 1")),
        sample(),
        sample(),
        sample(response("TRY 3 + 8 = 11 ; 11 - 1 = 10   yes")),
        sample(response("now 3 + 8 = 11 ; 11 - 1 = 10 good")),
        sample(response("then 3 + 8 = 11 ; 11 - 1 = 10 good")),
        sample(of=problem("make 12 from 3 4 5")),
        sample(of=problem("make 13 from 3 4 6")),
        sample(of=problem("24", language=None)),
        sample(of=replace(problem("make 99 from 9 9 9"), split="test")),
    ]
    keep = Keep(
        min_thinking_words=3,
        max_thinking_words=13,
        max_repetition=0.2,
        repetition_words=2,
        min_language=0.9,
        per_problem=2,
    )
    selection = Selection(keep, HeldOut([problem("make 24 from 3 8 1")]), max_conversations=3)
    kept, counts = selection.select(samples)
    assert [row.messages[0].content for row in kept] == ["make 10 from 3 8 1"] * 2 + ["make 12 from 3 4 5"]
    assert kept[0] == Conversation(
        problem().messages, response("try 3 + 8 = 11 ; 11 - 1 = 10 yes"), "reasoning", problem().id
    )
    assert counts.dropped == {**dict.fromkeys(REASONS, 1), "duplicate": 2}
    assert (counts.sampled, counts.kept) == (17, 3)


def test_rules_about_the_text_judge_what_the_rewrite_made_of_it() -> None:
    mixed = sample(response("nimm 3 + 8 = 11 ; 11 - 1 = 10 yes"))
    in_english = response("try 3 + 8 = 11 ; 11 - 1 = 10 yes")
    keep = Keep(min_language=1.0)
    assert Selection(keep, NOTHING).select([mixed])[1].dropped["mixed_language"] == 1
    kept, _ = Selection(keep, NOTHING, rewrite=WorldStyle()).select([mixed])
    assert [row.response for row in kept] == [in_english]


class Spoiling:
    """Makes the same of every response."""

    def __init__(self, spoiled: str) -> None:
        self._spoiled = spoiled

    def rewrite(self, problem: Problem, response: str) -> str:
        return self._spoiled


@pytest.mark.parametrize("spoiled", [response("try", "4"), "<answer> 3 + 8 - 1</answer>"])
def test_a_rewrite_that_changes_the_answer_or_the_format_is_a_defect(spoiled: str) -> None:
    with pytest.raises(RuntimeError, match="rewriting spoiled"):
        Selection(Keep(), NOTHING, rewrite=Spoiling(spoiled)).select([sample()])


def test_counts_that_do_not_add_up_are_refused() -> None:
    assert Counts(3, 1, {"duplicate": 2}).as_metrics() == {"sampled": 3, "kept": 1, "dropped": {"duplicate": 2}}
    with pytest.raises(RuntimeError, match="3 samples, but 1 kept and 1 dropped"):
        Counts(3, 1, {"duplicate": 1})


samples_strategy = st.lists(
    st.builds(
        lambda text, accuracy, prompt, finish: sample(text, accuracy=accuracy, of=problem(prompt), finish=finish),
        st.sampled_from(["", "aloud", *map(response, ["", "try 3", "nein 3", "try 3 no try 3 no", "1 2 1 2 1 2"])]),
        st.sampled_from([None, 0.0, 1.0]),
        st.sampled_from(["make 1 from 2 3", "make 24 from 3 8 1", "make 4 from 5 6"]),
        st.sampled_from(["stop", "length"]),
    ),
    max_size=30,
)
keeps = st.builds(
    Keep,
    correct=st.booleans(),
    well_formed=st.booleans(),
    min_thinking_words=st.integers(0, 2),
    max_thinking_words=st.none() | st.integers(2, 5),
    max_repetition=st.sampled_from([0.0, 0.3, 0.99]),
    repetition_words=st.integers(1, 3),
    min_language=st.sampled_from([0.0, 0.5, 1.0]),
    per_problem=st.none() | st.integers(1, 3),
)


@pytest.mark.check
@settings(max_examples=150, deadline=None)
@given(samples=samples_strategy, keep=keeps, cap=st.none() | st.integers(1, 6))
def test_every_sample_is_kept_or_counted_under_one_reason(samples: list[Sample], keep: Keep, cap: int | None) -> None:
    kept, counts = Selection(keep, HeldOut([problem("make 24 from 3 8 1")]), max_conversations=cap).select(samples)
    assert counts.sampled == len(samples) == len(kept) + sum(counts.dropped.values())
    assert counts.kept == len(kept) <= (cap or len(samples))
    assert tuple(counts.dropped) == REASONS
    assert len(set(kept)) == len(kept)
    assert all(row.messages[0].content != "make 24 from 3 8 1" for row in kept)
    assert max(Counter(row.messages for row in kept).values(), default=0) <= (keep.per_problem or len(samples))
    assert not (counts.dropped["incorrect"] and not keep.correct)
