"""A second try: after a wrong answer to a reasoning problem of the tiny world, the problem is asked again."""

from __future__ import annotations

from collections.abc import Sequence

from reasonmill.errors import RecipeError
from reasonmill.types import Completion, Episode, Message, Problem
from reasonmill.world.lexicon import LANGUAGES

_WRONG = {"en": "no , wrong . try again : {problem}", "de": "nein , falsch . bitte wieder : {problem}"}


class SecondTry:
    """Decides by the task's own grader whether an answer is right.

    Args:
        max_turns: tries in all.
    """

    def __init__(self, max_turns: int = 2) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns must be >= 1, got {max_turns}")
        self.max_turns = max_turns

    def start(self, problem: Problem) -> Episode:
        """The problem as it is.

        Raises:
            RecipeError: the problem names no language of the tiny world to speak in.
        """
        if problem.meta.get("language") not in LANGUAGES:
            raise RecipeError(
                f"SecondTry speaks {' and '.join(LANGUAGES)}, and the problems of task {problem.task!r} name neither",
                fix="use it for tasks of the tiny world",
            )
        return Episode(problem)

    async def reply(self, episode: Episode, completion: Completion) -> Sequence[Message] | None:
        """What is wrong gets the problem once more; what is right, or can't be graded, ends the episode."""
        grade = episode.grade(completion)
        if grade.reward is None or grade.parts["accuracy"] == 1.0:
            return None
        problem = episode.problem
        return [Message("user", _WRONG[problem.meta["language"]].format(problem=problem.messages[-1].content))]
