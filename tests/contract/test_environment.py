"""What every environment promises: those that are offered, and the one of docs/extending.md."""

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from reasonmill.episodes import begun
from reasonmill.plugins.catalogue import installed
from reasonmill.protocols import Environment
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Episode, Message, Problem, Role

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")


def calculator() -> Environment:
    """The class as the page has it."""
    found = re.search(r"In `calculator.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(compile(found[1], "calculator.py", "exec"), names)
    made: Environment = names["Calculator"]()
    return made


MAKERS: dict[str, Callable[[], Environment]] = {
    "calculator": calculator,
    **{
        name: lambda name=name: installed().plugin("environments", name).made  # type: ignore[misc]
        for name in installed().names("environments")
    },
}
TURNS = ("", "calc: 17 * 4", "calc: 1 /", "<think></think><answer> 0</answer>", "calc: 2 + 2", "so 7")


@pytest.fixture(params=MAKERS)
def environment(request: pytest.FixtureRequest) -> Environment:
    return MAKERS[request.param]()


def problems(count: int) -> list[Problem]:
    task = installed().task("arithmetic")
    return [task.problem("train", 0, index) for index in range(count)]


def started(environment: Environment, problem: Problem) -> Episode:
    episode = begun(NamedTask("arithmetic", installed().task("arithmetic").task, environment), problem)
    assert episode is not None
    return episode


async def step(environment: Environment, episode: Episode, text: str) -> Sequence[Message] | None:
    """Takes a turn as a run does."""
    turn = Completion((1,), (0.0,), (True,), text, "stop", 0)
    messages = await environment.reply(episode, turn)
    episode.turns.append(turn)
    episode.messages += (Message("assistant", text), *(messages or ()))
    return messages


def test_an_episode_begins_with_something_to_read(environment: Environment) -> None:
    assert environment.max_turns >= 1
    for problem in problems(4):
        episode = environment.start(problem)
        assert episode.problem == problem
        assert episode.messages
        assert all(message.role in get_args(Role) for message in episode.messages)
        assert episode.turns == []


def test_a_reply_has_messages_of_others_or_is_none(environment: Environment) -> None:
    for text in TURNS:
        replied = asyncio.run(step(environment, started(environment, problems(1)[0]), text))
        assert replied is None or len(replied) > 0
        assert all(message.role in set(get_args(Role)) - {"assistant"} for message in replied or ())


def test_the_same_turns_have_the_same_replies_whoever_plays_beside_them(environment: Environment) -> None:
    async def alone(problem: Problem) -> list[Sequence[Message] | None]:
        episode = started(environment, problem)
        return [await step(environment, episode, text) for text in TURNS]

    async def together() -> list[list[Sequence[Message] | None]]:
        episodes = [started(environment, problem) for problem in problems(3)]
        found: list[list[Sequence[Message] | None]] = [[] for _ in episodes]
        for text in TURNS:
            replied = await asyncio.gather(*(step(environment, episode, text) for episode in episodes))
            for each, messages in zip(found, replied, strict=True):
                each.append(messages)
        return found

    assert asyncio.run(together()) == [asyncio.run(alone(problem)) for problem in problems(3)]


def test_the_calculator_of_the_page_calculates() -> None:
    environment = calculator()
    episode = started(environment, problems(1)[0])
    replied = [asyncio.run(step(environment, episode, text)) for text in ("calc: 17 * 4", "calc: 17 *", "68")]
    assert replied[0] == [Message("tool", "68")]
    assert replied[1] is not None
    assert replied[1][0].content.startswith("error: ")
    assert replied[2] is None
    assert (environment.max_turns, len(episode.state["results"])) == (4, 2)
