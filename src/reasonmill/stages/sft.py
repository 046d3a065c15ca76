"""Supervised fine-tuning: cross-entropy on the responses of curated conversations (R1 paper: cold start, stage 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Literal, TypeVar

import numpy as np
from pydantic import Field

from reasonmill.algo.losses import LossSettings
from reasonmill.errors import RecipeError
from reasonmill.learn.supervised import supervise
from reasonmill.placement import Largest
from reasonmill.protocols import Renderer
from reasonmill.randomness import generator, key
from reasonmill.recipe.reference import ConversationsRef
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.training import PolicySettings
from reasonmill.store.conversations import CONVERSATIONS_FILE, read_conversations
from reasonmill.types import Conversation, Example, Message, held_out

Row = TypeVar("Row")

MAKES: ArtifactKind = "model"
NEEDS = ("learner",)


class Settings(PolicySettings):
    """Settings of an `sft` stage."""

    kind: Literal["sft"]
    data: list[ConversationsRef] = Field(
        min_length=1, description="datasets of earlier stages, or `[data.NAME]` tables"
    )
    epochs: int = Field(default=2, ge=1, description="times that each conversation is read")
    conversations_per_step: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=512, ge=2, description="longer conversations are left out, and counted")
    turns: Literal["last", "all"] = Field(default="last", description="the assistant's turns that are learned")


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Fine-tunes the model `from` refers to on all conversations of `data`."""
    model_dir = inputs["from"].path
    learner = context.learner(
        model_dir,
        settings.optimizer,
        precision=settings.precision,
        lora=settings.lora,
        recompute=settings.recompute,
        seed=key(context.seed, settings.name),
    )
    rows = context.rows(
        "conversations", settings.data, inputs, lambda made: read_conversations(made / CONVERSATIONS_FILE)
    )
    conversations = [row for row in rows if not held_out(row.split)]
    context.asked().refuse_conversations(settings.name, conversations)
    renderer = context.renderer(model_dir)
    made = [turn_examples(conversation, renderer, settings.turns) for conversation in conversations]
    kept = [examples for examples in made if all(len(each.tokens) <= settings.max_tokens for each in examples)]
    if not kept:
        raise RecipeError(
            f"none of the {len(rows)} conversations has at most {settings.max_tokens} tokens: "
            f"{len(rows) - len(conversations)} are of held-out splits, the others are longer",
            where=f"max_tokens of stage {settings.name!r}",
            fix="raise max_tokens, or look at what the data's stage kept",
        )
    epochs = Epochs(kept, settings.conversations_per_step, (context.seed, settings.name))

    def feed(start: int, stop: int) -> Iterator[list[Example]]:
        for rows in epochs.feed(start, stop):
            yield [example for examples in rows for example in examples]

    def largest() -> Largest:
        text = max(len(each.tokens) for examples in kept for each in examples)
        return Largest(max(settings.tokens_per_batch, text), text, "ce", LossSettings())

    context.rehearse(learner, largest)
    tokens = supervise(context, learner, feed, settings, settings.epochs * epochs.steps_per_epoch)
    metrics = {
        "conversations": len(kept),
        "too_long": len(made) - len(kept),
        "held_out": len(rows) - len(conversations),
        "unknown_split": sum(row.split is None for row in conversations),
        "loss/ce": context.home.ledger.metrics(context.key)[-1]["loss/ce"],
    }
    context.progress.end(metrics)
    return Outcome(learner.save_model, metrics, tokens)


def turn_examples(conversation: Conversation, renderer: Renderer, turns: Literal["last", "all"]) -> list[Example]:
    """What is learned of a conversation: its response, or all turns of the assistant as if each were the last one.

    Turns share an example where the template shows the earlier one to the later one as it was learned. Templates that
    take the thinking out of earlier turns do not: there each turn has an example of its own.
    """
    examples = [ce_example(conversation, renderer)]
    for place in range(len(conversation.messages) - 1, 0, -1) if turns == "all" else ():
        turn = conversation.messages[place]
        if turn.role != "assistant" or not turn.content:
            continue
        earlier = _example(conversation.messages[:place], turn.content, renderer)
        shared, later = len(earlier.tokens), examples[0]
        if np.array_equal(np.asarray(later.tokens)[:shared], np.asarray(earlier.tokens)):
            weights = np.concatenate([np.asarray(earlier.weights), np.asarray(later.weights)[shared:]])
            examples[0] = Example(later.tokens, weights, "ce")
        else:
            examples.insert(0, earlier)
    return examples


def ce_example(conversation: Conversation, renderer: Renderer) -> Example:
    """The conversation in the model's own tokens; only the response, its stop token included, is learned."""
    return _example(conversation.messages, conversation.response, renderer)


def _example(messages: Sequence[Message], said: str, renderer: Renderer) -> Example:
    prompt, response = renderer.render(messages), renderer.response(said)
    weights = np.zeros(len(prompt) + len(response), np.float32)
    weights[len(prompt) :] = 1.0
    return Example(np.asarray(prompt + response, np.int64), weights, "ce")


class Epochs(Generic[Row]):
    """The rows that each step reads: every epoch reads each row once, in an order of its own.

    Args:
        noise: names the draw, for example (seed, stage).
    """

    def __init__(self, rows: Sequence[Row], rows_per_step: int, noise: tuple[int | str, ...]) -> None:
        self.steps_per_epoch = math.ceil(len(rows) / rows_per_step)
        self._rows = rows
        self._rows_per_step = rows_per_step
        self._noise = noise

    def feed(self, start: int, stop: int) -> Iterator[list[Row]]:
        """The rows of each of the steps start to stop - 1."""
        order: list[Row] = []
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if step == start or place == 0:
                order = list(self._rows)
                generator("epoch", *self._noise, epoch).shuffle(order)
            yield order[place * self._rows_per_step : (place + 1) * self._rows_per_step]
