"""The graders of multiple choice and of short texts."""

import pytest

from reasonmill.errors import RecipeError
from reasonmill.grading.choice import ChoiceGrader
from reasonmill.grading.text import TextGrader
from reasonmill.types import Message, Problem

OPTIONS = {"options": ["Paris", "London", "Rome", "New York City"]}


def chosen(answer: str, response: str, meta: dict[str, object] | None = None) -> str:
    problem = Problem("choice", (Message("user", "?"),), answer, meta or {})
    return ChoiceGrader().judge(problem, response).outcome


def matched(answer: str, response: str, grader: TextGrader, meta: dict[str, object] | None = None) -> str:
    return grader.judge(Problem("text", (Message("user", "?"),), answer, meta or {}), response).outcome


@pytest.mark.parametrize(
    "response",
    [
        *(
            "B",
            "(B)",
            "B.",
            "**B**",
            r"\boxed{B}",
            r"\boxed{\text{B}}",
            r"$\boxed{\textbf{(B)}}$",
            "<answer>B</answer>",
        ),
        *("The answer is B.", "The answer is (B) London.", "Answer: B", "**Answer: B) London**", "\\boxed{b}"),
        *("It is not A.\n\nThe correct answer is B", "<answer>London</answer>", "<answer>B: London</answer>"),
        *("Because of the Thames:\nB) London", "Final answer: option B"),
    ],
)
def test_the_right_option_is_right_in_every_spelling(response: str) -> None:
    assert chosen("B", response, OPTIONS) == "right"


@pytest.mark.parametrize(
    "response",
    [
        *(
            "A",
            "(C)",
            "The answer is A or B.",
            "A, B",
            r"\boxed{A} \boxed{B}",
            "A, B, C, D",
            "ABCD",
            "The answer is not B.",
        ),
        *("<answer>Paris</answer>", "", "I do not know", "<answer>not B</answer>", "The answer is A. The answer is B."),
        *("<answer>A B C D</answer>", "E", "\\boxed{}", "B is wrong.\nA"),
    ],
)
def test_another_option_several_or_none_is_wrong(response: str) -> None:
    assert chosen("B", response, OPTIONS) == "wrong"


@pytest.mark.parametrize("text", ["(" * 100_000, "A  " * 600 + "?", "the option " * 180, "(" * 1999 + "a"])
def test_no_text_chooses_or_hangs_by_its_size(text: str) -> None:
    assert chosen("B", f"<answer>{text}</answer>", OPTIONS) != "right"


def test_references_name_an_option_by_letter_number_or_text() -> None:
    for reference in ("B", "(B)", "1", "London"):
        assert chosen(reference, r"\boxed{B}", OPTIONS) == "right"
        assert chosen(reference, r"\boxed{C}", OPTIONS) == "wrong"
    assert chosen("A, C", r"\boxed{C, A}", OPTIONS) == "right"
    assert chosen("A, C", r"\boxed{A}", OPTIONS) == "wrong"
    assert chosen("7", r"\boxed{B}", OPTIONS) == "could not tell"


def test_a_table_of_labels_and_texts_is_options_too() -> None:
    table = {"choices": {"label": ["A", "B"], "text": ["ice", "fire"]}}
    assert chosen("B", "<answer>fire</answer>", table) == "right"


@pytest.mark.parametrize(
    "response", ["The answer is Marie Curie.", "<answer>marie  curie</answer>", "\\boxed{Marie Curie}"]
)
def test_case_spaces_and_punctuation_are_no_part_of_a_text(response: str) -> None:
    assert matched("Marie Curie", response, TextGrader()) == "right"


@pytest.mark.parametrize("answer", ["Pierre Curie", "not Marie Curie", "Marie Curie or Pierre Curie", "", "Marie"])
def test_other_texts_are_wrong(answer: str) -> None:
    for grader in (TextGrader(), TextGrader("strict"), TextGrader("fuzzy")):
        assert matched("Marie Curie", f"<answer>{answer}</answer>", grader) == "wrong"


def test_fuzzy_forgives_slips_of_spelling_but_neither_numbers_nor_negations() -> None:
    fuzzy = TextGrader("fuzzy")
    assert matched("Tchaikovsky", "<answer>Tchaikovski</answer>", fuzzy) == "right"
    assert matched("Tchaikovsky", "<answer>Tchaikovski</answer>", TextGrader()) == "wrong"
    assert matched("in the year 1912", "<answer>in the year 1913</answer>", fuzzy) == "wrong"
    assert matched("it is allowed to go in", "<answer>it is not allowed to go in</answer>", fuzzy) == "wrong"


def test_a_text_that_is_too_long_is_wrong_and_a_reference_that_is_too_long_could_not_be_told() -> None:
    assert matched("USA", f"<answer>{'USA ' * 5000}</answer>", TextGrader("fuzzy")) == "wrong"
    assert matched("USA " * 5000, "<answer>USA</answer>", TextGrader("fuzzy")) == "could not tell"


def test_further_answers_of_a_row_are_right_as_well() -> None:
    assert matched("USA", "<answer>United States</answer>", TextGrader(), {"answers": ["United States"]}) == "right"


def test_a_similarity_without_effect_is_refused() -> None:
    with pytest.raises(RecipeError, match="no effect"):
        TextGrader("exact", similarity=0.8)
