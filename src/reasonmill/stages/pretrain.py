"""Pretraining: a decoder with random weights learns the tiny world's corpus by next-token prediction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerFast

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.algo.schedules import Schedule
from reasonmill.learn.checkpoints import Checkpoints
from reasonmill.learn.divergence import DivergenceGuard
from reasonmill.learn.local import LocalLearner, OptimizerSettings
from reasonmill.model.decoder import config_from, new_decoder, working_dtype
from reasonmill.model.saving import save_decoder
from reasonmill.randomness import key
from reasonmill.stages.context import Input, Outcome, StageContext, StageSettings
from reasonmill.types import Example
from reasonmill.world.blocks import EncodedBlocks
from reasonmill.world.corpus import documents
from reasonmill.world.tokenizer import TAGS, train_tokenizer
from reasonmill.world.traces import TraceHabits

KIND = "pretrain"


class TokenizerSettings(BaseModel):
    """The byte-level BPE that the stage learns first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(default=768, ge=300)
    sample_documents: int = Field(default=20_000, ge=1)


class Settings(StageSettings):
    """Settings of a `pretrain` stage."""

    kind: Literal["pretrain"]
    model_type: str = Field(description="transformers' name of the architecture")
    model: dict[str, Any] = Field(description="the architecture's config; vocab_size comes from the tokenizer")
    tokenizer: TokenizerSettings = TokenizerSettings()
    habits: TraceHabits = TraceHabits()
    steps: int = Field(ge=1)
    documents_per_step: int = Field(default=4096, ge=1)
    tokens_per_batch: int = Field(default=32_768, ge=256, description="positions of one forward pass")
    schedule: Schedule
    optimizer: OptimizerSettings = OptimizerSettings(weight_decay=0.1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    state_every: int = Field(default=100, ge=1, description="steps between saved states")


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains tokenizer and decoder on documents 0, 1, 2, ... of the corpus with the recipe's seed."""
    tokenizer = _tokenizer(settings, context.seed)
    config = config_from(
        settings.model_type,
        {
            **settings.model,
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    decoder = new_decoder(
        config,
        seed=key("weights", context.seed),
        device=context.device,
        dtype=working_dtype(settings.precision, context.device),
    )
    learner = LocalLearner(decoder, settings.optimizer)
    tokens = _train(settings, context, learner, tokenizer)

    def write(target: Path) -> None:
        with TemporaryDirectory() as companions:
            tokenizer.save_pretrained(companions)
            save_decoder(decoder, target, companions=Path(companions))

    parameters = sum(p.numel() for p in decoder.network.parameters())
    metrics = {"parameters": parameters, "loss/ce": context.home.ledger.metrics(context.key)[-1]["loss/ce"]}
    context.progress.end(metrics)
    return Outcome("model", write, metrics, tokens)


def _train(settings: Settings, context: StageContext, learner: LocalLearner, tokenizer: PreTrainedTokenizerFast) -> int:
    """Runs all steps that the ledger has no state for; returns the tokens that were trained on, resumed ones too."""
    checkpoints = Checkpoints(context, settings.state_every)
    start = checkpoints.resume(learner.load_state)
    guard = DivergenceGuard()
    ledger = context.home.ledger
    context.progress.begin(settings.name, settings.steps, "steps")
    blocks = EncodedBlocks(
        tokenizer.backend_tokenizer.to_str(), context.seed, settings.habits, settings.documents_per_step
    )
    for step, rows in enumerate(blocks.read(start, settings.steps), start=start):
        checkpoints.before_step(step, settings.steps, learner.state)
        weights = np.ones(max(map(len, rows)), np.float32)
        weights[0] = 0.0
        examples = [Example(row, weights[: len(row)], "ce") for row in rows]
        batches = pack(examples, settings.tokens_per_batch)
        count = sum(batch.num_tokens for batch in batches)
        sums = [learner.forward_backward(batch, LossSettings(), count) for batch in batches]
        updated = learner.optim_step(settings.schedule.at(step, settings.steps))
        guard.check(step, updated)
        metrics = {"loss/ce": math.fsum(s["loss"] for s in sums) / count, "tokens": float(count), **updated}
        ledger.record_metrics(context.key, step, metrics)
        context.progress.advance(step + 1, metrics)
    return int(sum(entry["tokens"] for entry in ledger.metrics(context.key)))


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
