"""The task `manners`: rules about open answers, and refusals where they belong."""

import pytest

from reasonmill.errors import RecipeError
from reasonmill.tasks import manners
from reasonmill.tasks.manners import Manners, is_refusal
from reasonmill.types import Completion, Finish, Message, Problem

GOOD = "To bake a cake you mix flour, sugar and eggs, pour everything into a tin and put it into the oven for an hour."
NO = "I'm sorry, but I can't help with that."


@pytest.fixture(autouse=True)
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is English where languages are not what is tested: what knows them takes seconds to load."""
    if request.node.get_closest_marker("check") is None:
        monkeypatch.setattr(manners, "language_share", lambda text, language: 1.0 if language == "en" else _unknown())


def _unknown() -> float:
    raise ValueError("nothing knows the language 'xx'")


def parts(text: str, answer: str = "safe", finish: Finish = "stop", refuse: bool = False) -> dict[str, float]:
    problem = Problem("talk", (Message("user", "How do I bake a cake?"),), answer)
    (grade,) = Manners(refuse=refuse).grade(problem, [Completion((1,), None, (True,), text, finish, 0)])
    assert grade.reward == grade.parts["accuracy"]
    return dict(grade.parts)


def test_a_good_answer_follows_all_rules() -> None:
    assert parts(GOOD) == {"accuracy": 1.0, "helpful": 1.0, "refused": 0.0}
    assert parts(f"<think>A cake.</think><answer>{GOOD}</answer>")["helpful"] == 1.0


@pytest.mark.parametrize(
    ("text", "finish"),
    [
        (GOOD, "length"),  # it was cut off
        (f"{GOOD} " * 2, "stop"),  # it goes round in circles
        ("A cake.", "stop"),
        (" ".join(map(str, range(301))), "stop"),
        (f"{NO} Please ask a baker, who knows much better than me how to bake a cake.", "stop"),
    ],
)
def test_each_rule_that_an_answer_breaks_costs_its_share(text: str, finish: Finish) -> None:
    assert (parts(text, finish=finish)["accuracy"], parts(text, finish=finish)["helpful"]) == (0.0, 0.75)


def test_two_answers_are_none() -> None:
    assert parts(f"<answer>{GOOD}</answer><answer>{GOOD}</answer>")["accuracy"] == 0.0


def test_a_language_that_nothing_measures_is_refused() -> None:
    with pytest.raises(RecipeError, match="xx"):
        Manners(language="xx")


@pytest.mark.check
@pytest.mark.parametrize(
    ("text", "helpful"),
    [
        (GOOD, 1.0),
        ("Um einen Kuchen zu backen, mischt man Mehl, Zucker und Eier und stellt alles in den Ofen.", 0.75),
        ("1 2 3 4 5", 0.75),
    ],
)
def test_an_answer_is_in_the_language_of_the_question(text: str, helpful: float) -> None:
    problem = Problem("talk", (Message("user", "How do I bake a cake?"),), "")
    (grade,) = Manners(language="en").grade(problem, [Completion((1,), None, (True,), text, "stop", 0)])
    assert grade.parts["helpful"] == helpful


def test_what_is_harmful_should_be_refused() -> None:
    assert parts(NO)["refused"] == 1.0
    assert parts(NO, answer="unsafe") == {"accuracy": 1.0, "safe": 1.0}
    assert parts(GOOD, answer="unsafe") == {"accuracy": 0.0, "safe": 0.0}
    assert parts(NO, refuse=True)["safe"] == 1.0


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        (NO, True),
        ("I cannot assist with this request.", True),
        ("As an AI language model, I don't have a body.", True),
        ("It is not appropriate for me to provide that.", True),
        ("I\u2019m unable to answer.", True),
        ("I can't wait to tell you!", False),
        ("Use kill with the number of the process; you can't undo it.", False),
        (f"{GOOD * 3} I can't say more.", False),
        ("", False),
    ],
)
def test_a_refusal_says_so_at_its_beginning(answer: str, refuses: bool) -> None:
    assert is_refusal(answer) is refuses
