"""A judge: a model behind a server that says whether an answer is correct, or which of two is better.

A reply counts only if it is a verdict and nothing else. Everything else is no verdict, which is not a bad one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from reasonmill.activity import each
from reasonmill.servers.client import ChatRequest, ChatServer, Replies
from reasonmill.servers.replies import ChatReply, thinking_apart
from reasonmill.servers.settings import ServerSettings
from reasonmill.types import Message, Problem, SamplingParams

# Judges may think aloud before; around the verdict itself, only the marks of emphasis and a full stop are allowed.
_VERDICT = re.compile(r"[\s*\"'`]*([A-Za-z]+|[ABab](?:>>|>|=)[ABab])[\s*\"'`.]*")
_FENCE = re.compile(r"={5,}")

_ASKED: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
# How much better A is, by the judge's sign: from -1 to 1.
PREFERENCES: dict[str, float] = _ASKED["preferences"]


class JudgeSettings(ServerSettings):
    """Where a judge is served, and how long it may write."""

    max_tokens: int = Field(default=2048, ge=1, description="tokens of a reply, thinking included")

    @model_validator(mode="after")
    def _tells_what_is_set(self) -> Self:
        if untold := self.without(self.model_fields_set):
            raise ValueError(f"parameters leaves {untold[0]} out, so it can't be set")
        return self


@dataclass(frozen=True, slots=True)
class Claim:
    """An answer to a problem, to be compared with the problem's gold answer."""

    problem: Problem
    answer: str


@dataclass(frozen=True, slots=True)
class Point:
    """An answer to a problem, and a criterion that it should meet."""

    problem: Problem
    answer: str
    criterion: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a problem, in the order in which the judge reads them."""

    problem: Problem
    first: str
    second: str


class Judge:
    """Asks a model for verdicts, greedily, so that the same question has the same verdict wherever that can be had.

    Verdicts that are kept need neither server nor key: these are looked for when there is something to ask, and a
    variable that should hold the key and does not is a RecipeError then.
    """

    repeatable = False  # it may say something else each time

    def __init__(self, settings: JudgeSettings, replies: Replies | None = None) -> None:
        self._settings = settings
        self._kept = replies
        self._params = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens)

    def correct(self, claims: Sequence[Claim], on_verdict: Callable[[int], None] | None = None) -> list[bool | None]:
        """Whether each answer is correct; None where the judge gave no verdict. An empty answer is wrong unasked.

        Args:
            on_verdict: called with how many verdicts there are, for progress.

        Raises:
            ServerError: the server can't be reached, or refuses a request.
        """
        said = [place for place, claim in enumerate(claims) if claim.answer.strip()]
        asked = [
            {"question": _question(claim.problem), "gold": claim.problem.answer, "answer": claim.answer}
            for claim in (claims[place] for place in said)
        ]
        verdicts: list[bool | None] = [False] * len(claims)
        for place, given in zip(said, self._verdicts("correctness", asked, on_verdict), strict=True):
            verdicts[place] = {"CORRECT": True, "INCORRECT": False}.get(given)
        return verdicts

    def met(self, points: Sequence[Point]) -> list[bool | None]:
        """Whether each answer meets its criterion; None where the judge gave no verdict. Errors as of `correct`."""
        asked = [
            {"question": _question(point.problem), "criterion": point.criterion, "answer": point.answer}
            for point in points
        ]
        return [{"MET": True, "UNMET": False}.get(given) for given in self._verdicts("criterion", asked, None)]

    def preferences(
        self, comparisons: Sequence[Pair], on_verdict: Callable[[int], None] | None = None
    ) -> list[float | None]:
        """How much better the first answer of each is, from -1 to 1; None where the judge gave no verdict.

        Arguments and errors as of `correct`.
        """
        asked = [
            {"question": _question(pair.problem), "first": pair.first, "second": pair.second} for pair in comparisons
        ]
        return [PREFERENCES.get(given) for given in self._verdicts("preference", asked, on_verdict)]

    def _verdicts(
        self, form: str, asked: Sequence[Mapping[str, str]], on_verdict: Callable[[int], None] | None
    ) -> list[str]:
        """The word or sign of each reply to a prompt of this form, filled with what is asked."""
        prompts = [_ASKED[form].format(**{name: _material(text) for name, text in each.items()}) for each in asked]
        requests = [ChatRequest((Message("user", prompt),), self._params, seed=0) for prompt in prompts]
        verdicts = [""] * len(prompts)
        replies = each("judging", ChatServer(self._settings, self._kept).complete(requests))
        for number, (index, reply) in enumerate(replies, start=1):
            verdicts[index] = verdict(reply)
            if on_verdict is not None:
                on_verdict(number)
        return verdicts


def verdict(reply: ChatReply) -> str:
    """A reply's one word or sign such as A>B, in capitals; empty where the reply is cut off or says anything else."""
    word = _VERDICT.fullmatch(thinking_apart(reply).content)
    return word[1].upper() if word and reply.finish == "stop" else ""


def _question(problem: Problem) -> str:
    turns = problem.messages
    return "\n\n".join(f"{turn.role}: {turn.content}" if len(turns) > 1 else turn.content for turn in turns)


def _material(text: str) -> str:
    """Text that can't pretend to be one of the prompt's own lines of =====."""
    return _FENCE.sub("====", text).strip()
