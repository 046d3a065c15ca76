"""Rows made into what stages learn from: problems, conversations, and responses with labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from reasonmill.data.shapes import Kind, Shape, is_empty, require_nothing_refused, value_at
from reasonmill.data.turns import answers_in, messages_in, said
from reasonmill.data.values import BadRow, Row
from reasonmill.tasks.splits import SPLITS
from reasonmill.types import Completion, Conversation, Grade, Group, Message, Problem, Rollout, content_digest

Made = Problem | Conversation | Group | str
# What problems of rows are said to be of: a task gives those that it asks its own name, labelled responses keep it.
NO_TASK = "rows"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SPLIT_NAMES = {**{split: split for split in SPLITS}, "validation": "dev", "valid": "dev", "val": "dev"}
# The parts of grades that labels become.
CHOSEN, LABEL = "chosen", "label"
_USER, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class Item:
    """What a row was made into.

    Attributes:
        prompt: what is asked: it decides the split.
        same: what makes two rows the same but for `decided`: the prompt, and what is said to it.
        decided: what two rows that are the same have to agree on: the answer or the label.
        make: makes the problem, conversation or group, which duplicates do without.
        split: the one that the row names; None where none is named.
    """

    place: str
    prompt: tuple[Message, ...]
    same: str
    decided: str
    make: Callable[[], Made]
    split: str | None = None


def item_of(row: Row, shape: Shape) -> Item:
    """What a row is made into.

    Raises:
        BadRow: it is not understood, with its place and its column.
    """
    try:
        require_nothing_refused(shape, row)
        item = _MAKERS[shape.kind](row, shape)
        path = shape.columns.get("split")
        return item if path is None else _in_split(item, value_at(row.columns, path), path)
    except BadRow as bad:
        raise BadRow(bad.what, bad.column, row.place) from None


def _in_split(item: Item, name: Any, column: str) -> Item:
    if name not in _SPLIT_NAMES:
        raise BadRow(f"{name!r} names no split; splits are {', '.join(_SPLIT_NAMES)}", column)
    return replace(item, split=_SPLIT_NAMES[name])


def _value(row: Row, shape: Shape, role: str) -> tuple[Any, str]:
    """The value of the column of a role, and the column's name."""
    column = shape.columns[role]
    value = value_at(row.columns, column)
    if value is None:
        raise BadRow("it is missing, or null", column)
    return value, column


def _text(row: Row, shape: Shape, role: str) -> str:
    value, column = _value(row, shape, role)
    if not isinstance(value, str) or not value.strip():
        raise BadRow("a text is needed here", column)
    return value


def _with_system(row: Row, shape: Shape, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    path = shape.columns.get("system")
    system = value_at(row.columns, path) if path else None
    if path is None or is_empty(system):
        return messages
    if not isinstance(system, str):
        raise BadRow("a system message is a text", path)
    if messages and messages[0].role == "system":
        raise BadRow("the row has two system messages: this one, and the first of its turns", path)
    return (Message("system", system), *messages)


def _prompt(row: Row, shape: Shape) -> tuple[Message, ...]:
    """The turns that a response follows."""
    value, column = _value(row, shape, "prompt")
    messages = _with_system(row, shape, messages_in(value, column))
    if messages[-1].role not in ("user", "tool"):
        raise BadRow(f"it ends with a turn of the {messages[-1].role}, and nothing is asked", column)
    return messages


# Problems


def _problem(row: Row, shape: Shape) -> Item:
    if shape.name == "open-instruct":  # its messages hold a response that RL leaves out
        messages = _without_response(*_value(row, shape, "prompt"))
    else:
        messages = _prompt(row, shape)
    answers = [""]
    if "answer" in shape.columns:
        value, column = _value(row, shape, "answer")
        answers = answers_in(value, shape.answer, column)
    top = {path.partition(".")[0] if path not in row.columns else path for path in _asked_in(shape)}
    # By a prompt that is a text, reward functions of TRL know that completions are texts, too.
    top -= {"prompt"} if isinstance(row.columns.get("prompt"), str) else set()
    # An empty cluster would make all such problems one.
    meta = {k: v for k, v in row.columns.items() if k not in top and not (k == "cluster" and v is None)}
    if "choices" in shape.columns and not is_empty(value_at(row.columns, shape.columns["choices"])):
        choices, named = _choices(*_value(row, shape, "choices"))
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, choices, strict=False))
        messages = (*messages[:-1], Message(messages[-1].role, f"{messages[-1].content}\n\n{listed}"))
        meta["choices"] = choices
        if "answer" in shape.columns:
            answers = [_letter(answer, choices, named, shape.columns["answer"]) for answer in answers]
    more = meta.get("answers", [])  # where graders look for more that is right: an object has keys there, no answers
    if len(answers) > 1 or not isinstance(more, list):
        meta["answers"] = answers[1:]
    make = partial(Problem, NO_TASK, messages, answers[0], meta)
    return Item(row.place, messages, _turns(messages), json.dumps(answers), make)


def _asked_in(shape: Shape) -> list[str]:
    return [path for role, path in shape.columns.items() if role in ("prompt", "system")]


def _without_response(value: Any, column: str) -> tuple[Message, ...]:
    messages = messages_in(value, column)
    messages = messages[:-1] if messages[-1].role == "assistant" else messages
    if not messages or messages[-1].role not in ("user", "tool"):
        raise BadRow("no turn of the user asks anything", column)
    return messages


def _choices(value: Any, column: str) -> tuple[list[str], list[Any]]:
    """The texts of options, and what the row calls them: a list of texts, or an object with the lists `text` and
    `label`."""
    texts = value.get("text") if isinstance(value, dict) else value
    if not isinstance(texts, list) or not 1 < len(texts) <= len(_LETTERS):
        raise BadRow(f"options are a list of 2 to {len(_LETTERS)} texts", column)
    if not all(isinstance(text, str | int | float) for text in texts):
        raise BadRow("an option is no text", column)
    labels = value.get("label") if isinstance(value, dict) else None
    return [str(text) for text in texts], labels if isinstance(labels, list) else []


def _letter(answer: str, choices: Sequence[str], named: Sequence[Any], column: str) -> str:
    """The letter of the right option, which an answer names by what the row calls it, or else by its letter, its text,
    or its number from 0 on."""
    letters = _LETTERS[: len(choices)]
    if answer in named[: len(choices)]:
        return letters[list(named).index(answer)]
    if answer in letters and len(answer) == 1:
        return answer
    if list(choices).count(answer) == 1:
        return letters[list(choices).index(answer)]
    if answer.isdecimal() and int(answer) < len(choices):
        return letters[int(answer)]
    raise BadRow(f"{answer!r} is none of the options {', '.join(letters)}", column)


# Conversations


def _conversation(row: Row, shape: Shape) -> Item:
    if "messages" in shape.columns:
        value, column = _value(row, shape, "messages")
        if not isinstance(value, list):
            raise BadRow("a list of messages is needed here", column)
        turns = _with_system(row, shape, said(value, column))
    else:
        column = shape.columns["response"]
        turns = (*_with_context(row, shape, _prompt(row, shape)), *said(*_value(row, shape, "response")))
    if len(turns) < 2 or turns[-2].role not in ("user", "tool"):
        raise BadRow("a response follows a turn of the user or of a tool", column)
    prompt, response = turns[:-1], turns[-1].content
    make = partial(Conversation, prompt, response, "general", content_digest(_turns(prompt))[:16])
    return Item(row.place, prompt, _turns(turns), "", make)


def _with_context(row: Row, shape: Shape, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with what an instruction is about below it."""
    path = shape.columns.get("context")
    context = value_at(row.columns, path) if path else None
    if path is None or is_empty(context):
        return prompt
    if not isinstance(context, str):
        raise BadRow("a text is needed here", path)
    return (*prompt[:-1], Message(prompt[-1].role, f"{prompt[-1].content}\n\n{context}"))


# Labelled responses


def _group(prompt: tuple[Message, ...], responses: Mapping[str, float], part: str) -> Group:
    """Responses that somebody labelled, as the rollouts that a reward model learns from: their grades have the label
    as a part. Nobody sampled them, so that they have no tokens."""
    rollouts = tuple(
        Rollout((), Completion((), None, (), text, "stop", 0), Grade(label, {part: label}))
        for text, label in responses.items()
    )
    return Group(Problem(NO_TASK, prompt, ""), rollouts)


def _pair(row: Row, shape: Shape) -> Item:
    sides = [_value(row, shape, role) for role in ("chosen", "rejected")]
    if "prompt" in shape.columns:
        prompt = _prompt(row, shape)
        texts = [_after(prompt, *side) for side in sides]
    else:
        prompt, texts = _implicit(sides)
        prompt = _with_system(row, shape, prompt)
    if texts[0] == texts[1]:
        raise BadRow("the chosen and the rejected response are the same", shape.columns["rejected"])
    make = partial(_group, prompt, {texts[0]: 1.0, texts[1]: 0.0}, CHOSEN)
    # The same two responses the other way round are the same pair, and contradict it.
    return Item(row.place, prompt, json.dumps([_turns(prompt), sorted(texts)]), texts[0], make)


def _after(prompt: tuple[Message, ...], value: Any, column: str) -> str:
    """The one turn of the assistant that follows a prompt, which may stand before it once more."""
    turns = said(value, column)
    asked = tuple(message for message in prompt if message.role != "system" or message in turns)
    if len(turns) > 1 and turns[: len(asked)] == asked:
        turns = turns[len(asked) :]
    if len(turns) != 1:
        raise BadRow("more than one turn follows the prompt, and a pair differs in one", column)
    return turns[0].content


def _implicit(sides: Sequence[tuple[Any, str]]) -> tuple[tuple[Message, ...], list[str]]:
    """The prompt that a pair has in common, and its two responses."""
    turns = [_dialogue(*side) for side in sides]
    both = zip(*(each[:-1] for each in turns), strict=False)
    shared = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
    if not shared or shared[-1].role not in ("user", "tool"):
        raise BadRow("the two responses have no prompt in common", sides[1][1])
    for (_, column), each in zip(sides, turns, strict=True):
        if len(each) != len(shared) + 1:
            raise BadRow("more than one turn follows the common prompt, and a pair differs in one", column)
    return tuple(shared), [each[-1].content for each in turns]


def _dialogue(value: Any, column: str) -> list[Message]:
    """The turns of messages, or of a text that marks them with Human: and Assistant:"""
    if not isinstance(value, str):
        return list(said(value, column))
    if not value.startswith(_USER) or _ASSISTANT not in value:
        raise BadRow(
            "without a column for the prompt, a text has its turns marked with Human: and Assistant:, each after an "
            "empty line",
            column,
        )
    turns = []
    for part in value.split(_USER)[1:]:
        asked, *replies = part.split(_ASSISTANT)
        turns += [Message("user", asked.strip()), *(Message("assistant", reply.strip()) for reply in replies)]
    if turns[-1].role != "assistant" or not turns[-1].content:
        raise BadRow("it ends without a response", column)
    return turns


def _labelled(row: Row, shape: Shape) -> Item:
    prompt = _prompt(row, shape)
    value, column = _value(row, shape, "label")
    if "steps" in shape.columns:
        steps, steps_column = _value(row, shape, "steps")
        if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step for step in steps):
            raise BadRow("a list of steps is needed here", steps_column)
        if not isinstance(value, list) or len(value) != len(steps):
            raise BadRow("every step needs a label", column)
        texts = ["\n".join(steps[: count + 1]) for count in range(len(steps))]
        labels = [_label(each, f"{column}[{place}]") for place, each in enumerate(value)]
    else:
        texts = [turn.content for turn in said(*_value(row, shape, "response"))]
        if len(texts) != 1:
            raise BadRow("a label is about one turn of the assistant", shape.columns["response"])
        labels = [_label(value, column)]
    make = partial(_group, prompt, dict(zip(texts, labels, strict=True)), LABEL)
    return Item(row.place, prompt, json.dumps([_turns(prompt), texts]), json.dumps(labels), make)


def _label(value: Any, column: str) -> float:
    spelled = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
    label = spelled.get(str(value).lower()) if isinstance(value, bool | int | str) else None
    if label is None:
        raise BadRow(f"a label is true or false, 1 or 0, and this is {value!r}", column)
    return label


def _plain(row: Row, shape: Shape) -> Item:
    text = _text(row, shape, "text")
    return Item(row.place, (Message("assistant", text),), text, "", lambda: text)


def _turns(messages: Sequence[Message]) -> str:
    """What makes two prompts the same: all that is said, but for white space."""
    return json.dumps([[message.role, " ".join(message.content.split())] for message in messages])


_MAKERS: Mapping[Kind, Callable[[Row, Shape], Item]] = {
    "problems": _problem,
    "conversations": _conversation,
    "pairs": _pair,
    "labels": _labelled,
    "texts": _plain,
}
