"""Figures of several attempts at each problem: pass@k, and the vote of all attempts."""

from collections.abc import Iterator, Sequence

import pytest

from reasonmill.algo.pass_at_k import pass_at_curve
from reasonmill.grading.choice import ChoiceGrader
from reasonmill.grading.mathematics import MathGrader
from reasonmill.grading.verdict import Grader
from reasonmill.plugins.catalogue import installed
from reasonmill.stages.attempts import attempt_figures, consensus
from reasonmill.tasks.named import NamedTask
from reasonmill.tasks.rows import RowsTask
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout


def attempts(task: NamedTask, problem: Problem, texts: Sequence[str]) -> Group:
    """A group of these texts, graded by the task; of an empty text nobody can tell."""
    completions = [Completion((1,), (0.0,), (True,), text, "stop", 0) for text in texts]
    grades = [
        g if c.text else Grade(None, error="?")
        for c, g in zip(completions, task.grade(problem, completions), strict=True)
    ]
    return Group(problem, tuple(Rollout((1,), c, g) for c, g in zip(completions, grades, strict=True)))


def of(grader: Grader, answer: str, *texts: str, **meta: object) -> tuple[Group, NamedTask]:
    task = NamedTask("rows", RowsTask(grader))
    return attempts(task, Problem("rows", (Message("user", "?"),), answer, meta), texts), task


@pytest.mark.parametrize(
    ("answer", "texts", "vote"),
    [
        # One half is written in three ways, which are one answer.
        ("1/2", (r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{2}", r"\boxed{2}"), 1.0),
        # So is what is wrong: three votes for two thirds against two for the right one.
        ("1/2", (r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{2/3}", r"\boxed{\frac{4}{6}}", r"\boxed{\frac23}"), 0.0),
        # A tie is decided by lot.
        ("7", (r"\boxed{7}", r"\boxed{8}", r"\boxed{9}"), 1 / 3),
        # Attempts without an answer do not vote.
        ("7", (r"\boxed{7}", "I do not know", "nor I", "nor I"), 1.0),
        ("7", ("I do not know", "nor I"), 0.0),
    ],
)
def test_the_answer_that_most_attempts_give(answer: str, texts: Sequence[str], vote: float) -> None:
    assert consensus(*of(MathGrader(answer_in="boxed"), answer, *texts)) == pytest.approx(vote)


def test_other_right_answers_of_a_problem_do_not_make_wrong_ones_the_same() -> None:
    texts = (r"\boxed{3}", r"\boxed{5}", r"\boxed{6}", r"\boxed{7}")
    assert consensus(*of(MathGrader(answer_in="boxed"), "3", *texts, answers=["4"])) == pytest.approx(1 / 4)


def test_options_are_put_to_the_vote_by_their_letters() -> None:
    texts = ("Answer: B", "**Answer: (B)**", "Answer: green", "Answer: A")
    group, task = of(ChoiceGrader(), "B", *texts, choices=["red", "blue", "green", "white"])
    assert consensus(group, task) == 1.0


def test_a_vote_that_the_grader_could_not_tell_is_none() -> None:
    task = NamedTask("rows", RowsTask(MathGrader(answer_in="boxed")))
    group, _ = of(MathGrader(answer_in="boxed"), "7", r"\boxed{7}", r"\boxed{8}", r"\boxed{8}")
    unknown = [
        Rollout((1,), r.completion, Grade(None, error="?") if "8" in r.completion.text else r.grade)
        for r in group.rollouts
    ]
    assert consensus(Group(group.problem, tuple(unknown)), task) is None


def test_figures_by_hand() -> None:
    task = installed().task("arithmetic")

    def groups() -> Iterator[Group]:
        for index, rights in enumerate((4, 1, 0)):
            problem = task.problem("test", 0, index)
            right = f"<think></think><answer> {problem.answer}</answer>"
            wrong = [f"<think></think><answer> {int(problem.answer) + n}</answer>" for n in (1, 1, 2, 2)]
            yield attempts(task, problem, [right] * rights + wrong[rights:])

    figures = attempt_figures([*groups()], task)
    assert {name: figure["value"] for name, figure in figures.items()} == pytest.approx(
        # Of the second problem's attempts one in four is right: a pair holds it with 1/2. One vote of four is no
        # majority against two that agree.
        {"pass@2": (1 + 1 / 2 + 0) / 3, "pass@4": 2 / 3, "cons@4": 1 / 3, "could_not_tell_rate": 0.0}
    )
    assert all(figure["low"] < figure["high"] for figure in figures.values())


def test_what_has_many_right_answers_is_not_put_to_the_vote() -> None:
    task = installed().task("countdown-3")
    problem = task.problem("test", 0, 0)
    figures = attempt_figures([attempts(task, problem, [problem.answer, "1", ""])], task)
    assert figures.keys() == {"pass@2", "could_not_tell_rate"}
    assert figures["could_not_tell_rate"]["value"] == pytest.approx(1 / 3)


def test_a_curve_counts_problems_with_so_many_attempts() -> None:
    curve = pass_at_curve([("a", 6, 3), ("b", 2, 0)])
    assert list(curve) == [1, 2, 4, 6]
    assert [curve[k].value for k in curve] == pytest.approx([0.25, (0.8 + 0) / 2, 1.0, 1.0])
