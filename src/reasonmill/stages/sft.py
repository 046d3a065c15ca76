"""Supervised fine-tuning: cross-entropy on the responses of curated conversations (R1 paper: cold start, stage 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Literal, TypeVar

import numpy as np
from pydantic import Field

from reasonmill.errors import RecipeError
from reasonmill.learn.supervised import supervise
from reasonmill.protocols import Renderer
from reasonmill.randomness import generator
from reasonmill.recipe.reference import DatasetRef
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.training import TrainingSettings
from reasonmill.store.conversations import CONVERSATIONS_FILE, read_conversations
from reasonmill.types import Conversation, Example

Row = TypeVar("Row")

MAKES: ArtifactKind = "model"
NEEDS = ("learner",)


class Settings(TrainingSettings):
    """Settings of an `sft` stage."""

    kind: Literal["sft"]
    data: list[DatasetRef] = Field(min_length=1)
    epochs: int = Field(default=2, ge=1, description="times that each conversation is read")
    conversations_per_step: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=512, ge=2, description="longer conversations are left out, and counted")


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Fine-tunes the model `from` refers to on all conversations of `data`."""
    model_dir = inputs["from"].path
    learner = context.learner(model_dir, settings.optimizer, precision=settings.precision)
    paths = [read.path for key, read in inputs.items() if key.startswith("data[")]
    conversations = [row for path in paths for row in read_conversations(path / CONVERSATIONS_FILE)]
    renderer = context.renderer(model_dir)
    all_examples = [ce_example(conversation, renderer) for conversation in conversations]
    examples = [example for example in all_examples if len(example.tokens) <= settings.max_tokens]
    if not examples:
        raise RecipeError(
            f"none of the {len(conversations)} conversations has at most {settings.max_tokens} tokens",
            where=f"max_tokens of stage {settings.name!r}",
            fix="raise max_tokens, or look at what the data's stage kept",
        )
    epochs = Epochs(examples, settings.conversations_per_step, (context.seed, settings.name))
    tokens = supervise(context, learner, epochs.feed, settings, settings.epochs * epochs.steps_per_epoch)
    metrics = {
        "conversations": len(examples),
        "too_long": len(all_examples) - len(examples),
        "loss/ce": context.home.ledger.metrics(context.key)[-1]["loss/ce"],
    }
    context.progress.end(metrics)
    return Outcome(learner.save_model, metrics, tokens)


def ce_example(conversation: Conversation, renderer: Renderer) -> Example:
    """The conversation in the model's own tokens; only the response, its stop token included, is learned."""
    prompt, response = renderer.render(conversation.messages), renderer.response(conversation.response)
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
