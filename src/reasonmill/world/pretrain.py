"""Pretraining: a decoder with random weights learns the tiny world's corpus by next-token prediction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerFast

from reasonmill.algo.losses import LossSettings
from reasonmill.learn.settings import LearningSettings, OptimizerSettings
from reasonmill.learn.supervised import Feed, supervise
from reasonmill.placement import Largest
from reasonmill.randomness import key
from reasonmill.settings import INCIDENTAL
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.transcript import TAGS
from reasonmill.types import Example
from reasonmill.world.blocks import EncodedBlocks
from reasonmill.world.corpus import documents
from reasonmill.world.tokenizer import save_tokenizer, train_tokenizer
from reasonmill.world.traces import TraceHabits

MAKES: ArtifactKind = "model"
NEEDS = ("learner",)

_TEXT = 128  # tokens of a document, at most for most of them


class TokenizerSettings(BaseModel):
    """The byte-level BPE that the stage learns first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(default=896, ge=300)
    sample_documents: int = Field(default=20_000, ge=1)


class Settings(LearningSettings):
    """Settings of a `pretrain` stage."""

    kind: Literal["pretrain"]
    model_type: str = Field(description="transformers' name of the architecture")
    model: dict[str, Any] = Field(description="the architecture's config; vocab_size comes from the tokenizer")
    tokenizer: TokenizerSettings = TokenizerSettings()
    habits: TraceHabits = TraceHabits()
    steps: int = Field(ge=1)
    documents_per_step: int = Field(default=4096, ge=1)
    tokens_per_batch: int = Field(default=32_768, ge=256, description="positions of one forward pass")
    optimizer: OptimizerSettings = OptimizerSettings(weight_decay=0.1)
    state_every: Annotated[int, INCIDENTAL] = Field(default=100, ge=1, description="steps between saved states")

    def against_more_steps(self) -> str | None:
        """The schedule's reason."""
        return self.schedule.against_more_steps()


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains tokenizer and decoder on documents 0, 1, 2, ... of the corpus with the recipe's seed."""
    tokenizer = _tokenizer(settings, context.seed)
    learner = context.new_learner(
        settings.model_type,
        {
            **settings.model,
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        settings.optimizer,
        seed=key("weights", context.seed),
        precision=settings.precision,
    )
    # Documents are short; how many of them share a row takes no memory.
    context.rehearse(learner, lambda: Largest(settings.tokens_per_batch, _TEXT, "ce", LossSettings()))
    tokens = supervise(context, learner, _feed(settings, context.seed, tokenizer), settings, settings.steps)

    def write(target: Path) -> None:
        save_tokenizer(tokenizer, target)
        learner.save_model(target)

    ledger = context.home.ledger
    metrics = {"parameters": learner.num_parameters, "loss/ce": ledger.metrics(context.key)[-1]["loss/ce"]}
    context.progress.end(metrics)
    return Outcome(write, metrics, tokens)


def _feed(settings: Settings, seed: int, tokenizer: PreTrainedTokenizerFast) -> Feed:
    """The corpus, step by step: every token is learned but a document's first, which nothing predicts."""
    blocks = EncodedBlocks(tokenizer.backend_tokenizer.to_str(), seed, settings.habits, settings.documents_per_step)

    def feed(start: int, stop: int) -> Iterator[Sequence[Example]]:
        for rows in blocks.read(start, stop):
            weights = np.ones(max(map(len, rows)), np.float32)
            weights[0] = 0.0
            yield [Example(row, weights[: len(row)], "ce") for row in rows]

    return feed


def _tokenizer(settings: Settings, seed: int) -> PreTrainedTokenizerFast:
    tags = re.compile("|".join(map(re.escape, TAGS)))
    sample = documents(seed, 0, settings.tokenizer.sample_documents, settings.habits)
    texts = (
        piece
        for document in sample
        for message in document.messages
        for piece in tags.split(message.content if message.role == "assistant" else f" {message.content}")
        if piece
    )
    return train_tokenizer(texts, settings.tokenizer.vocab_size)
