"""Renderers: messages to tokens and back, with the tokenizer that belongs to the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from reasonmill.errors import UnsupportedModel
from reasonmill.model.tokenizer import ModelTokenizer, model_tokenizer
from reasonmill.protocols import Renderer
from reasonmill.templates import R1_ZERO_PREAMBLE
from reasonmill.transcript import THINK_CLOSE, THINK_OPEN, with_opening
from reasonmill.types import Message

# A turn of the assistant that stands for whatever was sampled; with line ends where templates that take thinking out
# of a turn and put it back in would add them.
_TURN = f"{THINK_OPEN}\nthought\n{THINK_CLOSE}\n\nsaid"


class _TokenizerText(ABC):
    """What both renderers do alike: turns of the assistant to tokens and back."""

    def __init__(self, tokenizer: ModelTokenizer, where: str) -> None:
        self.stop_tokens = tokenizer.stop_tokens
        self.stop_strings = tokenizer.stop_strings
        self.opening = tokenizer.opening
        self._of_model = tokenizer
        self._tokenizer = tokenizer.plain
        self._where = where

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.render_all([messages])[0]

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        asked = [
            ([message.content for message in messages], partial(self._shown, messages)) for messages in conversations
        ]
        return [(*self._before(), *tokens) for tokens in self._of_model.all_shown(asked)]

    def text(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self.stop_tokens]
        decoded: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return self.opening + decoded

    def response(self, text: str) -> tuple[int, ...]:
        return (*self._of_model.text(self._behind_opening(text)), self._of_model.end_of_turn)

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(tokens) for tokens in self._of_model.read(texts)]

    def _before(self) -> tuple[int, ...]:
        """Tokens before those of a prompt's text."""
        return ()

    @abstractmethod
    def _shown(self, messages: Sequence[Message], contents: Sequence[str]) -> str:
        """The text of a prompt, with the contents in place of the messages' own."""

    def _behind_opening(self, text: str) -> str:
        """What is left to say of a turn where the prompt has opened its thinking."""
        if not self.opening:
            return text
        if text.startswith(self.opening):
            return text[len(self.opening) :]
        if with_opening(text).lstrip().startswith(THINK_OPEN):
            return text.lstrip().removeprefix(THINK_OPEN)
        # A turn without thinking closes what was opened, with the blanks that the template has behind the tag.
        gap = self.opening.removeprefix(THINK_OPEN)
        gap = "" if gap.strip() else gap
        return f"{gap}{THINK_CLOSE}{gap}{gap}{text}"


class ChatRenderer(_TokenizerText):
    """The chat template that comes with the model."""

    def _shown(self, messages: Sequence[Message], contents: Sequence[str]) -> str:
        turns = _turns(messages, contents)
        text = self._of_model.show(turns, goes_on=True)
        # A template for contents in parts, as those of models that see are, finds none in a text. Of the assistant's
        # earlier turns templates leave out the thinking.
        silent = [role for role, said in turns if role != "assistant" and not _has_any(text, said.split())]
        if silent:
            raise UnsupportedModel(
                f"the model's chat template leaves out what is said by: {', '.join(silent)}",
                fix="leave out the role that it does not know, or correct the template: contents are texts",
                where=self._where,
            )
        return text

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        # The difference of two conversations as text: one that ends with a turn of the assistant, and the same with the
        # messages behind it. A mark that ends a turn is a token of its own, so that text can be cut behind it.
        before = (("user", "question"), ("assistant", _TURN))

        def replied(contents: Sequence[str]) -> str:
            return self._of_model.show([*before, *_turns(messages, contents)], goes_on=True)

        contents = [message.content for message in messages]
        try:
            ended = self._of_model.show(before, goes_on=False)
            whole = replied(contents)
            blanks = [replied([*contents[:i], "", *contents[i + 1 :]]) for i, content in enumerate(contents) if content]
        except UnsupportedModel as error:
            raise self._refused(f"says: {error.__cause__}") from error
        if ended.count(_TURN) != 1 or not whole.startswith(ended):
            raise self._refused("shows earlier turns differently from how they were said, for example without thinking")
        if whole in blanks:
            roles = " or ".join(sorted({message.role for message in messages}))
            raise self._refused(f"does not show what {roles} says")
        behind = self._behind_stop(ended.partition(_TURN)[2])
        return tuple(self._of_model.shown(contents, lambda contents: behind + replied(contents)[len(ended) :]))

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

    def _before(self) -> tuple[int, ...]:
        # Of what the tokenizer adds, what stands before a text alone: behind an end token nothing is left to say.
        return self._of_model.prefix

    def _shown(self, messages: Sequence[Message], contents: Sequence[str]) -> str:
        return f"{R1_ZERO_PREAMBLE}{_asked(contents)}"

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        # As the chat template of this name continues longer conversations.
        return tuple(self._of_model.shown([message.content for message in messages], _asked))


def renderer_for(model_dir: Path, *, trust_remote_code: bool = False) -> Renderer:
    """The renderer of a model directory: its chat template where it has one, else R1-Zero's plain template.

    Args:
        trust_remote_code: whether code that comes with the tokenizer may run.

    Raises:
        UnsupportedModel: the directory holds no tokenizer, or one that never ends a text.
    """
    tokenizer = model_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    return (ChatRenderer if tokenizer.plain.chat_template else PlainRenderer)(tokenizer, str(model_dir))


def _turns(messages: Sequence[Message], contents: Sequence[str]) -> list[tuple[str, str]]:
    return [(message.role, content) for message, content in zip(messages, contents, strict=True)]


def _has_any(text: str, words: Sequence[str]) -> bool:
    """Whether a text has one of the words; True of no words."""
    return not words or any(word in text for word in words)


def _asked(contents: Sequence[str]) -> str:
    question = "\n".join(contents)
    return f" User: {question}. Assistant:"
