"""What later stages make of attempts of several turns: their data hold the turns before the last one."""

from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from reasonmill.curation.decontamination import HeldOut
from reasonmill.curation.filters import Keep, Sample
from reasonmill.curation.selection import Selection
from reasonmill.plugins.catalogue import Catalogue, TaskUse, installed
from reasonmill.recipe.reference import model_directory
from reasonmill.render import renderer_for
from reasonmill.stages import collect, reward_model
from reasonmill.stages.on_policy import rollout_metrics
from reasonmill.types import Completion, Grade, Group, Message, Problem, Reply, Rollout

PROBLEM = Problem("arithmetic", (Message("user", "start at 1 then + 1 . result ?"),), "2", {"language": "en"})
RIGHT = "<think> now 1 + 1 = 2</think><answer> 2</answer>"


def attempt(*said: str, text: str = RIGHT, answer: str = "again", role: str = "user") -> Rollout:
    """Two tokens for each turn, one for each reply."""
    sampled: tuple[bool, ...] = ()
    replies = []
    for turn in said:
        sampled += (True, True, False)
        reply = (Message(role, answer),)  # type: ignore[arg-type]
        replies.append(Reply(len(sampled) - 1, len(sampled), turn, reply))
    sampled += (True, True)
    logprobs = tuple(-0.5 if own else 0.0 for own in sampled)
    completion = Completion((7,) * len(sampled), logprobs, sampled, text, "stop", 0)
    return Rollout((1,), completion, Grade(1.0, {"accuracy": 1.0, "format": 1.0}), tuple(replies))


def selected(rollouts: Sequence[Rollout], keep: Keep) -> list[tuple[list[tuple[str, str]], str]]:
    task = installed().task("arithmetic")
    samples = [Sample(PROBLEM, r.completion, r.grade, task, r.dialogue) for r in rollouts]
    kept, _ = Selection(keep, HeldOut([])).select(samples)
    return [([(m.role, m.content) for m in each.messages], each.response) for each in kept]


def test_a_conversation_holds_the_turns_before_its_response() -> None:
    asked = ("user", PROBLEM.messages[0].content)
    found = selected([attempt(), attempt("3"), attempt("4", answer="1 + 1 = 2", role="tool")], Keep())
    assert found == [
        ([asked], RIGHT),
        ([asked, ("assistant", "3"), ("user", "again")], RIGHT),
        ([asked, ("assistant", "4"), ("tool", "1 + 1 = 2")], RIGHT),
    ]


def test_attempts_count_for_their_problem_whatever_their_turns() -> None:
    assert len(selected([attempt("3"), attempt("4"), attempt("5", "6")], Keep(per_problem=2))) == 2


def test_a_reward_model_reads_the_turns_before_the_response() -> None:
    renderer = renderer_for(model_directory("tiny-base-weak"))
    settings = reward_model.Settings.model_validate(
        {
            "name": "rm", "kind": "reward-model", "from": "tiny-base", "data": ["x"], "objective": "pointwise",
            "label": "accuracy", "schedule": {"peak": 1e-3},
        }
    )  # fmt: skip
    one, two = reward_model._candidates(settings, Group(PROBLEM, (attempt(), attempt("3"))), renderer)
    assert not isinstance(one, str)
    assert not isinstance(two, str)
    assert one.prompt == renderer.render(PROBLEM.messages)
    assert two.prompt == renderer.render([*PROBLEM.messages, Message("assistant", "3"), Message("user", "again")])


def test_only_what_the_policy_wrote_is_counted() -> None:
    renderer = renderer_for(model_directory("tiny-base-weak"))
    metrics = rollout_metrics([Group(PROBLEM, (attempt(), attempt("3"), attempt("3", "4")))], renderer)
    assert metrics["tokens/sampled"] == 2 + 4 + 6
    assert metrics["length/response"] == 4
    assert metrics["policy/entropy"] == 0.5
    figures = collect.task_metrics([Group(PROBLEM, (attempt("3"),))], "arithmetic")
    assert figures["tokens"] == 4


def test_a_teacher_can_not_play_episodes() -> None:
    tables = {"tasks": {"again": TaskUse(use="arithmetic", environment="second-try")}}
    stage = {
        "name": "taught", "kind": "collect", "teacher": {"url": "http://127.0.0.1:9/v1", "model": "t"},
        "tasks": {"again": 3},
    }  # fmt: skip
    with pytest.raises(ValidationError, match="task 'again' has an environment, whose episodes need tokens"):
        collect.Settings.model_validate(stage, context={"catalogue": Catalogue(tables)})  # type: ignore[arg-type]
    collect.Settings.model_validate({**stage, "tasks": {"arithmetic": 3}})
