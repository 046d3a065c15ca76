"""The tiny world's environment: what it says, and an RL stage that trains on its episodes."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reasonmill.stages.rl
from kept_progress import KeptProgress
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.recipe.reference import model_directory
from reasonmill.rollouts import collect
from reasonmill.stage import Input, Outcome, StageContext
from reasonmill.stages.rl import Settings, run
from reasonmill.store.accounts import misaccounts
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.tasks import registry
from reasonmill.types import Completion, Episode, Group, Message, Problem
from reasonmill.world.lexicon import language_share
from reasonmill.world.second_try import SecondTry

MODEL = model_directory("tiny-base-weak")
STEPS = 3


def said(text: str) -> Completion:
    return Completion((1,), (0.0,), (True,), text, "stop", 0)


def reply_to(problem: Problem, text: str) -> list[Message] | None:
    environment, task = SecondTry(), registry.get(problem.task)
    episode = environment.start(problem)
    episode.grade = lambda completion: task.grade(problem, [completion])[0]
    replied = asyncio.run(environment.reply(episode, said(text)))
    return None if replied is None else list(replied)


@pytest.mark.parametrize(("index", "language"), [(0, "en"), (1, "de")])
def test_what_is_wrong_gets_the_problem_once_more_in_its_own_language(index: int, language: str) -> None:
    problem = registry.get("arithmetic").problem("train", 0, index)
    assert reply_to(problem, f"<think></think><answer> {problem.answer}</answer>") is None
    for wrong in ("<think></think><answer> 0</answer>", "no answer", ""):
        (message,) = reply_to(problem, wrong) or []
        assert message.role == "user"
        assert message.content.endswith(problem.messages[0].content)
        assert language_share(message.content, language) == 1.0  # type: ignore[arg-type]


def test_a_turn_that_can_not_be_graded_ends_the_episode() -> None:
    episode = Episode(registry.get("countdown-3").problem("train", 0, 0))
    assert asyncio.run(SecondTry().reply(episode, said("no"))) is None


def test_tries_are_two_unless_told_otherwise_and_the_problem_names_its_language() -> None:
    assert (SecondTry().max_turns, SecondTry(max_turns=5).max_turns) == (2, 5)
    with pytest.raises(ValueError, match="max_turns"):
        SecondTry(max_turns=0)
    with pytest.raises(RecipeError, match="speaks en and de"):
        SecondTry().start(Problem("sums", (Message("user", "1 + 1 ?"),), "2", {"language": "fr"}))


# The stage


def settings() -> Settings:
    return Settings.model_validate(
        {
            "name": "again", "kind": "rl", "from": "tiny-base-weak", "steps": STEPS, "problems_per_step": 4,
            "group_size": 4, "updates_per_step": 2, "rewards": {"accuracy": 1.0, "format": 0.5},
            "tasks": {"countdown-3": 0.5, "arithmetic": 0.5}, "sampling": {"max_tokens": 96},
            "schedule": {"peak": 1e-3}, "state_every": 1,
            "loss": {"algorithm": "dapo", "kl_coefficient": 0.1},
        }
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _second_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = {"countdown-3": SecondTry(), "arithmetic": SecondTry(max_turns=3)}
    monkeypatch.setattr(reasonmill.stages.rl, "collect", partial(collect, environments=environments))


def trained(home: Home, looks: int = 99) -> Outcome:
    """The stage's outcome; it is asked to stop after so many looks."""
    left = iter([False] * looks)
    context = StageContext("k" * 8, 0, "cpu", home, KeptProgress(), lambda: next(left, True))
    return run(settings(), {"from": Input(MODEL, "digest")}, context)


def weights(outcome: Outcome, directory: Path) -> dict[str, torch.Tensor]:
    directory.mkdir()
    outcome.write(directory)
    return load_file(directory / "model.safetensors")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as opened:
        yield opened


def steps_of(home: Home) -> list[list[Group]]:
    digests = [home.ledger.step_groups("k" * 8, step) for step in range(STEPS)]
    return [read_groups(home.objects.path(digest) / GROUPS_FILE) for digest in digests if digest]


def test_a_policy_is_trained_on_episodes(home: Home, tmp_path: Path) -> None:
    outcome = trained(home)
    before, after = load_file(MODEL / "model.safetensors"), weights(outcome, tmp_path / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    groups = [group for step in steps_of(home) for group in step]
    rollouts = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    tries = {task: {len(r.texts) for problem, r in rollouts if problem.task == task} for task in settings().tasks}
    assert 2 in tries["countdown-3"] <= {1, 2}
    assert 3 in tries["arithmetic"] <= {1, 2, 3}
    for problem, rollout in rollouts:
        again = [message for reply in rollout.replies for message in reply.messages]
        assert all(message.content.endswith(problem.messages[-1].content) for message in again)
        written = sum(reply.stop - reply.start for reply in rollout.replies)
        assert rollout.completion.num_sampled == len(rollout.completion.tokens) - written
        assert len(rollout.completion.tokens) <= 96
        task = registry.get(problem.task)
        assert all(task.grade(problem, [said(reply.said)])[0].reward == 0.0 for reply in rollout.replies)
    sampled = [sum(r.completion.num_sampled for g in step for r in g.rollouts) for step in steps_of(home)]
    assert [row["tokens/sampled"] for row in home.ledger.metrics("k" * 8)] == sampled
    assert outcome.tokens == sum(sampled)
    assert any(row["rollouts/trained"] for row in home.ledger.metrics("k" * 8))
    assert list(misaccounts(home.ledger, home.objects)) == []


def test_an_interrupted_run_of_episodes_ends_in_the_same_weights(home: Home, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(home, looks=2)
    resumed = weights(trained(home), tmp_path / "resumed")
    with Home.open(tmp_path / "other") as other:
        whole = weights(trained(other), tmp_path / "whole")
        assert [home.ledger.step_groups("k" * 8, s) for s in range(STEPS)] == [
            other.ledger.step_groups("k" * 8, s) for s in range(STEPS)
        ]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
