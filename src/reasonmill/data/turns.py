"""Messages and answers as other projects write them, made into this project's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, get_args

from reasonmill.data.shapes import AnswerForm, is_empty
from reasonmill.data.values import BadRow
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN
from reasonmill.types import Message, Role

_ROLES: Mapping[str, Role] = {
    **{role: role for role in get_args(Role)},
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
}
# The keys of a message: who says it, what, and what was thought before it, each by the first of these that is there.
_WHO, _WHAT, _THOUGHT = ("role", "from"), ("content", "value"), ("reasoning_content", "reasoning", "thinking")
# Keys that say nothing about the text.
_SILENT = frozenset({"name", "type", "id", "status", "tool_call_id", "weight", *_WHO, *_WHAT, *_THOUGHT})
_TEXTS = frozenset({"text", "input_text", "output_text"})
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def messages_in(value: Any, column: str) -> tuple[Message, ...]:
    """The messages that a column holds: a text is one of the user's.

    Raises:
        BadRow: it holds something else, or a message that holds more than text.
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRow("it is empty", column)
        return (Message("user", value),)
    if not isinstance(value, list) or not value:
        raise BadRow("neither a text nor a list of messages stands in it", column)
    return tuple(_message(each, f"{column}[{place}]") for place, each in enumerate(value))


def said(value: Any, column: str) -> tuple[Message, ...]:
    """What an assistant says: a text, a message of its, or several turns that end with one of its.

    Raises:
        BadRow: it is something else, or empty.
    """
    if isinstance(value, str):
        turns: tuple[Message, ...] = (Message("assistant", value),)
    else:
        turns = messages_in([value] if isinstance(value, dict) else value, column)
    if turns[-1].role != "assistant":
        raise BadRow(f"it ends with a turn of the {turns[-1].role}, so that there is no response", column)
    if not turns[-1].content.strip():
        raise BadRow("the response is empty", column)
    return turns


def answers_in(value: Any, form: AnswerForm, column: str) -> list[str]:
    """Gold answers as texts: of a list of texts and numbers each, any of which is right; otherwise the one that it is.

    Raises:
        BadRow: there is none.
    """
    if isinstance(value, list) and value and all(isinstance(each, str | int | float) for each in value):
        return [_answer(each, form, f"{column}[{place}]") for place, each in enumerate(value)]
    return [_answer(value, form, column)]


def _answer(value: Any, form: AnswerForm, column: str) -> str:
    """One answer; what is neither text nor number is JSON."""
    if is_empty(value):
        raise BadRow("there is no answer", column)
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if form == "column":
        return value.strip()
    found = last_box(value) if form == "box" else value.partition("####")[1] and value.rpartition("####")[2].strip()
    if not found:
        raise BadRow("nothing stands behind ####" if form == "hashes" else r"there is no \boxed{} answer in it", column)
    return found


def last_box(text: str) -> str:
    r"""What stands in the last \boxed{} of a text; empty where there is none that is closed."""
    for match in reversed(list(_BOX.finditer(text))):
        depth = 1
        for place in range(match.end(), len(text)):
            if text[place] in "{}" and text[place - 1] != "\\":
                depth += 1 if text[place] == "{" else -1
                if depth == 0:
                    return text[match.end() : place].strip()
    return ""


def _message(value: Any, column: str) -> Message:
    if not isinstance(value, dict):
        raise BadRow("a message is an object with a role and a content", column)
    who = next((value[key] for key in _WHO if key in value), None)
    role = _ROLES.get(who) if isinstance(who, str) else None
    if role is None:
        raise BadRow(f"a message of the role {who!r}; roles are {', '.join(_ROLES)}", column)
    other = [key for key, each in value.items() if key not in _SILENT and not is_empty(each)]
    if other:
        raise BadRow(f"a message has {other[0]!r}, and only what is said is read", f"{column}.{other[0]}")
    content = _content(next((value[key] for key in _WHAT if key in value), None), column)
    thought = next((value[key] for key in _THOUGHT if not is_empty(value.get(key))), "")
    if not isinstance(thought, str) or (thought and role != "assistant"):
        raise BadRow("thinking is a text of the assistant", column)
    if thought:
        content = f"{THINK_OPEN}\n{thought.strip()}\n{THINK_CLOSE}\n\n{content}"
    return Message(role, content)


def _content(value: Any, column: str) -> str:
    """The text of a message: a text, or a list of parts that are texts."""
    if isinstance(value, str):
        return value
    if value is None:
        raise BadRow("a message says nothing", column)
    parts = []
    for place, part in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(part, dict) or part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            raise BadRow("a part of a message is something else than text", f"{column}.content[{place}]")
        parts.append(part["text"])
    return "".join(parts)
