"""The corpus of the tiny world, document by document: any document can be made without making those before it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reasonmill.randomness import generator
from reasonmill.types import Message
from reasonmill.world.general_mix import draw_exchange
from reasonmill.world.talk import telling
from reasonmill.world.traces import TraceHabits, reasoning_document

Kind = Literal["reasoning", "fact", "telling", "small_talk", "request"]
KINDS: tuple[Kind, ...] = ("reasoning", "fact", "telling", "small_talk", "request")
WEIGHTS = (70, 10, 6, 4, 10)
# Half of the plain talk wears the same tags as reasoning does, so that the format is not a mark of arithmetic.
TAGGED_TALK = 0.5


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation of the corpus."""

    kind: Kind
    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """The whole conversation as the tokenizer's chat template renders it."""
        user, assistant = self.messages
        return f"<|user|> {user.content}<|end|><|assistant|>{assistant.content}<|end|>"


def document(seed: int, index: int, habits: TraceHabits) -> Document:
    """Document `index` of the corpus with this seed; it holds no problem or question of a held-out split."""
    rng = generator("corpus", seed, index)
    kind = rng.choices(KINDS, weights=WEIGHTS)[0]
    if kind == "reasoning":
        prompt, response = reasoning_document(rng, habits, seed, index)
    else:
        prompt, said = _talk(rng, kind)
        response = f"<think></think><answer> {said}</answer>" if rng.random() < TAGGED_TALK else f" {said}"
    return Document(kind, (Message("user", prompt), Message("assistant", response)))


def documents(seed: int, start: int, stop: int, habits: TraceHabits) -> Iterator[Document]:
    """Documents `start` to `stop` - 1."""
    return (document(seed, index, habits) for index in range(start, stop))


def _talk(rng: random.Random, kind: Kind) -> tuple[str, str]:
    if kind == "telling":
        return telling(rng)
    made = draw_exchange(rng, kind)
    return made.prompt, made.response
