"""Attempts of several turns: whom the environment is asked about, where the tokens go, and what an error costs."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.protocols import Environment, FollowUp
from reasonmill.rewards.combination import ACCURACY_ALONE, MEASURED, check_rewards
from reasonmill.rollouts import collect, thinking_tokens
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Episode, Grade, Group, Message, Problem, Request, SamplingParams
from scripted import ScriptedSampler
from tiny_models import STOP_TOKEN, NumberRenderer


class Sums:
    """Right is an answer whose numbers add up to the problem's answer."""

    def __init__(self, name: str = "sums", domain: Any = "reasoning") -> None:
        self.name, self.domain = name, domain

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(self.name, (Message("user", f"{index + 10}"),), "20")

    def problems(self, split: str, seed: int) -> list[Problem]:
        return []

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        values = [float(sum(map(int, completion.text.split())) == int(problem.answer)) for completion in completions]
        return [Grade(value, {"accuracy": value}) for value in values]


Answer = Callable[[Episode, Completion], Sequence[Message] | None]


def again(episode: Episode, completion: Completion) -> Sequence[Message] | None:
    """The text "5 6", unless the turn was right."""
    return None if episode.grade(completion).reward == 1.0 else [Message("user", "5 6")]


@dataclass
class FakeEnvironment:
    answer: Answer = again
    max_turns: int = 3
    system: str = ""
    asked: list[tuple[int, str]] = field(default_factory=list)

    def start(self, problem: Problem) -> Episode:
        opening = (Message("system", self.system),) if self.system else ()
        return Episode(problem, (*opening, *problem.messages), state=[])

    async def reply(self, episode: Episode, completion: Completion) -> Sequence[Message] | None:
        self.asked.append((len(episode.turns), completion.text.strip()))
        return self.answer(episode, completion)


SUMS = Sums()
PLAYED = NamedTask("sums", SUMS, FakeEnvironment())


def play(
    script: Callable[[Request, int], Sequence[int]],
    environments: Mapping[str, Environment],
    *,
    problems: int = 1,
    samples: int = 1,
    max_tokens: int = 50,
    tasks: Sequence[Sums] = (SUMS,),
    requests: list[Request] | None = None,
) -> list[Group]:
    """Problems of each task, their turns as the script says."""

    def noted(request: Request, version: int) -> Sequence[int]:
        if requests is not None:
            requests.append(request)
        return script(request, version)

    return collect(
        ScriptedSampler(NumberRenderer(), noted),
        NumberRenderer(),
        {task.name: NamedTask(task.name, task, environments.get(task.name)) for task in tasks},
        [task.problem("train", 0, index) for task in tasks for index in range(problems)],
        rewards=ACCURACY_ALONE,
        num_samples=samples,
        params=SamplingParams(max_tokens=max_tokens),
        noise=(0, "test"),
    )


def script_of(*turns: Sequence[int]) -> Callable[[Request, int], Sequence[int]]:
    """Says the turns one after the other; as many were said as there are replies, tokens 2 ... 3, in the prompt."""
    return lambda request, _: [*turns[request.prompt_tokens.count(2)], STOP_TOKEN]


def test_two_turns_token_by_token() -> None:
    requests: list[Request] = []
    environment = FakeEnvironment()
    (group,) = play(script_of([7], [20]), {"sums": environment}, requests=requests)
    (rollout,) = group.rollouts
    assert rollout.prompt_tokens == (10,)
    assert rollout.completion.tokens == (7, STOP_TOKEN, 2, 5, 6, 3, 20, STOP_TOKEN)
    assert rollout.completion.sampled == (True, True, False, False, False, False, True, True)
    assert rollout.completion.logprobs == (0.0,) * 8
    assert (rollout.completion.text, rollout.completion.finish) == ("20 ", "stop")
    (reply,) = rollout.replies
    assert (reply.start, reply.stop, reply.said, reply.messages) == (2, 6, "7 ", (Message("user", "5 6"),))
    assert rollout.grade.reward == 1.0
    assert environment.asked == [(0, "7"), (1, "20")]
    first, second = requests
    assert second.prompt_tokens == (10, 7, STOP_TOKEN, 2, 5, 6, 3)
    assert (first.params.max_tokens, second.params.max_tokens) == (50, 44)
    assert first.noise_key == second.noise_key


def test_the_last_turn_that_is_allowed_is_not_asked_about() -> None:
    for max_turns, texts in ((1, ("7 ",)), (2, ("7 ", "8 ")), (3, ("7 ", "8 ", "9 "))):
        environment = FakeEnvironment(max_turns=max_turns)
        (group,) = play(script_of([7], [8], [9]), {"sums": environment})
        assert group.rollouts[0].texts == texts
        assert group.rollouts[0].grade.reward == 0.0
        assert len(environment.asked) == max_turns - 1


def test_a_turn_that_was_cut_off_ends_the_episode() -> None:
    environment = FakeEnvironment()
    (group,) = play(script_of([7, 8, 9]), {"sums": environment}, max_tokens=3)
    assert group.rollouts[0].completion.finish == "length"
    assert environment.asked == []


@pytest.mark.parametrize(
    ("max_tokens", "texts", "finish"),
    [
        (2, ("7 ",), "length"),  # nothing left but the turn itself
        (6, ("7 ",), "length"),  # the reply's four fill it up
        (7, ("7 ", "20 "), "length"),  # one token: the turn lacks its stop token
        (8, ("7 ", "20 "), "stop"),
    ],
)
def test_the_limit_is_one_for_all_turns_and_replies(max_tokens: int, texts: tuple[str, ...], finish: str) -> None:
    (group,) = play(script_of([7], [20]), {"sums": FakeEnvironment()}, max_tokens=max_tokens)
    (rollout,) = group.rollouts
    assert (rollout.texts, rollout.completion.finish) == (texts, finish)
    assert len(rollout.completion.tokens) <= max_tokens


def test_an_episode_keeps_its_conversation_and_its_state() -> None:
    seen: list[tuple[Any, ...]] = []

    def counting(episode: Episode, completion: Completion) -> list[Message]:
        episode.state.append(completion.text.strip())
        seen.append((list(episode.state), len(episode.turns), [m.content for m in episode.messages]))
        return [Message("tool", "4")]

    play(script_of([7], [8], [9]), {"sums": FakeEnvironment(counting, system="99")})
    assert seen == [
        (["7"], 0, ["99", "10"]),
        (["7", "8"], 1, ["99", "10", "7 ", "4"]),
    ]


def test_what_the_environment_says_first_is_the_prompt() -> None:
    (group,) = play(script_of([20]), {"sums": FakeEnvironment(system="99")})
    assert group.rollouts[0].prompt_tokens == (99, 10)
    assert group.problem.messages == (Message("user", "10"),)


def test_attempts_of_tasks_without_an_environment_are_what_they_were() -> None:
    other, wrong = Sums("others"), script_of([7], [8], [9])
    alone = play(wrong, {}, problems=3, samples=2, tasks=[other])
    beside = play(wrong, {"sums": FakeEnvironment()}, problems=3, samples=2, tasks=[other, SUMS])
    assert beside[:3] == alone
    assert all(len(rollout.replies) == 2 for group in beside[3:] for rollout in group.rollouts)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *_: [], "ValueError: a reply has messages"),
        (lambda *_: [Message("assistant", "5")], "ValueError: only the policy speaks"),
        (lambda *_: ["5"], "AttributeError"),
    ],
)
def test_an_environment_that_fails_leaves_its_own_episodes_ungraded(answer: Answer, why: str) -> None:
    def some(episode: Episode, completion: Completion) -> Sequence[Message] | None:
        return answer(episode, completion) if episode.problem.messages[0].content == "11" else None

    groups = play(script_of([20]), {"sums": FakeEnvironment(some)}, problems=3)
    assert [group.rewards for group in groups] == [[1.0], [None], [1.0]]
    grade = groups[1].rollouts[0].grade
    assert grade.error.startswith(f"the environment failed: {why}")
    assert grade.parts["accuracy"] == 1.0


def test_episodes_of_a_step_wait_at_the_same_time() -> None:
    running = most = 0

    class Waiting(FakeEnvironment):
        async def reply(self, episode: Episode, completion: Completion) -> Sequence[Message] | None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(3):
                await asyncio.sleep(0)
            running -= 1
            return [Message("user", "4")]

    groups = play(script_of([7], [8]), {"sums": Waiting(max_turns=2)}, problems=4, samples=2)
    assert most == 8
    assert all(rollout.texts == ("7 ", "8 ") for group in groups for rollout in group.rollouts)


def test_one_event_loop_serves_all_turns_and_is_closed_with_them() -> None:
    loops = set()

    class Looking(FakeEnvironment):
        async def reply(self, episode: Episode, completion: Completion) -> Sequence[Message] | None:
            loops.add(asyncio.get_running_loop())
            return [Message("user", "4")]

    play(script_of([7], [8], [9]), {"sums": Looking()}, problems=2)
    (loop,) = loops
    assert loop.is_closed()


def raising(*_: object) -> None:
    raise KeyboardInterrupt


# Python's own handler, for which asyncio puts another in place, and one that raises, as the command line's does.
@pytest.mark.parametrize("handler", [signal.default_int_handler, raising])
def test_ctrl_c_gets_through_while_environments_are_waited_for(handler: Any) -> None:
    class Endless(FakeEnvironment):
        async def reply(self, episode: Episode, completion: Completion) -> Sequence[Message] | None:
            if episode.problem.messages[0].content == "12":
                asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
            await asyncio.sleep(600)
            return None

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            play(script_of([7]), {"sums": Endless()}, problems=3)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_template_that_can_not_go_on_is_no_matter_of_one_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> tuple[int, ...]:
        raise UnsupportedModel("no")

    monkeypatch.setattr(NumberRenderer, "reply", refuse)
    with pytest.raises(UnsupportedModel):
        play(script_of([7]), {"sums": FakeEnvironment()})


class Ageing:
    """A sampler whose weights are older with every turn, which must be seen."""

    version = 9

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        assert follow_up is not None
        (request,) = requests
        while request is not None:
            last = Completion((7, STOP_TOKEN), (0.0, 0.0), (True, True), "7 ", "stop", self.version)
            self.version -= 1
            (request,) = follow_up([(0, last)])  # type: ignore[assignment]
        yield 0, last


def test_the_version_of_an_episode_is_that_of_its_oldest_weights() -> None:
    (group,) = collect(
        Ageing(), NumberRenderer(), {"sums": PLAYED}, [SUMS.problem("train", 0, 0)],  # type: ignore[arg-type]
        rewards=ACCURACY_ALONE, num_samples=1, params=SamplingParams(max_tokens=50), noise=(0,),
    )  # fmt: skip
    assert len(group.rollouts[0].texts) == 3
    assert group.rollouts[0].completion.policy_version == 7


def test_thinking_counts_in_all_turns() -> None:
    (group,) = play(script_of([7], [20]), {"sums": FakeEnvironment()})
    (rollout,) = group.rollouts
    thoughtful = replace(rollout.replies[0], said="<think>1 2 3</think>4")
    rollouts = [rollout, replace(rollout, replies=(thoughtful,)), rollout]
    assert thinking_tokens(rollouts, NumberRenderer()) == [0, 3, 0]


def test_a_reward_model_would_miss_the_turns() -> None:
    task = NamedTask("help", Sums("help", "helpfulness"), FakeEnvironment())
    with pytest.raises(RecipeError, match="'help' has an environment, and the model of the reward 'helpfulness'"):
        check_rewards({"helpfulness": 1.0}, [task], lambda _: MEASURED["format"], ["helpfulness"])
    check_rewards({"format": 1.0}, [task], lambda _: MEASURED["format"])


def test_stop_strings_are_no_end_of_a_turn() -> None:
    with pytest.raises(UnsupportedModel, match="stop strings"):
        collect(
            ScriptedSampler(NumberRenderer(), script_of([7])), NumberRenderer(), {"sums": PLAYED},
            [SUMS.problem("train", 0, 0)], rewards=ACCURACY_ALONE, num_samples=1, params=SamplingParams(stop=("x",)),
            noise=(0,),
        )  # fmt: skip
