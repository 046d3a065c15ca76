"""The sampler of a foreign teacher: a model behind any OpenAI-compatible server, with a tokenizer of its own.

Requests hold tokens, and nobody here knows the teacher's. So conversations travel as bytes: `ConversationRenderer`
writes a prompt's messages down, and `HttpSampler` reads them again and sends them as messages. Collection then works
as with any other sampler. What comes back is text alone; its completions have no tokens and no log-probs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.protocols import FollowUp
from reasonmill.servers.client import ChatRequest, ChatServer, Replies
from reasonmill.servers.replies import ChatReply, thinking_apart
from reasonmill.servers.settings import TeacherSettings
from reasonmill.transcript import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from reasonmill.types import Completion, Message, Request

if TYPE_CHECKING:
    from torch import Tensor

_END = 256  # the one token that is no byte
# Some servers read seeds as signed numbers of 32 bits.
_SEEDS = 2**31


class ConversationRenderer:
    """The renderer of models whose tokenizer is not here: tokens are bytes of UTF-8, a prompt is a list of messages."""

    stop_tokens = frozenset({_END})
    stop_strings: tuple[str, ...] = ()
    opening = ""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        turns = [[message.role, message.content] for message in messages]
        return tuple(json.dumps(turns, ensure_ascii=False).encode())

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        return [self.render(messages) for messages in conversations]

    def text(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token != _END).decode(errors="replace")

    def response(self, text: str) -> tuple[int, ...]:
        return (*text.encode(), _END)

    def reply(self, messages: Sequence[Message]) -> tuple[int, ...]:
        raise RecipeError(
            "a task with an environment needs the tokens of each turn, which a model behind a server does not give",
            fix="collect this task from a model of the recipe or a directory (`from`), or leave the environment out",
        )

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.encode()) for text in texts]

    def messages(self, tokens: Sequence[int]) -> tuple[Message, ...]:
        """The messages that `render` wrote down.

        Raises:
            ValueError: another renderer made these tokens.
        """
        try:
            return tuple(Message(role, content) for role, content in json.loads(bytes(tokens)))
        except (ValueError, TypeError) as error:
            raise ValueError("these tokens are no conversation: use the renderer of this sampler") from error


class HttpSampler:
    """Draws completions from a teacher behind a server, which may say something else each time.

    Its version is always 0: its weights are not ours to change.

    Args:
        replies: keeps what the server says until it is committed.
    """

    version = 0
    repeatable = False
    in_fp32 = False

    def __init__(self, settings: TeacherSettings, replies: Replies | None = None) -> None:
        self._server = ChatServer(settings, replies)
        self._renderer = ConversationRenderer()
        self._instructions = settings.instructions

    def copied_bytes(self, sequences: int) -> int:
        """None: the weights are elsewhere."""
        return 0

    def rest(self) -> None:
        """Nothing: it holds no memory."""

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yields (index, completion) as the server answers. Prompts must be rendered by `ConversationRenderer`.

        What follows up is asked when all that came before it is answered.

        Raises:
            RecipeError: a request has a top-k, which is no part of OpenAI's interface.
            ServerError: the server can't be reached, or refuses a request.
        """
        waiting = dict(enumerate(requests))
        while waiting:
            indices, asked = list(waiting), [self._asked(request) for request in waiting.values()]
            waiting = {}
            for place, reply in self._server.complete(asked):
                completion = Completion((), None, (), transcript_of(reply), reply.finish, self.version)
                finished = (indices[place], completion)
                (request,) = (None,) if follow_up is None else follow_up([finished])
                if request is None:
                    yield finished
                else:
                    waiting[indices[place]] = request

    def stream(self, request: Request) -> Iterator[int]:
        """Yields the tokens of `ConversationRenderer`, all of them when the server has answered."""
        ((_, completion),) = self.generate([request])
        yield from self._renderer.response(completion.text)

    def take(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """A served model takes no weights.

        Raises:
            UnsupportedModel: always.
        """
        raise UnsupportedModel(
            "a model behind a server can't be trained from here", fix="train a model that reasonmill holds itself"
        )

    def _asked(self, request: Request) -> ChatRequest:
        if request.params.top_k > 0:
            raise RecipeError("an OpenAI-compatible server takes no top_k", fix="leave top_k at 0, or use top_p")
        messages = self._renderer.messages(request.prompt_tokens)
        if self._instructions is not None:
            # In the turn itself, because templates of reasoning models often have no system prompt.
            *before, last = messages
            messages = (*before, Message(last.role, f"{last.content}\n\n{self._instructions}"))
        return ChatRequest(messages, request.params, request.noise_key % _SEEDS)


def transcript_of(reply: ChatReply) -> str:
    """The reply as one text with the tags of R1-Zero's template.

    Reasoning and content become thinking and answer, unless the content has answer tags of its own, wherever the server
    left the reasoning. What was cut off stays open. Other content is taken as it is. Tags that only speak of thinking
    lose their brackets, so that they end nothing.
    """
    apart = thinking_apart(reply)
    if not apart.reasoning and apart.content == reply.content:
        return reply.content
    thinking = f"{THINK_OPEN}{_spoken_of(apart.reasoning)}"
    if not apart.content.strip():
        return thinking if apart.finish == "length" else f"{thinking}{THINK_CLOSE}"
    if ANSWER_OPEN in apart.content:
        return f"{thinking}{THINK_CLOSE}{apart.content}"
    closing = ANSWER_CLOSE if apart.finish == "stop" else ""
    answer = reply.content if apart is reply else apart.content.strip()
    return f"{thinking}{THINK_CLOSE}{ANSWER_OPEN}{_spoken_of(answer)}{closing}"


def _spoken_of(text: str) -> str:
    return text.replace(THINK_OPEN, THINK_OPEN.strip("<>")).replace(THINK_CLOSE, THINK_CLOSE.strip("<>"))
