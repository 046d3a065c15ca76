"""The tiny world's environment: what it says, and a recipe that trains on its episodes."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reasonmill.cli import main
from reasonmill.errors import RecipeError
from reasonmill.plugins.catalogue import installed
from reasonmill.recipe.reference import model_directory
from reasonmill.stop_signals import StopSignals
from reasonmill.store.accounts import misaccounts
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.types import Completion, Episode, Group, Message, Problem
from reasonmill.world.lexicon import language_share
from reasonmill.world.second_try import SecondTry

pytestmark = pytest.mark.usefixtures("without_charts")

STEPS = 3
RECIPE = f"""
name = "again"

[environments.third-try]
use = "second-try"
max_turns = 3

[tasks.twice]
use = "countdown-3"
environment = "second-try"

[tasks.thrice]
use = "arithmetic"
environment = "third-try"

[[stage]]
name = "again"
kind = "rl"
from = "tiny-base-weak"
steps = {STEPS}
problems_per_step = 4
group_size = 4
updates_per_step = 2
rewards = {{ accuracy = 1.0, format = 0.5 }}
tasks = {{ twice = 0.5, thrice = 0.5 }}
sampling = {{ max_tokens = 96 }}
schedule = {{ peak = 1e-3 }}
loss = {{ algorithm = "dapo", kl_coefficient = 0.1 }}
state_every = 1
"""


def said(text: str) -> Completion:
    return Completion((1,), (0.0,), (True,), text, "stop", 0)


def reply_to(problem: Problem, text: str) -> list[Message] | None:
    environment, task = SecondTry(), installed().task(problem.task)
    episode = environment.start(problem)
    episode.grade = lambda completion: task.grade(problem, [completion])[0]
    replied = asyncio.run(environment.reply(episode, said(text)))
    return None if replied is None else list(replied)


@pytest.mark.parametrize(("index", "language"), [(0, "en"), (1, "de")])
def test_what_is_wrong_gets_the_problem_once_more_in_its_own_language(index: int, language: str) -> None:
    problem = installed().task("arithmetic").problem("train", 0, index)
    assert reply_to(problem, f"<think></think><answer> {problem.answer}</answer>") is None
    for wrong in ("<think></think><answer> 0</answer>", "no answer", ""):
        (message,) = reply_to(problem, wrong) or []
        assert message.role == "user"
        assert message.content.endswith(problem.messages[0].content)
        assert language_share(message.content, language) == 1.0  # type: ignore[arg-type]


def test_a_turn_that_can_not_be_graded_ends_the_episode() -> None:
    episode = Episode(installed().task("countdown-3").problem("train", 0, 0))
    assert asyncio.run(SecondTry().reply(episode, said("no"))) is None


def test_tries_are_two_unless_told_otherwise_and_the_problem_names_its_language() -> None:
    assert (SecondTry().max_turns, SecondTry(max_turns=5).max_turns) == (2, 5)
    with pytest.raises(ValueError, match="max_turns"):
        SecondTry(max_turns=0)
    with pytest.raises(RecipeError, match="speaks en and de"):
        SecondTry().start(Problem("sums", (Message("user", "1 + 1 ?"),), "2", {"language": "fr"}))


# The recipe


def run(folder: Path, looks: int = 99) -> int:
    """Runs the recipe in a folder of its own; it is asked to stop after so many looks. The exit code."""
    folder.mkdir(exist_ok=True)
    (folder / "again.toml").write_text(RECIPE)
    left = iter([False] * looks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "requested", lambda _: next(left, True))
        with pytest.raises(SystemExit) as ended:
            main(["run", str(folder / "again.toml"), "--home", str(folder / "home")])
    return int(ended.value.code or 0)


def weights(folder: Path) -> Mapping[str, Tensor]:
    return load_file(folder / "home" / "runs" / "again" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def steps_of(home: Home) -> tuple[list[str | None], list[list[Group]]]:
    """(digests, groups) of all steps."""
    (key,) = home.ledger.begun_stages()
    digests = [home.ledger.step_groups(key, step) for step in range(STEPS)]
    return digests, [read_groups(home.objects.path(digest) / GROUPS_FILE) for digest in digests if digest]


def test_a_policy_is_trained_on_episodes(whole: Path) -> None:
    before, after = load_file(model_directory("tiny-base-weak") / "model.safetensors"), weights(whole)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with Home.open(whole / "home") as home:
        _, steps = steps_of(home)
        metrics = home.ledger.metrics(next(iter(home.ledger.begun_stages())))
        assert list(misaccounts(home.ledger, home.objects)) == []
    rollouts = [(group.problem, rollout) for step in steps for group in step for rollout in group.rollouts]
    turns = {task: {len(r.texts) for problem, r in rollouts if problem.task == task} for task in ("twice", "thrice")}
    assert 2 in turns["twice"] <= {1, 2}
    assert 3 in turns["thrice"] <= {1, 2, 3}
    graders = {"twice": installed().task("countdown-3"), "thrice": installed().task("arithmetic")}
    for problem, rollout in rollouts:
        again = [message for reply in rollout.replies for message in reply.messages]
        assert all(message.content.endswith(problem.messages[-1].content) for message in again)
        written = sum(reply.stop - reply.start for reply in rollout.replies)
        assert rollout.completion.num_sampled == len(rollout.completion.tokens) - written
        assert len(rollout.completion.tokens) <= 96
        tried = graders[problem.task].grade(problem, [said(reply.said) for reply in rollout.replies])
        assert all(grade.reward == 0.0 for grade in tried)
    sampled = [sum(r.completion.num_sampled for g in step for r in g.rollouts) for step in steps]
    assert [row["tokens/sampled"] for row in metrics] == sampled
    assert any(row["rollouts/trained"] for row in metrics)


def test_an_interrupted_run_of_episodes_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path, looks=3) == 130
    assert run(tmp_path) == 0
    resumed, expected = weights(tmp_path), weights(whole)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    with Home.open(whole / "home") as one, Home.open(tmp_path / "home") as other:
        assert steps_of(one)[0] == steps_of(other)[0]
