"""The grader of mathematics: a right answer is right in every spelling, a wrong one never is, and nothing hangs."""

import json
import os
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from reasonmill.errors import RecipeError
from reasonmill.grading.math_reference import reference_text
from reasonmill.grading.mathematics import MathGrader
from reasonmill.types import Message, Problem

DATA = Path(__file__).parents[1] / "data"
TABLE = tomllib.loads((DATA / "math_answers.toml").read_text(encoding="utf-8"))
# Answers as GSM8K's, MATH's and AIME's rows have them: a few of each kind.
SAMPLE: list[str] = json.loads((DATA / "math_references.json").read_text(encoding="utf-8"))
# Whoever has the whole files names their folder; benchmarks/math_grading.py says which files these are.
PUBLISHED = os.environ.get("REASONMILL_MATH_DATA", "")
GRADER = MathGrader()
BOXED = MathGrader("boxed")


def said(answer: str, response: str, prompt: str = "?", grader: MathGrader = GRADER) -> str:
    return grader.judge(Problem("math", (Message("user", prompt),), answer), response).outcome


def in_box(answer: str) -> str:
    return f"Let us see: there are 3 cases.\n\nSo the answer is $\\boxed{{{answer}}}$."


def entries() -> Iterator[tuple[str, str, str]]:
    for outcome, table in TABLE.items():
        for entry in table:
            yield from ((outcome, entry["reference"], answer) for answer in entry["answers"])


def test_every_answer_of_the_table_gets_its_verdict() -> None:
    """More than 400 spellings of right answers, and 200 answers that are wrong."""
    others = [
        f"{reference} answered by {answer}: {found}, not {outcome}"
        for outcome, reference, answer in entries()
        if (found := said(reference, in_box(answer), grader=BOXED)) != outcome
    ]
    assert others == []
    assert sum(outcome == "wrong" for outcome, _, _ in entries()) >= 200


def neighbours(answers: list[str]) -> list[str]:
    """What is not as it must be: each reference is right, and wrong as an answer to the one before it."""
    texts = [reference_text(answer) for answer in answers]
    found = []
    for answer, own, following in zip(answers, texts, [*texts[1:], texts[0]], strict=True):
        if said(answer, in_box(own)) != "right":
            found.append(f"{own} is not right")
        same = following.removeprefix("x=") == own.removeprefix("x=")
        if said(answer, in_box(following)) != ("right" if same else "wrong"):
            found.append(f"{own} answered by {following}")
    return found


def test_references_of_published_problems_are_right_and_those_of_the_next_problem_wrong() -> None:
    assert neighbours(SAMPLE) == []


@pytest.mark.check
@pytest.mark.skipif(not PUBLISHED, reason="REASONMILL_MATH_DATA names no folder with GSM8K, MATH-500 and AIME")
@pytest.mark.parametrize("name", ["gsm8k_test.jsonl", "gsm8k_train.jsonl", "math500.jsonl", "aime24.json"])
def test_all_references_of_published_problems(name: str) -> None:
    text = (Path(PUBLISHED) / name).read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    assert len(rows) >= 30
    assert neighbours([row["answer"] for row in rows]) == []


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (r"First \boxed{41}. Wait, that is wrong. So \boxed{42}.", "right"),
        (r"Part 1 gives \boxed{6}. Multiplying by 7 gives the final answer \boxed{42}.", "right"),
        (r"\boxed{41} \boxed{42}", "wrong"),
        ("\\boxed{41}\n\\boxed{42}", "wrong"),
        (r"The answer is \boxed{41} or \boxed{42}.", "wrong"),
        (r"The answer is \boxed{42}, or maybe 41.", "wrong"),
        (r"It is 41 or \boxed{42}", "wrong"),
        (r"The answer is not \boxed{42}.", "wrong"),
        (r"The answer is $\boxed{42}$ and not $\boxed{41}$.", "right"),
        (r"\boxed{42} is wrong.", "wrong"),
        (r"\boxed{42}. No wait, actually the answer is 41.", "wrong"),
        (r"\boxed{41}. No wait, that is wrong, it should be 42.", "right"),
        ("\\boxed{42}\n\nLet me check: 6*7 = 42. Yes.", "right"),
        (r"\boxed{42} \boxed{42}", "right"),
        (r"\boxed{42", "wrong"),
        (r"\boxed{\boxed{42}}", "right"),
        (r"\boxed 42", "right"),
        (r"<think>\boxed{42}</think> \boxed{41}", "wrong"),
        (r"<think>It is 41</think> The answer is \boxed{42}.", "right"),
        ("<think>41? <answer>42</answer>", "wrong"),
        ("<answer>42</answer>", "right"),
        ("<answer>She makes $42 every day</answer>", "right"),
        ("<answer>41</answer><answer>42</answer>", "wrong"),
        ("6 * 7 is it.\n#### 42", "right"),
        ("The answer is 41. The answer is 42.", "wrong"),
        ("**Final Answer**: **42**", "right"),
        ("Final Answer: The final answer is $42$. I hope it is correct.", "right"),
        ("She makes 6 * 7 = $<<6*7=42>>42 every day.", "right"),
        ("She makes $42 every day.", "right"),
        ("Hence it is $42$.", "right"),
        ("42", "right"),
        ("She has 42 eggs left after 3 days.", "could not tell"),
        ("1, 2, 3, 42", "wrong"),
        ("I guess 41, 42 or 43.", "wrong"),
        ("41 or 42", "wrong"),
        ("She buys 42 apples for Tom, Evelyn and Carla.", "right"),
        ("Tom, Evelyn and Carla have 42.", "right"),
        ("The answer is 42 apples for Tom, Evelyn and Carla.", "right"),
        ("It is 42. Is there anything else?", "right"),
        ("They have 42, but 3 are red.", "could not tell"),
        ("", "wrong"),
        ("I have no idea.", "wrong"),
        (r"\boxed{42} and \boxed{Evelyn}", "wrong"),
        (r"\boxed{Evelyn} \boxed{42}", "wrong"),
        ("<answer>42</answer><answer>Evelyn</answer><answer>(B)</answer>", "wrong"),
        ("<answer><answer>42</answer>", "wrong"),
    ],
)
def test_the_last_final_answer_counts(response: str, outcome: str) -> None:
    assert said("42", response) == outcome


@pytest.mark.parametrize(
    ("behind", "outcome"),
    [
        *((text, "wrong") for text in (", but really it is 41.", "? No.", ". No, 41.", " no", " wrong", ". Wait, 41.")),
        *(
            (text, "wrong")
            for text in (". Hmm, wait, that's 41.", ". Scratch that.", ", not really.", ". Just kidding.")
        ),
        *(
            (text, "wrong")
            for text in (" (rejected)", ". Actually, it is 41.", ". 42 is wrong.", ". The true answer is 41.")
        ),
        *((text, "right") for text in (". No other value works.", ". We can check: 6*7 = 42, not 41.", ", not 41.")),
        *((text, "right") for text in (". Note that 41 would be wrong.", ". 41 is wrong.", ". Wait for it: 6*7 = 42.")),
        *((text, "right") for text in (". Actually, this is the only one.", ". Wait, let me check: 6*7 = 42. Yes.")),
        *(
            (text, "right")
            for text in (". There is no other.", ". It is not possible to have more.", ". Actually, 42 = 6*7.")
        ),
    ],
)
def test_only_what_takes_back_the_answer_itself_takes_it_back(behind: str, outcome: str) -> None:
    assert said("42", rf"It is \boxed{{42}}{behind}") == outcome
    assert said("42", f"<answer>42</answer>{behind}") == outcome


@pytest.mark.parametrize("behind", [", but really it is 41.", ". No, 41.", ". Wait, 41.", ". Hmm, wait, that's 41."])
def test_what_is_put_in_the_place_of_an_answer_is_the_answer(behind: str) -> None:
    assert said("41", rf"\boxed{{42}}{behind}") == "right"


def test_a_percent_is_a_hundredth_unless_somebody_speaks_of_percent() -> None:
    assert said("42", in_box(r"42\%")) == "wrong"
    assert said("42", in_box(r"42\%"), "How many percent is it?") == "right"
    assert said(r"42\%", in_box("42")) == "right"
    assert said("0.42", in_box(r"42\%")) == "right"


def test_garbage_that_ends_with_a_digit_is_no_number() -> None:
    assert said("0", "<answer>cpathlib\nPath\n(V/tmp/x/canary\ntRp0\n.</answer>") == "wrong"


def test_the_problem_copied_is_wrong() -> None:
    prompt = "Tom has 42 eggs and eats 3 of them. How many eggs had he at first?"
    assert said("42", in_box("Tom has 42 eggs and eats 3 of them"), prompt) == "wrong"


def test_answers_beside_each_other_are_the_list_that_the_reference_is() -> None:
    assert said("1,-2", r"So x = \boxed{1} or x = \boxed{-2}.") == "right"
    assert said("1,-2", r"So x = \boxed{1} or x = \boxed{2}.") == "wrong"


@pytest.mark.parametrize(
    ("place", "response", "outcome"),
    [
        ("answer", r"\boxed{42}", "wrong"),
        ("boxed", "<answer>42</answer>", "wrong"),
        ("last-line", "so\n42\n", "right"),
        ("last-line", "42\nand so on", "wrong"),
        ("last-number", "6 * 7 = 42 dollars a day", "right"),
        ("last-number", "no number", "wrong"),
    ],
)
def test_an_answer_counts_only_where_it_was_asked_for(place: str, response: str, outcome: str) -> None:
    assert said("42", response, grader=MathGrader(place)) == outcome  # type: ignore[arg-type]


def test_a_pattern_says_where_the_answer_stands() -> None:
    grader = MathGrader("pattern", pattern=r"ANSWER\[(.*?)\]")
    assert said("42", "ANSWER[41] then ANSWER[42]", grader=grader) == "right"
    assert said("42", "42", grader=grader) == "wrong"


@pytest.mark.parametrize(
    "settings",
    [
        {"answer_in": "somewhere"},
        {"answer_in": "pattern"},
        {"pattern": "(.)"},
        {"answer_in": "pattern", "pattern": "("},
        {"answer_in": "pattern", "pattern": "(.)(.)"},
        {"tolerance": 1.0},
        {"tolerance": -0.1},
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        MathGrader(**settings)  # type: ignore[arg-type]


def test_a_calculation_copied_from_the_problem_is_wrong_and_a_fraction_of_its_options_is_right() -> None:
    assert said("408", in_box(r"17 \cdot 24"), r"What is $17\cdot 24$?") == "wrong"
    assert said("408", in_box(r"17 \cdot 24"), "What is the area?") == "right"
    assert said(r"\frac{3}{4}", in_box("3/4"), "Is it 3/4 or 2/3?") == "right"


def test_rounded_numbers_are_right_only_within_a_tolerance_that_was_set() -> None:
    near = MathGrader(tolerance=0.01)
    assert said(r"\pi", in_box("3.14")) == "wrong"
    assert said(r"\pi", in_box("3.14"), grader=near) == "right"
    assert said(r"\pi", in_box("3.2"), grader=near) == "wrong"


def test_what_is_not_read_is_undecided_and_names_the_extra() -> None:
    problem = Problem("math", (Message("user", "?"),), "42")
    verdict = GRADER.judge(problem, in_box(r"\int_0^{42} dx"))
    assert verdict.outcome == "could not tell"
    assert "reasonmill[math]" in verdict.reason


def test_a_reference_that_is_not_read_is_no_fault_of_the_answer() -> None:
    assert said(r"\int f \, dx", in_box("42")) == "could not tell"
    assert said(r"\int f \, dx", in_box(r"\int f\,dx")) == "right"


@pytest.mark.check
def test_math_verify_is_asked_where_a_task_says_so() -> None:
    pytest.importorskip("math_verify")
    grader = MathGrader(symbolic=True)
    assert grader.isolation == "worker"
    assert said("42", in_box(r"\int_0^{42} 1 dx"), grader=grader) == "right"
    assert said("42", in_box(r"\int_0^{41} 1 dx"), grader=grader) == "wrong"
    assert said("42", in_box(r"\int_0^{9^{9^{9}}} 1 dx"), grader=grader) == "could not tell"


def test_without_the_extra_math_verify_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonmill.grading.symbolic.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="math-verify"):
        MathGrader(symbolic=True)


@pytest.mark.parametrize(
    "text",
    [
        *("(" * 100_000, "{" * 100_000, "\\boxed{" * 20_000, "<answer>" * 20_000, "answer is " * 10_000, "$" * 100_000),
        *("\\" * 100_000, "9" * 100_000, "or " * 30_000, "**" * 50_000, "\\text{" * 20_000, "1 or " * 20_000),
        *(in_box("1" * 100_000), in_box("(1+" * 30_000), in_box("9" * 1990), in_box("5" + "!" * 900)),
        *(in_box("9^{9^{9^{9^9}}}"), in_box("((1000!)!)!"), in_box("5" + "%" * 1000), in_box("-" * 1999 + "5")),
        *(in_box("\\sin(" * 39 + "1" + ")" * 39), in_box("+".join(["\\sqrt{%d}" % n for n in range(150)]))),  # noqa: UP031
        *(in_box("10^{9999}\\pi"), in_box("1e9999"), in_box("1/" * 900 + "1"), in_box("\\cup".join(["(0,1)"] * 150))),
        *(in_box("\\frac{" * 300), in_box("|" * 1999), in_box("x^" * 900 + "x"), in_box("\\binom{9999}{4999}")),
        *(in_box(">" + "<" + "," * 30_000), in_box("A" + ", " * 30_000 + "x"), in_box("1" * 30_000 + r" \choose 2")),
        *(in_box("[" + "1;" * 30_000), in_box("]" * 30_000 + "["), in_box("((" * 15_000 + " for all x")),
        *(
            in_box("1:" * 900 + "2"),
            in_box("1 hour " * 250),
            in_box("5 \\pmod " + "{" * 30_000),
            in_box("12 May " * 5_000),
        ),
        *("x" * 1_000_000, "\x00\x01\ud800", "𝟜𝟚" * 1000),
    ],
    ids=lambda text: ascii(text[-40:]),
)
def test_no_response_is_right_hangs_or_raises_by_its_size_or_signs(text: str) -> None:
    assert said("42", text) != "right"
    assert said("\\sqrt{2} + x", text) != "right"


def test_a_long_response_with_a_right_answer_is_right() -> None:
    assert said("42", "x " * 500_000 + "\\boxed{42}") == "right"


@pytest.mark.check
def test_no_drawn_text_raises() -> None:
    rng = random.Random(13)
    signs = [
        *"0123456789+-*/^_!%'|(){}[],;:&=<>.$\\ xyzaei",
        "\\frac",
        "\\sqrt",
        "\\pm",
        "\\text{",
        "\\boxed{",
        "\\cup ",
    ]
    signs += [
        "\\sin ",
        "\\infty",
        "\\{",
        "\\}",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\\\",
        " or ",
        "cm",
        "∞",
        "½",
        "²",
    ]
    references = [entry["reference"] for table in TABLE.values() for entry in table]
    for _ in range(20_000):
        text = "".join(rng.choices(signs, k=rng.randint(1, 25)))
        said(rng.choice(references), in_box(text))
        said(text, in_box("42"))
