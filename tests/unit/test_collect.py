"""The collect stage: its own problems, graded samples, and nothing that is committed is sampled again."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from contexts import KEY, a_context
from kept_progress import KeptProgress, Killed
from reasonmill.errors import Interrupted, TooManyUngraded
from reasonmill.plugins.catalogue import Catalogue, installed
from reasonmill.protocols import Domain
from reasonmill.recipe.reference import model_directory
from reasonmill.stage import Input, Outcome, StageContext
from reasonmill.stages.collect import Settings, problems_of, run, task_metrics
from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import Home
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout
from reasonmill.world.arithmetic import Arithmetic

MODEL = model_directory("tiny-base-weak")


def settings(**changed: object) -> Settings:
    chosen = {"tasks": {"countdown-3": 3, "arithmetic": 2}, "samples": 2, "sampling": {"max_tokens": 12}}
    chosen |= {"problems_per_commit": 2, "name": "cold-rollouts", "kind": "collect", "from": "tiny-base-weak"}
    return Settings.model_validate(chosen | changed)


def context(home: Home, recorder: KeptProgress | None = None, stop: Callable[[], bool] = lambda: False) -> StageContext:
    return a_context(home, recorder, stop)


def collected(home: Home, chosen: Settings, recorder: KeptProgress | None = None) -> Outcome:
    return run(chosen, {"from": Input(MODEL, "digest")}, context(home, recorder))


def written(outcome: Outcome, directory: Path) -> list[Group]:
    directory.mkdir()
    outcome.write(directory)
    return read_groups(directory / GROUPS_FILE)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as opened:
        yield opened


def own_problems(home: Home, chosen: Settings) -> list[Problem]:
    surroundings = context(home)
    tasks = {name: surroundings.task(name) for name in sorted(chosen.tasks)}
    return problems_of(chosen, tasks, surroundings.seed)


def test_every_problem_is_sampled_and_graded(home: Home, tmp_path: Path) -> None:
    outcome = collected(home, settings())
    groups = written(outcome, tmp_path / "rollouts")
    assert [group.problem for group in groups] == own_problems(home, settings())
    assert [group.problem.task for group in groups] == ["arithmetic"] * 2 + ["countdown-3"] * 3
    assert all(len(group.rollouts) == 2 for group in groups)
    texts = [[rollout.completion.text for rollout in group.rollouts] for group in groups]
    assert any(one != other for one, other in texts)
    tokens = sum(len(rollout.completion.tokens) for group in groups for rollout in group.rollouts)
    assert outcome.tokens == outcome.metrics["tokens"] == tokens
    figures = outcome.metrics["collected"]["countdown-3"]
    assert (figures["problems"], figures["samples"], figures["ungraded"]) == (3, 6, 0)
    assert set(figures["pass@1"]) == {"value", "low", "high"}


def test_general_tasks_can_be_collected_too(home: Home, tmp_path: Path) -> None:
    groups = written(collected(home, settings(tasks={"facts": 2})), tmp_path / "rollouts")
    assert all(rollout.grade.reward is not None for group in groups for rollout in group.rollouts)


def test_problems_are_those_of_no_other_stage_and_of_the_training_split(home: Home) -> None:
    chosen = settings(tasks={"countdown-4": 30})
    task = installed().task("countdown-4")
    own = {problem.id for problem in own_problems(home, chosen)}
    other = {problem.id for problem in own_problems(home, settings(tasks={"countdown-4": 30}, name="sampled"))}
    trained_on = {task.problem("train", 0, index).id for index in range(30)}
    assert not own & other
    assert not own & trained_on
    held_out = {problem.id for problem in own_problems(home, settings(tasks={"countdown-4": 30}, split="dev"))}
    assert not own & held_out


@pytest.mark.parametrize("kill_at", [2, 4, 5, 7, 10])
def test_a_killed_collection_goes_on_and_ends_in_the_same_rollouts(home: Home, tmp_path: Path, kill_at: int) -> None:
    with Home.open(tmp_path / "other") as other:
        whole = written(collected(other, settings()), tmp_path / "whole")
    with pytest.raises(Killed):
        collected(home, settings(), KeptProgress(kill_at))
    recorder = KeptProgress()
    assert written(collected(home, settings(), recorder), tmp_path / "resumed") == whole
    # Commits hold four completions each: those of a whole commit are not sampled again, one by one.
    committed = (kill_at - 1) // 4 * 4
    assert not set(recorder.done) & {done for done in range(1, committed) if done % 4}
    assert set(range(committed + 1, 11)) <= set(recorder.done)


def test_what_is_committed_is_used_and_not_drawn_again(home: Home, tmp_path: Path) -> None:
    problems = own_problems(home, settings())
    marked = [
        Group(
            each,
            (Rollout((1,), Completion((7,), (-0.5,), (True,), "mark", "stop", 0), Grade(0.0, {"accuracy": 0.0})),) * 2,
        )
        for each in problems[2:4]
    ]
    digest = home.objects.put(lambda target: write_groups(target / GROUPS_FILE, marked))
    home.ledger.commit_step(KEY, 1, digest)
    groups = written(collected(home, settings()), tmp_path / "rollouts")
    assert [group.rollouts[0].completion.text == "mark" for group in groups] == [False, False, True, True, False]


def test_a_stop_comes_after_a_commit(home: Home) -> None:
    answers = itertools.chain([False], itertools.repeat(True))
    with pytest.raises(Interrupted, match="stopped after 2 of 5 problems"):
        run(settings(), {"from": Input(MODEL, "digest")}, context(home, stop=lambda: next(answers)))
    assert home.ledger.step_groups(KEY, 0) is not None
    assert home.ledger.step_groups(KEY, 1) is None


def group(*accuracies: float | None, prompt: str = "?") -> Group:
    completion = Completion((7, 8), (-0.5, -0.5), (True, True), "x", "stop", 0)
    grades = [
        Grade(None, error="timed out") if accuracy is None else Grade(accuracy, {"accuracy": accuracy})
        for accuracy in accuracies
    ]
    problem = Problem("sums", (Message("user", prompt),), "2")
    return Group(problem, tuple(Rollout((1,), completion, grade) for grade in grades))


def test_ungraded_samples_leave_pass_at_1_and_are_counted() -> None:
    figures = task_metrics([group(1.0, 0.0, None), group(1.0, 1.0, 1.0, prompt="??")], "sums")
    assert figures["pass@1"]["value"] == pytest.approx(4 / 5)
    assert (figures["problems"], figures["samples"], figures["ungraded"], figures["tokens"]) == (2, 6, 1, 12)
    assert "pass@1" not in task_metrics([group(None)], "sums")


class BrokenGrader:
    """Arithmetic whose grader always times out."""

    domain: Domain = "reasoning"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Arithmetic().problem(split, seed, index)

    def problems(self, split: str, seed: int) -> Iterable[Problem]:
        return Arithmetic().problems(split, seed)

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(None, error="timed out") for _ in completions]


class WithBrokenGrader(Catalogue):
    """What there is without any recipe, but for the grader of arithmetic."""

    def task(self, name: str) -> NamedTask:
        return NamedTask(name, BrokenGrader()) if name == "arithmetic" else super().task(name)


def test_too_many_ungraded_samples_end_the_stage_before_they_are_committed(
    home: Home,
) -> None:
    def ran(chosen: Settings) -> Outcome:
        return run(chosen, {"from": Input(MODEL, "digest")}, a_context(home, catalogue=WithBrokenGrader()))

    with pytest.raises(TooManyUngraded, match="4 of 4 rollouts could not be graded, for example: timed out"):
        ran(settings())
    assert home.ledger.step_groups(KEY, 0) is None
    assert ran(settings(max_ungraded=1.0)).metrics["collected"]["arithmetic"]["ungraded"] == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": {"sums": 1}}, "unknown task 'sums'"),
        ({"tasks": {"arithmetic": 0}}, "greater than or equal to 1"),
        ({"tasks": {}}, "at least 1"),
        ({"split": "test"}, "'train' or 'dev'"),
        ({"tasks": {"facts": 1}, "split": "dev"}, "no split 'dev'"),
    ],
)
def test_what_can_not_be_collected_is_refused_when_the_recipe_is_read(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changed)
