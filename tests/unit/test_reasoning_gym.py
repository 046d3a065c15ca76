"""reasoning-gym as a task: the same items everywhere, splits by content, credit for the answer and nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reasonmill.errors import RecipeError
from reasonmill.gym.drawing import DRAWING
from reasonmill.gym.evaluated import may_be_evaluated
from reasonmill.gym.families import as_json, from_json
from reasonmill.gym.grader import GymGrader
from reasonmill.gym.task import ReasoningGym
from reasonmill.tasks.splits import SPLITS
from reasonmill.types import Problem


@pytest.fixture(scope="module")
def gym() -> Iterator[None]:
    pytest.importorskip("reasoning_gym")
    yield
    DRAWING.end()


def outcome(problem: Problem, answer: str) -> str:
    return GymGrader().judge(problem, f"<think> so</think><answer>{answer}</answer>").outcome


@pytest.mark.parametrize(
    "value",
    [
        {"a": (1, 2), "b": [(), {"c": (None,)}], "d": True, "e": 0.1},
        {(0, 1): "north", (2, 3): {"x": {1, 2}}},
        {1: "one", 2: ["two"]},
        [{}, [], (), "", -1],
    ],
)
def test_what_json_has_not_comes_back(value: Any) -> None:
    assert from_json(json.loads(json.dumps(as_json(value)))) == value


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(RecipeError, match="needs the package") as refused:
        ReasoningGym("chain_sum").problem("train", 0, 0)
    assert "reasonmill[reasoning-gym]" in refused.value.fix


@pytest.mark.usefixtures("gym")
def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(RecipeError, match="config is that of a family, and none is named"):
        ReasoningGym(config={"min_terms": 2})
    with pytest.raises(RecipeError, match="no family of reasoning-gym is named"):
        ReasoningGym().problem("train", 0, 0)
    with pytest.raises(RecipeError, match="no family 'chain_sums'") as refused:
        ReasoningGym("chain_sums").problem("train", 0, 0)
    assert "'chain_sum'" in refused.value.fix
    with pytest.raises(RecipeError, match="takes no 'min_term'") as refused:
        ReasoningGym("chain_sum", {"min_term": 3}).problem("train", 0, 0)
    assert "'min_terms'" in refused.value.fix
    with pytest.raises(RecipeError, match="takes no 'seed'"):
        ReasoningGym("chain_sum", {"seed": 3}).problem("train", 0, 0)
    with pytest.raises(RecipeError, match="refuses its configuration"):
        ReasoningGym("chain_sum", {"min_terms": 9, "max_terms": 2}).problem("train", 0, 0)
    assert ReasoningGym("chain_sum").problem("train", 0, 0).answer, "the process that draws outlives a mistake"


@pytest.mark.usefixtures("gym")
def test_splits_go_by_content_and_neighbouring_seeds_share_little() -> None:
    task = ReasoningGym("chain_sum")
    asked = {
        (split, seed): {task.problem(split, seed, index).messages[0].content for index in range(60)}
        for split in SPLITS
        for seed in (1, 2)
    }
    by_split = {split: asked[split, 1] | asked[split, 2] for split in SPLITS}
    assert by_split["train"].isdisjoint(by_split["test"])
    assert by_split["dev"].isdisjoint(by_split["test"] | by_split["train"])
    assert len(asked["train", 1] & asked["train", 2]) < 5
    assert [task.problem("test", 1, index) for index in range(3)] == [
        problem for problem, _ in zip(task.problems("test", 1), range(3), strict=False)
    ]


@pytest.mark.usefixtures("gym")
def test_another_process_draws_the_same_from_sets_of_texts() -> None:
    """These families draw from sets, whose order is another one in each process."""
    program = (
        "from reasonmill.gym.task import ReasoningGym\n"
        "for family in ('isomorphic_strings', 'ransom_note', 'polynomial_multiplication'):\n"
        "    print([ReasoningGym(family).problem('train', 0, index).id for index in range(4)])\n"
    )
    printed = set()
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program]
        printed.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(printed) == 1


@pytest.mark.usefixtures("gym")
def test_the_process_that_draws_ends_and_starts_again() -> None:
    task = ReasoningGym("chain_sum")
    first = task.problem("train", 0, 0)
    process = DRAWING._process
    assert process is not None
    process.kill()
    process.wait()
    assert task.problem("train", 0, 0) == first  # which was kept
    with pytest.raises(Exception, match="ended while it drew"):
        task.problem("train", 0, 1)
    task.problem("train", 0, 1)
    running = DRAWING._process
    assert running is not None
    DRAWING.end()
    assert running.poll() is not None
    assert not Path(f"/proc/{running.pid}").exists()


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize("family", ["gsm_symbolic", "chain_sum", "game_of_life_halting", "puzzle24", "word_sorting"])
def test_credit_for_the_answer_alone(family: str) -> None:
    """reasoning-gym's own scorers give the whole point to some of these."""
    task = ReasoningGym(family)
    problems = [task.problem("train", 0, index) for index in range(4)]
    for problem, another in zip(problems, [*problems[1:], problems[0]], strict=True):
        gold, other = problem.answer, another.answer
        assert outcome(problem, gold) == outcome(problem, f"\n{gold} ") == outcome(problem, f"{gold}.") == "right"
        for answer in [
            *("", "None", "banana", "[]", problem.messages[0].content, "1" * 30_000),
            *(f"{gold} or {other}", f"{other} or {gold}", f"{other}\n{gold}", f"{gold}\n{other}", f"{gold} {gold}"),
            *(f"the answer is {gold}", f"{gold} banana", f"-{gold}", "__import__('os')._exit(0)"),
            *([other] if other != gold else []),
        ]:
            assert outcome(problem, answer) == "wrong", answer
        assert GymGrader().judge(problem, f"<think> {gold}").outcome == "wrong"


@pytest.mark.usefixtures("gym")
def test_another_right_answer_has_credit() -> None:
    problem = ReasoningGym("countdown").problem("train", 0, 0)
    swapped = f"({problem.answer})"
    assert outcome(problem, swapped) == "right"
    assert outcome(problem, f"{problem.answer} + 1") == "wrong"


def test_a_problem_of_something_else_can_not_be_graded() -> None:
    from reasonmill.types import Message

    problem = Problem("reasoning-gym", (Message("user", "?"),), "18")
    assert outcome(problem, "18") == "could not tell"


SETS_A_MARK = "__import__('os').environ.setdefault('REASONMILL_PLANTED', '1')"
HOSTILE = [
    SETS_A_MARK,
    f"[{SETS_A_MARK}]",
    f"({SETS_A_MARK})!",
    "().__class__.__mro__",
    "sympify('_'+'_import_'+'_')",
    "S(x)",
    "(S)(x)",
    "x.subs(x, 1)",
    "x . subs",
    "lambda: 1",
    "exit()",
    "exec(chr(112))",
]


@pytest.mark.parametrize("answer", HOSTILE)
def test_what_could_decide_is_not_evaluated(answer: str) -> None:
    assert not may_be_evaluated(answer, "value = sympy.parse_expr(answer)", "x + 1")
    # Without a parenthesis, Python calls nothing.
    assert may_be_evaluated(answer, "value = eval(answer)", "x + 1") == (answer in ("x . subs", "lambda: 1"))
    assert may_be_evaluated(answer, "value = ast.literal_eval(answer)", "x + 1")


def test_answers_are_evaluated() -> None:
    for answer in ["[[1, 0], [0, 1]]", "[('a', 1)]", "1 0\n0 1", "['x', 'y']"]:
        assert may_be_evaluated(answer, "eval(answer)", "")
    for answer in ["(3 + 5) * 3 / 2", "x**2/2 + C", "-sin(3*x)/3 + exp(x) + C", "2.5*x", "Si(x)"]:
        assert may_be_evaluated(answer, "parse_expr(answer)", "Si(x) + C")
    assert not may_be_evaluated("Si(x)", "parse_expr(answer)", "Si is x")


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize("family", ["string_insertion", "n_queens", "simple_integration", "countdown"])
def test_hostile_answers_are_wrong_and_not_run(family: str) -> None:
    problem = ReasoningGym(family).problem("train", 0, 0)
    for answer in HOSTILE:
        assert outcome(problem, answer) == "wrong", answer
    assert "REASONMILL_PLANTED" not in os.environ
    assert outcome(problem, problem.answer) == "right"


@pytest.mark.check
@pytest.mark.usefixtures("gym")
def test_every_family_gives_and_grades_items() -> None:
    from reasoning_gym.factory import DATASETS

    # Their items take seconds to make; the others take milliseconds.
    slow = {"composite", "futoshiki", "knight_swap", "sokoban"}
    families = sorted(set(DATASETS) - slow)
    assert len(families) > 95
    for family in families:
        problem = ReasoningGym(family).problem("train", 0, 0)
        assert json.loads(json.dumps(dict(problem.meta))) == problem.meta
        if problem.meta["item"]["answer"] is not None:
            assert outcome(problem, problem.answer) == "right", family
        assert outcome(problem, "banana") == "wrong", family
