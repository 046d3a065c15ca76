"""Problems and responses as tests of curation write them."""

from typing import Any

from reasonmill.types import Message, Problem


def problem(prompt: str = "make 10 from 3 8 1", language: str | None = "en", **parts: Any) -> Problem:
    meta = {} if language is None else {"language": language}
    return Problem(parts.get("task", "sums"), (Message("user", prompt),), parts.get("answer", "3 + 8 - 1"), meta)


def response(thinking: str, answer: str = "3 + 8 - 1") -> str:
    return f"<think> {thinking}</think><answer> {answer}</answer>"
