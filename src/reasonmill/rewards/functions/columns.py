"""What a row says, by the names of its columns: where a function's parameters come from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

from reasonmill.types import Problem

# How completions and prompts are shown to a function: as texts, or as lists of {"role", "content"}.
Form = Literal["texts", "messages"]
# Columns that mean the gold answer, and what is asked, where the row has no column of that name.
GOLD = ("answer", "ground_truth", "label", "labels", "solution", "target", "gold")
ASKED = ("question", "problem", "query", "instruction")
# Where verl and SkyRL keep the ground truth.
_NESTED = ("reward_model", "reward_spec")


class MissingColumn(Exception):
    """A problem has nothing of this name."""


def columns_of(problem: Problem) -> dict[str, Any]:
    """The columns of the problem's row, or what else its task took down in `meta`. The values are the caller's own."""
    own = problem.meta.get("columns", {})
    named = own if isinstance(own, Mapping) else {}
    return copy.deepcopy({**{key: value for key, value in problem.meta.items() if key != "columns"}, **named})


def column(problem: Problem, name: str) -> Any:
    """The value of a column, or what the problem itself has under that name.

    Raises:
        MissingColumn: there is neither.
    """
    held = columns_of(problem)
    if name in held:
        return held[name]
    if name == "ground_truth":
        for outer in _NESTED:
            if isinstance(held.get(outer), Mapping) and name in held[outer]:
                return held[outer][name]
    if name in GOLD:
        return problem.answer
    if name in ASKED:
        return asked(problem)
    if name in ("data_source", "task"):
        return problem.task
    raise MissingColumn(name)


def asked(problem: Problem) -> str:
    """What the problem asks: its last message."""
    return problem.messages[-1].content


def prompt(problem: Problem, form: Form) -> Any:
    """The prompt: as the row has it where it has it in this form, or the problem's messages."""
    held = columns_of(problem).get("prompt")
    if (isinstance(held, str) and form == "texts") or (isinstance(held, list) and form == "messages"):
        return held
    if form == "messages":
        return [{"role": message.role, "content": message.content} for message in problem.messages]
    return "\n\n".join(message.content for message in problem.messages)


def form_of(problem: Problem) -> Form:
    """How functions expect what was said: as texts where the row's prompt is one, as messages otherwise."""
    return "texts" if isinstance(columns_of(problem).get("prompt"), str) else "messages"
