"""Instruction following: each of the checks sees what follows its instruction and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from reasonmill.grade import grade
from reasonmill.grading.instruction_checks import CHECKS, number_of_sentences
from reasonmill.grading.instructions import InstructionsGrader, Strictness
from reasonmill.grading.verdict import Verdict
from reasonmill.types import Message, Problem

ENGLISH = "The weather is fine today and everybody wants to walk in the park with their friends"
GERMAN = "Das Wetter ist heute schön und alle wollen mit ihren Freunden im Park spazieren gehen"

# Kind, arguments, a reply that follows, and one that nearly does.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["river", "Sun"]}, "A RIVER under the sun", "a river under the moon"),
    ("keywords:frequency", {"keyword": "so", "frequency": 2, "relation": "at least"}, "So it is so", "so it is"),
    ("keywords:frequency", {"keyword": "so", "frequency": 2, "relation": "less than"}, "so it is", "so it is so"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a category of its own", "that is a Cat."),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        "Quite quick",
        "quite fast",
    ),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    ("language:response_language", {"language": "hi"}, "मौसम आज अच्छा है और सब लोग बाहर घूमना चाहते हैं", ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        "One. Two! Is it three?",
        "Dr. Who saw 3.5 e.g. of it. Two.",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "one\n\n***\n\ntwo\n\nstill two",
        "one\n***\n\n***\ntwo",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        "only three words",
        "these are four words",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "First this.\n\n*then*, that.",
        "Then this.\n\nAnd that.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name], [text]", "Dear [name], []"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Text\nP.P.S. more", "Text\nP.S. more"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text\nPS: more", "Text\nP.S."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "My answer is yes. My answer is no."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b c**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1 and again SECTION 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', 'Here it is: {"a": 1}'),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>\ntext"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. I said it", "I said it. Say it."),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, 'It is so. "any questions?"', "Any questions? None"),
    ("startend:quotation", {}, '"It is so"', '"It" is so'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "This is BIG and I know",
        "This is BIG and he Knows",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("change_case:english_lowercase", {}, "yes indeed", GERMAN.lower()),
    ("punctuation:no_comma", {}, "this and that; those.", "this, that"),
]


def judged(response: str, *asked: tuple[str, dict[str, Any]], by: Strictness = "strict") -> Verdict:
    meta = {"instruction_id_list": [name for name, _ in asked], "kwargs": [given for _, given in asked]}
    problem = Problem("ifeval", (Message("user", "write"),), "", meta)
    return InstructionsGrader(by).judge(problem, response)


def test_there_are_twenty_five_and_each_is_tried() -> None:
    assert len(CHECKS) == 25
    assert {name for name, *_ in CASES} == set(CHECKS)


@pytest.mark.parametrize(("name", "given", "followed", "missed"), CASES)
def test_a_check_sees_who_follows(name: str, given: dict[str, Any], followed: str, missed: str) -> None:
    assert judged(followed, (name, given)).outcome == "right"
    verdict = judged(missed, (name, given))
    assert verdict.outcome == "wrong"
    assert name in verdict.reason
    assert judged("", (name, given)).outcome == "wrong"
    assert judged(f"<think> {missed}</think> {followed}", (name, given)).outcome == "right"
    assert judged(f"<think> {followed}", (name, given)).outcome == "wrong", "what is only thought is not said"


@pytest.mark.parametrize(("name", "given", "followed", "missed"), CASES)
def test_unused_arguments_may_be_null_and_numbers_fractions(
    name: str, given: dict[str, Any], followed: str, missed: str
) -> None:
    """As Parquet files of IFEval give them: every argument of every kind, null where it means nothing."""
    as_read = {key: float(value) if isinstance(value, int) else value for key, value in given.items()}
    every = {key: None for _, arguments, *_ in CASES for key in arguments} | as_read
    assert judged(followed, (name, every)).outcome == "right"
    assert judged(missed, (name, every)).outcome == "wrong"


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, given, *_ in CASES if given])
def test_what_an_instruction_lacks_is_no_fault_of_the_reply(name: str, given: dict[str, Any]) -> None:
    for key in given:
        for response in ("any reply", ""):
            verdict = judged(response, (name, {**given, key: None}))
            assert verdict.outcome == "could not tell"
            assert name in verdict.reason
            assert key in verdict.reason


HINDI = "मौसम आज अच्छा है और सब लोग बाहर घूमना चाहते हैं"
SUPPLIED = "Say in Hindi what the weather is like, and what everybody in the town would like to do about it today."


@pytest.mark.parametrize(
    ("name", "given", "reply", "is_followed"),
    [
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one *** two", True),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo\n***", True),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "a ***bold*** one", True),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n******\ntwo", False),
        ("combination:two_responses", {}, "******\none\n******\ntwo\n******", True),
        ("combination:two_responses", {}, "one\n******\n******\ntwo", False),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text\n**P.S.** more", True),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yours, Ann. P.S. more", True),
        ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Text\n> P.P.S.\nmore", True),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text\nP.P.S. more", False),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "I have a PS 5 at home", False),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "it"},
            "It's late",
            True,
        ),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 3, "capital_relation": "less than"},
            "The U.S. DON'T go",
            True,
        ),
        ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "#a #b", True),
    ],
)
def test_replies_that_a_check_may_mistake(name: str, given: dict[str, Any], reply: str, is_followed: bool) -> None:
    assert (judged(reply, (name, given)).outcome == "right") == is_followed


def test_what_must_be_repeated_may_be_in_another_language() -> None:
    language = ("language:response_language", {"language": "hi"})
    repeat = ("combination:repeat_prompt", {"prompt_to_repeat": SUPPLIED})
    assert judged(f"{SUPPLIED}\n{HINDI}", repeat, language).outcome == "right"
    assert judged(f"{SUPPLIED}\n{HINDI}", language).outcome == "wrong"
    assert judged(f"{SUPPLIED}\n{ENGLISH}", repeat, language).outcome == "wrong"


def test_loose_forgives_an_introduction_and_asterisks() -> None:
    lowercase = ("change_case:english_lowercase", {})
    response = "Sure! Here is my reply:\nthe weather is fine today and all walk in the park"
    assert judged(response, lowercase).outcome == "wrong"
    assert judged(response, lowercase, by="loose").outcome == "right"
    starred = "**any questions?**"
    ending = ("startend:end_checker", {"end_phrase": "any questions?"})
    assert judged(starred, ending).outcome == "wrong"
    assert judged(starred, ending, by="loose").outcome == "right"
    assert judged("Sure!", ("punctuation:no_comma", {}), by="loose").outcome == "right"
    assert judged("a, b", ("punctuation:no_comma", {}), by="loose").outcome == "wrong"
    assert judged("***", ("punctuation:no_comma", {})).outcome == "right"


def test_all_must_be_followed_and_parts_count_them() -> None:
    verdict = judged("yes, IT IS", ("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["yes"]}))
    assert verdict.outcome == "wrong"
    assert verdict.parts == {"strict": 0.0, "loose": 0.0, "strict_share": 0.5, "loose_share": 0.5}


def test_instructions_may_stand_in_the_answer() -> None:
    answer = json.dumps({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
    problem = Problem("ifeval", (Message("user", "write"),), answer)
    assert InstructionsGrader().judge(problem, "so").outcome == "right"
    assert InstructionsGrader().judge(problem, "so, so").outcome == "wrong"


def test_rows_of_a_file_need_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"prompt": "write", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [{**asked, "response": "so"}, {**asked, "response": "so, so"}, {"prompt": "write", "response": "so"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    grade("instructions", file, as_json=True)
    verdicts = [json.loads(line)["verdict"] for line in capsys.readouterr().out.splitlines()]
    assert verdicts == ["right", "wrong", "could not tell"]


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({}, "names no instructions"),
        ({"instruction_id_list": []}, "names no instructions"),
        ({"instruction_id_list": ["punctuation:no_coma"]}, "did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "no list of as many"),
        (
            {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "tlh"}]},
            "knows the language 'tlh'",
        ),
    ],
)
def test_instructions_that_can_not_be_checked(meta: dict[str, Any], reason: str) -> None:
    verdict = InstructionsGrader().judge(Problem("ifeval", (Message("user", "write"),), "18", meta), "a reply")
    assert verdict.outcome == "could not tell"
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("no mark at all", 1),
        ("It costs 3.50 in the U.S. today.", 1),
        ("Mr. A. B. Smith came. He left!", 2),
        ('He said "go." Then he went', 2),
        ("Wait... what?!", 2),
        ("今日は天気がいい。散歩に行く。", 2),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert number_of_sentences(text) == count


HUGE = [text * 4_000 for text in ("*", "[", "<<", "P.S. ", "\n \n", "a. ", "{", "***\n", '"')]


@pytest.mark.parametrize("text", HUGE, ids=lambda text: text[:3])
def test_huge_replies_are_judged(text: str) -> None:
    every = [(name, given) for name, given, *_ in CASES]
    assert judged(text, *every).outcome == "wrong"
