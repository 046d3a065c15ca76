"""Attempts of several turns: where a turn ends, the environment is asked, and the same request continues after its
reply."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from reasonmill.activity import beat
from reasonmill.errors import UnsupportedModel
from reasonmill.protocols import Environment, Renderer
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Completion, Episode, Message, Problem, Reply, Request


@dataclass
class _Course:
    """An episode and what its conversation looks like in tokens.

    Attributes:
        opening: its first request; the tokens of the whole completion are those behind its prompt.
        tokens: those of the completion so far.
        cut: whether a reply found no room.
        error: why the environment could not be asked; empty if it could.
    """

    episode: Episode
    environment: Environment
    opening: Request
    tokens: tuple[int, ...] = ()
    replies: list[Reply] = field(default_factory=list)
    cut: bool = False
    error: str = ""

    def has_another_turn(self, completion: Completion) -> bool:
        return completion.finish == "stop" and len(self.episode.turns) + 1 < self.environment.max_turns

    async def answer(self, completion: Completion) -> Sequence[Message] | None:
        """What the environment says to a turn; None also where it fails, which is this episode's matter alone."""
        try:
            messages = await self.environment.reply(self.episode, completion)
            if messages is not None and not messages:
                raise ValueError("a reply has messages, or is None where the episode ends")
            if any(message.role == "assistant" for message in messages or ()):
                raise ValueError("only the policy speaks as the assistant")
        except Exception as error:
            self.error = f"the environment failed: {type(error).__name__}: {error}"
            return None
        finally:
            beat()
        return messages

    def go_on(self, completion: Completion, messages: Sequence[Message], renderer: Renderer) -> Request | None:
        """The request of the next turn; None where the reply leaves no room for one."""
        written = renderer.reply(messages)
        start = len(self.tokens) + len(completion.tokens)
        stop = start + len(written)
        room = self.opening.params.max_tokens - stop
        if room < 1:
            self.cut = True
            return None
        self.tokens += completion.tokens + written
        self.replies.append(Reply(start, stop, completion.text, tuple(messages)))
        self.episode.turns.append(completion)
        self.episode.messages += (Message("assistant", completion.text), *messages)
        # Positions count from the beginning of the conversation, so that the key's noise is never used twice.
        prompt = self.opening.prompt_tokens + self.tokens
        return Request(prompt, replace(self.opening.params, max_tokens=room), self.opening.noise_key)

    def whole(self, last: Completion) -> Completion:
        """The completion of all turns."""
        turns = [*self.episode.turns, last]
        logprobs: tuple[float, ...] = ()
        sampled: tuple[bool, ...] = ()
        for turn, reply in zip(turns, [*self.replies, None], strict=True):
            if turn.logprobs is None:
                raise ValueError("a turn without tokens and log-probs can't be part of an episode")
            written = reply.stop - reply.start if reply else 0
            logprobs += turn.logprobs + (0.0,) * written
            sampled += turn.sampled + (False,) * written
        return Completion(
            tokens=self.tokens + last.tokens,
            logprobs=logprobs,
            sampled=sampled,
            text=last.text,
            finish="length" if self.cut else last.finish,
            policy_version=min(turn.policy_version for turn in turns),
        )


@dataclass(frozen=True)
class Ended:
    """An attempt that is over.

    Attributes:
        completion: that of all turns.
        replies: those of the environment.
        error: why it can't be graded; empty if it can.
    """

    completion: Completion
    replies: tuple[Reply, ...] = ()
    error: str = ""


class Episodes:
    """The episodes among the requests of one call of a sampler, by the place of their request.

    A context, because environments answer in one event loop, which is made with the first question and closed at the
    end.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._courses: dict[int, _Course] = {}
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def __len__(self) -> int:
        return len(self._courses)

    def add(self, index: int, episode: Episode, task: NamedTask, opening: Request) -> None:
        """An episode of a task with an environment; it begins with the request `opening`, which is number `index`."""
        assert task.environment is not None
        if opening.params.stop or self._renderer.stop_strings:
            raise UnsupportedModel(
                "a turn of an episode ends with a stop token, and this model has stop strings",
                fix="leave stop out, or the environment",
            )
        self._courses[index] = _Course(episode, task.environment, opening)

    def follow_up(self, finished: Sequence[tuple[int, Completion]]) -> list[Request | None]:
        """The next turns' requests, for a sampler; see `protocols.FollowUp`."""
        asked = {
            index: (course, completion)
            for index, completion in finished
            if (course := self._courses.get(index)) is not None and course.has_another_turn(completion)
        }
        replies = dict(zip(asked, self._runner.run(_all_answers(list(asked.values()))), strict=True)) if asked else {}
        return [
            None
            if (messages := replies.get(index)) is None
            else self._courses[index].go_on(completion, messages, self._renderer)
            for index, completion in finished
        ]

    def ended(self, index: int, last: Completion) -> Ended:
        """How request `index` ended, whose last turn is given."""
        course = self._courses.get(index)
        return Ended(last) if course is None else Ended(course.whole(last), tuple(course.replies), course.error)


async def _all_answers(asked: Sequence[tuple[_Course, Completion]]) -> list[Sequence[Message] | None]:
    return await asyncio.gather(*(course.answer(completion) for course, completion in asked))


def begun(task: NamedTask, problem: Problem) -> Episode | None:
    """A new episode of the problem, which knows the grades of its task; None where the task has no environment."""
    if task.environment is None:
        return None
    episode = task.environment.start(problem)
    episode.grade = lambda completion: task.grade(problem, [completion])[0]
    return episode
