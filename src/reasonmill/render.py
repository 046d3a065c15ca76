"""Renderers: messages to tokens and back, with the tokenizer that belongs to the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reasonmill.errors import UnsupportedModel
from reasonmill.model.decoder import first_line
from reasonmill.model.directory import content, refuse_foreign_code
from reasonmill.model.saving import COMPANIONS
from reasonmill.protocols import Renderer
from reasonmill.templates import R1_ZERO_PREAMBLE
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN
from reasonmill.types import Message

# One for the same files, for as long as the process lives: the tokenizers library keeps the words that it has merged
# in memory of the thread, which outlives the tokenizer, so that one for each stage would fill it without end.
_TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {}

# A turn of the assistant that stands for whatever was sampled; with line ends where templates that take thinking out
# of a turn and put it back in would add them.
_TURN = f"{THINK_OPEN}\nthought\n{THINK_CLOSE}\n\nsaid"

# In place of the function that tells templates the date. A text can't be called: a template that asks fails.
_NO_CLOCK = "no clock"


class _TokenizerText:
    """What both renderers do alike: completion tokens to text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_tokens: frozenset[int], where: str) -> None:
        self.stop_tokens = stop_tokens
        self._tokenizer = tokenizer
        self._where = where

    def text(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self.stop_tokens]
        decoded: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return decoded

    def response(self, text: str) -> tuple[int, ...]:
        # The tokenizer's own end token where it has one; a model that only its generation config ends has others.
        end = self._tokenizer.eos_token_id
        stop = min(self.stop_tokens) if end is None else end
        return (*self._tokenizer.encode(text, add_special_tokens=False), stop)

    def num_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


class ChatRenderer(_TokenizerText):
    """The chat template that comes with the model."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(self._rendered(messages, goes_on=True), add_special_tokens=False))

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        # The difference of two conversations as text: one that ends with a turn of the assistant, and the same with the
        # messages behind it. A mark that ends a turn is a token of its own, so that text can be cut behind it.
        before = (Message("user", "question"), Message("assistant", _TURN))
        try:
            ended = self._rendered(before, goes_on=False)
            replied = self._rendered((*before, *messages), goes_on=True)
            blanks = [
                self._rendered((*before, *messages[:i], Message(message.role, ""), *messages[i + 1 :]), goes_on=True)
                for i, message in enumerate(messages)
                if message.content
            ]
        except UnsupportedModel as error:
            raise self._refused(f"says: {error.what.partition(': ')[2]}") from error
        if ended.count(_TURN) != 1 or not replied.startswith(ended):
            raise self._refused("shows earlier turns differently from how they were said, for example without thinking")
        if replied in blanks:
            roles = " or ".join(sorted({message.role for message in messages}))
            raise self._refused(f"does not show what {roles} says")
        behind = self._behind_stop(ended.partition(_TURN)[2])
        return tuple(self._tokenizer.encode(behind + replied[len(ended) :], add_special_tokens=False))

    def _rendered(self, messages: Sequence[Message], *, goes_on: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=goes_on, tokenize=False, strftime_now=_NO_CLOCK
            )
        except Exception as error:  # whatever a template's own code comes to
            roles = ", ".join(message.role for message in messages)
            why = str(error) or type(error).__name__
            if isinstance(error, TypeError) and "strftime_now" in str(self._tokenizer.chat_template):
                why = "it writes the date (strftime_now) into prompts, which would be others each day"
            raise UnsupportedModel(
                f"the model's chat template refuses a conversation of {roles}: {why}",
                fix="correct the template, for example by a date that stands in it, or choose tasks whose "
                "conversations it takes",
                where=self._where,
            ) from error
        return text

    def _behind_stop(self, end: str) -> str:
        """What is left of a turn's end behind its stop token; all of it in a template that has none."""
        marks = [self._tokenizer.decode([token], skip_special_tokens=False) for token in self.stop_tokens]
        found = min(((end.index(mark), mark) for mark in marks if mark in end), default=None)
        if found is None:
            return end
        place, mark = found
        return end[place + len(mark) :]

    def _refused(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"the model's chat template can't continue after a turn of the assistant: it {why}",
            fix="use a template that leaves earlier turns as they are and knows the role, or leave the environment out",
            where=self._where,
        )


class PlainRenderer(_TokenizerText):
    """R1-Zero's template as plain text, for one user question of a base that has no chat template of its own."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(f"{R1_ZERO_PREAMBLE}{self._asked(messages)}"))

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        # As the chat template of this name continues longer conversations.
        return tuple(self._tokenizer.encode(self._asked(messages), add_special_tokens=False))

    def _asked(self, messages: Sequence[Message]) -> str:
        question = "\n".join(message.content for message in messages)
        return f" User: {question}. Assistant:"


def renderer_for(model_dir: Path, *, trust_remote_code: bool = False) -> Renderer:
    """The renderer of a model directory: its chat template where it has one, else R1-Zero's plain template.

    Args:
        trust_remote_code: whether code that comes with the tokenizer may run.

    Raises:
        UnsupportedModel: the directory holds no tokenizer, or one that never ends a text.
    """
    tokenizer = _tokenizer(model_dir, trust_remote_code)
    stop_tokens = _stop_tokens(model_dir, tokenizer)
    if not stop_tokens:
        raise UnsupportedModel(
            "the tokenizer has no end-of-text token, so no completion would ever stop",
            fix="set eos_token in tokenizer_config.json",
            where=str(model_dir),
        )
    return (ChatRenderer if tokenizer.chat_template else PlainRenderer)(tokenizer, stop_tokens, str(model_dir))


def _tokenizer(model_dir: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    hasher = hashlib.blake2b(digest_size=32)
    for pattern in ("config.json", *COMPANIONS):
        for file in sorted(model_dir.glob(pattern)):
            content = file.read_bytes()
            hasher.update(f"{file.name} {len(content)}\n".encode() + content)
    content_digest = hasher.hexdigest()
    if content_digest not in _TOKENIZERS:
        refuse_foreign_code(model_dir, "tokenizer_config.json", trust=trust_remote_code)
        try:
            _TOKENIZERS[content_digest] = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever transformers, tokenizers and a tokenizer's own code raise
            raise UnsupportedModel(
                f"no tokenizer can be loaded: {first_line(error)}",
                fix="save the tokenizer next to the model",
                where=str(model_dir),
            ) from error
    return _TOKENIZERS[content_digest]


def _stop_tokens(model_dir: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's end token and those of generation_config.json, which chat models use for the end of a turn."""
    stops: set[int] = set()
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    if (model_dir / "generation_config.json").exists():
        configured = content(model_dir / "generation_config.json").get("eos_token_id")
        if configured is not None:
            stops.update([configured] if isinstance(configured, int) else configured)
    return frozenset(stops)
