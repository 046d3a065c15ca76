"""Grades answers to reasoning-gym's items by its own scorers, and gives credit for nothing beside the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from reasonmill.grading.logic import TwentyFourGrader
from reasonmill.grading.reply import reply_of
from reasonmill.grading.verdict import Isolation, Verdict
from reasonmill.types import Problem

# How scorers are shown an answer; longer ones are none.
_MOST_CHARACTERS = 20_000
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\w+|[^\w\s]")
# Words that offer a choice or put a condition. Python's `or`, too: what evaluates "4 or 5" sees a 4.
_CHOICE = re.compile(r"\b(?:or|and|if|else|lambda|not)\b|__|#|;")
# What no item asks for: whoever gives credit for it does not look.
_NONSENSE = ("\u2603", "no answer")

# Its scorer takes any four numbers that make 24, and not only those of the item.
_ANY_NUMBERS = "puzzle24"

Scorer = Callable[[str], float]


class GymGrader:
    """Right if the family's scorer gives the whole point to the answer, and to nothing less than the whole answer.

    The answer is what stands in the answer block, or all of a reply without one. reasoning-gym's scorers give parts of
    a point for what only holds the answer, or is only well-formed: these are wrong here. And several give the whole
    point for an answer with something beside it ("18 or 19", "-18"), or for any text at all. So an answer that is not
    spelled as the item's own must be one that nonsense does not pass for, that offers no choice, and that loses the
    point when its first or its last word or sign is taken away.

    The scorers evaluate what a model wrote.
    """

    isolation: Isolation = "jail"
    asks = "Give the answer alone, between <answer> and </answer>."

    def judge(self, problem: Problem, response: str) -> Verdict:
        from reasonmill.gym.families import score

        family, config, item = (problem.meta.get(name) for name in ("family", "config", "item"))
        if not isinstance(item, Mapping):
            return Verdict.could_not_tell("the problem holds no item of reasoning-gym")
        answer = (reply_of(response) or "").strip()
        if not answer or len(answer) > _MOST_CHARACTERS:
            return Verdict.wrong("there is no answer" if not answer else "the answer is too long")

        def points(text: str) -> float:
            """What the scorer gives; what it stumbles over is no answer."""
            try:
                return score(str(family), config or {}, item, text)
            except MemoryError:
                raise
            except (Exception, SystemExit):  # whatever a scorer raises at what it can't read
                return 0.0

        gold = item["answer"]
        if gold is not None and _spelled(answer) in (_spelled(gold), f"{_spelled(gold)}."):
            if points(gold) != 1.0:
                return Verdict.could_not_tell("the scorer does not give the point to the item's own answer")
            return Verdict.right()
        if family == _ANY_NUMBERS:
            if len(answer.splitlines()) > 1:
                return Verdict.wrong("the answer is more than one expression")
            meta = {"numbers": item["metadata"]["numbers"]}
            return TwentyFourGrader().judge(Problem(problem.task, problem.messages, "", meta), answer)
        return Verdict.right() if points(answer) == 1.0 and _is_all(answer, gold, points) else Verdict.wrong()


def _spelled(answer: str) -> str:
    return " ".join(answer.split())


def _is_all(answer: str, gold: str | None, points: Scorer) -> bool:
    """Whether an answer with the whole point is an answer, and nothing beside it."""
    if any(points(text) == 1.0 for text in _NONSENSE):
        return False
    if gold is not None:
        offered = [word for word in _CHOICE.findall(answer) if word not in gold]
        if offered or len(answer.splitlines()) != len(gold.strip().splitlines()):
            return False
    tokens = [match.span() for match in _TOKEN.finditer(answer)]
    if len(tokens) < 2:
        return True
    shorter = (answer[tokens[1][0] :], answer[: tokens[-2][1]])
    return not any(points(text.strip()) == 1.0 for text in shorter)
