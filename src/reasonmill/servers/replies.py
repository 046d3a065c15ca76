"""What servers of chat completions answer, and the many ways in which they say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasonmill.types import Finish

# Why a reply ended, in the words of OpenAI and of vLLM, SGLang, llama.cpp, TGI, Ollama, Together, Mistral, DeepSeek,
# Cohere, and of gateways to Anthropic's, Google's and Amazon's models. Only an end that the model chose is a stop: a
# filter or the call of a tool is none.
_FINISHES: Mapping[Finish, Sequence[str]] = {
    "stop": (
        *("stop", "eos", "eos_token", "eos_token_id", "stop_token", "stop_sequence", "stop_string", "stop_word"),
        *("end", "end_turn", "end_of_text", "endoftext", "complete", "completed", "finish", "finished", "done"),
    ),
    "length": (
        *("length", "max_tokens", "max_length", "max_output_tokens", "max_new_tokens", "max_completion_tokens"),
        *("model_length", "context_length", "context_length_exceeded", "model_context_window_exceeded", "limit"),
        *("error_limit", "token_limit", "budget_exhausted", "truncated"),
    ),
    "abort": (
        *("content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii"),
        *("sensitive", "language", "image_safety", "guardrail_intervened", "refusal", "error_toxic", "user_cancel"),
        *("tool_calls", "tool_call", "tool_use", "function_call", "malformed_function_call", "unexpected_tool_call"),
        *("abort", "aborted", "cancel", "cancelled", "canceled", "error", "other", "unknown", "pause_turn", "load"),
        *("unload", "timeout", "time_limit", "insufficient_system_resource", "network_error", "repetition"),
    ),
}
KNOWN_FINISHES: Mapping[str, Finish] = {said: finish for finish, words in _FINISHES.items() for said in words}

# How models mark their thinking in a content, where nobody took it out.
_THINKING_MARKS = (
    *(("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>")),
    *(("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<reasoning>", "</reasoning>")),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
_TEXT_PARTS = ("text", "output_text", "refusal")
_THINKING_PARTS = ("thinking", "reasoning", "reasoning.text", "reasoning.summary")
_UNREADABLE_PARTS = ("redacted_thinking", "reasoning.encrypted")
_THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")


@dataclass(frozen=True, slots=True)
class Said:
    """What a server said: content, the reasoning that it separated from that, and its word for why the reply ended."""

    content: str
    reasoning: str
    ending: str


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The assistant's turn; `reasoning` is what the server separated from its content, empty where it does not."""

    content: str
    reasoning: str
    finish: Finish


class NoCompletion(ValueError):
    """An answer is no chat completion."""


class ErrorInside(Exception):
    """An answer that calls itself a success holds an error instead.

    Attributes:
        status: the HTTP status that it would have had; None where it names none.
    """

    def __init__(self, what: str, status: int | None) -> None:
        super().__init__(what)
        self.status = status


def read_answer(answer: bytes, max_tokens: int) -> Said:
    """What the body of an answer says.

    Args:
        max_tokens: how many tokens were asked for at most: a reply of so many that says nothing of its end was cut off.

    Raises:
        NoCompletion: it is something else.
        ErrorInside: it is an error.
    """
    try:
        body = json.loads(answer)
        _refuse_error(body)
        choice = body["choices"][0]
        _refuse_error(choice)
        message = choice["message"]
        content, thought = _apart(message.get("content") or message.get("refusal"))
        fields = [_apart(message[name]) for name in _THINKING_FIELDS if message.get(name)]
        # Servers give the same thing under two names.
        reasoning = thought or next(("".join(both) for both in fields), "")
        ending = choice.get("finish_reason")
        if not ending:
            num_tokens = (body.get("usage") or {}).get("completion_tokens") or 0
            ending = "length" if num_tokens >= max_tokens else "stop"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NoCompletion("no chat completion") from error
    return Said(whole(content), whole(reasoning), whole(str(ending)))


def finish_of(ending: str, named: Mapping[str, Finish]) -> Finish | None:
    """What a server's word for the end of a reply means; None for one that nobody knows.

    Args:
        named: words that are known beyond the usual ones.
    """
    word = ending.lower().replace("-", "_").rpartition(".")[2].removeprefix("finish_reason_")
    return named.get(ending) or KNOWN_FINISHES.get(word)


def thinking_apart(reply: ChatReply) -> ChatReply:
    """The same reply, its thinking apart from its content also where the server left it there.

    The mark that opens it may have been part of the prompt. Thinking that was never closed is cut off: no content.
    """
    if reply.reasoning:
        return reply
    content = reply.content
    for opening, closing in _THINKING_MARKS:
        closed = re.search(re.escape(closing), content, re.IGNORECASE)
        before, after = (content[: closed.start()], content[closed.end() :]) if closed else (content, "")
        opened = re.match(rf"\s*{re.escape(opening)}", content, re.IGNORECASE)
        if opened:
            thought = before[opened.end() :]
            return ChatReply(after, thought, reply.finish) if closed else ChatReply("", thought, "length")
        if closed and opening == _THINKING_MARKS[0][0] and opening not in before.lower():
            return ChatReply(after, before, reply.finish)
    return reply


def whole(text: str) -> str:
    """The text with a replacement character for each half of a surrogate pair, which no UTF-8 can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _apart(content: Any) -> tuple[str, str]:
    """(content, thinking) of a text, or of a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    said, thought = [], []
    for part in content:
        kind = part["type"]
        if kind in _THINKING_PARTS:
            thought.append("".join(_flat(part)))
        elif kind in _TEXT_PARTS:
            said.append("".join(_flat(part)))
        elif kind not in _UNREADABLE_PARTS:
            raise NoCompletion(f"a part of type {kind!r}")
    return "".join(said), "".join(thought)


def _flat(part: Any) -> Iterator[str]:
    """All texts of a part, which may hold parts of its own."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        for inner in part:
            yield from _flat(inner)
    elif isinstance(part, dict):
        for key in ("text", "thinking", "reasoning", "refusal", "summary"):
            yield from _flat(part.get(key))


def _refuse_error(table: Mapping[str, Any]) -> None:
    # Some servers put the error where the answer would be.
    bare = table.get("object") == "error" or ("choices" not in table and isinstance(table.get("message"), str))
    error = table.get("error") or (table if bare else None)
    if error is None:
        return
    said = error if isinstance(error, Mapping) else {"message": error}
    codes = [str(said.get(name, "")) for name in ("code", "status", "status_code", "type")]
    status = next((int(code) for code in codes if code.isdecimal() and 400 <= int(code) < 600), None)
    if status is None:
        words = " ".join(codes).lower()
        lasting = any(word in words for word in ("invalid", "auth", "permission", "not_found", "unsupported", "quota"))
        status = 400 if lasting else 429 if "rate" in words or "overloaded" in words else None
    raise ErrorInside(json.dumps(said, ensure_ascii=False), status)
