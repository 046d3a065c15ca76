"""What a task measures in its own way, and what is measured alike for all others."""

from __future__ import annotations

from itertools import islice
from typing import cast

from reasonmill import languages
from reasonmill.errors import RecipeError
from reasonmill.languages import LanguageShare
from reasonmill.tasks import registry
from reasonmill.types import Problem

# Problems of a task that must be judgeable before a recipe may ask for their language.
ASKED = 20


def language_share_of(problem: Problem) -> LanguageShare:
    """The measure of languages of the problem's task: its own `language_share`, or else that of real languages."""
    task = registry.get(problem.task)
    return cast(LanguageShare, getattr(task, "language_share", languages.language_share))


def require_languages(task_name: str, wanted_by: str) -> None:
    """Refuses a task whose problems nobody can tell the language of.

    Args:
        wanted_by: what measures the language, for the message.

    Raises:
        RecipeError: one of its first problems names no language that its measure knows, and none can be detected.
    """
    task = registry.get(task_name)
    for index, problem in enumerate(islice(task.problems("train", 0), ASKED)):
        if languages.problem_language(problem, language_share_of(problem)) is None:
            named = problem.meta.get("language")
            prompt = problem.messages[-1].content
            shown = prompt if len(prompt) <= 60 else f"{prompt[:60]}..."
            raise RecipeError(
                f"{wanted_by} needs the language of each prompt, and that of problem {index} of task {task_name!r} "
                f"can't be told: its meta names {'no language' if named is None else repr(named)}, and none is "
                f"detected in {shown!r}",
                fix=f'let the problems of {task_name!r} name it, as in meta["language"] = "en", or leave out '
                f"{wanted_by} or the task",
            )
