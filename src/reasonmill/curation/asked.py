"""What the evaluations of a recipe ask: a stage that would be trained on it is refused, whatever its data say.

Data may not know their split (a user's conversations, results of an earlier version), and a task may put the same
problem in two splits. A refusal is no part of any result, so no key depends on what is evaluated later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from reasonmill.curation.deduplication import Turns, normalised_turns
from reasonmill.errors import RecipeError
from reasonmill.types import Conversation, Message, Problem, content_digest


class Asked:
    """The problems that evaluations ask.

    Two problems are the same if all that they hold is, whatever their task is called. A conversation asks a problem if
    it names its id or begins with its prompt, unless several problems have this prompt, and so differ in something
    else.

    Args:
        problems: with the names of the evaluations.
    """

    def __init__(self, problems: Iterable[tuple[str, Problem]] = ()) -> None:
        self._by_content: dict[str, str] = {}
        self._by_id: dict[str, str] = {}
        having: defaultdict[Turns, dict[str, str]] = defaultdict(dict)
        for evaluation, problem in problems:
            content = _content(problem)
            self._by_content[content] = self._by_id[problem.id] = evaluation
            having[_prompt(problem.messages)][content] = evaluation
        self._by_prompt = {
            prompt: one for prompt, (one, *others) in ((p, [*h.values()]) for p, h in having.items()) if not others
        }
        self._turns = sorted({len(prompt) for prompt in self._by_prompt})

    def refuse(self, stage: str, problems: Iterable[Problem]) -> None:
        """Refuses problems that a stage would be trained on.

        Raises:
            RecipeError: an evaluation asks one of them.
        """
        if self._by_content:
            hits = [(p.id, self._by_content.get(_content(p))) for p in problems]
            _refuse(stage, hits, "let each split of the task hold problems of its own")

    def refuse_conversations(self, stage: str, conversations: Iterable[Conversation]) -> None:
        """Refuses conversations that a stage would be trained on.

        Raises:
            RecipeError: an evaluation asks what one of them is about.
        """
        if self._by_content:
            hits = [
                (c.problem_id, self._by_id.get(c.problem_id) or self._with_prompt(c.messages)) for c in conversations
            ]
            _refuse(stage, hits, "name the evaluation's tasks in `decontaminate` of the curate stage, which drops them")

    def _with_prompt(self, messages: Sequence[Message]) -> str | None:
        turns = _prompt(messages)
        return next((found for size in self._turns if (found := self._by_prompt.get(turns[:size]))), None)


def _refuse(stage: str, hits: Sequence[tuple[str, str | None]], fix: str) -> None:
    found = [(problem, evaluation) for problem, evaluation in hits if evaluation is not None]
    if found:
        problem, evaluation = found[0]
        raise RecipeError(
            f"{len(found)} of the {len(hits)} problems and conversations that stage {stage!r} would be trained on are "
            f"problems of the evaluation {evaluation!r}, for example {problem}",
            where=f"stage {stage!r}",
            fix=fix,
        )


def _content(problem: Problem) -> str:
    return content_digest([[asdict(message) for message in problem.messages], problem.answer, dict(problem.meta)])


def _prompt(messages: Sequence[Message]) -> Turns:
    """The turns without system prompts, which stand before all problems alike."""
    return normalised_turns([message for message in messages if message.role != "system"])
