"""The native backend: samplers and learners of transformers' decoders, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import AutoConfig

from reasonmill.errors import UnsupportedModel
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.scalar import ScalarLearner
from reasonmill.learn.settings import LoraSettings, OptimizerSettings
from reasonmill.model.decoder import Decoder, config_from, load_decoder, new_decoder, working_dtype
from reasonmill.model.lora import Adapter
from reasonmill.model.reward import new_reward_model
from reasonmill.placement import SLOTS, Largest, Placement, Precision
from reasonmill.protocols import Learner, MemoryNeed, Preference, Renderer, RewardLearner, Sampler, Scorer, View
from reasonmill.render import renderer_for
from reasonmill.rewards.judge import Judge, JudgeSettings
from reasonmill.rewards.model import ModelScorer
from reasonmill.sample.engines import engine_of
from reasonmill.sample.http import ConversationRenderer, HttpSampler
from reasonmill.sample.sampler import EngineSampler
from reasonmill.servers.client import Replies
from reasonmill.servers.settings import TeacherSettings


class _Where(TypedDict):
    """On which device a network computes, and in which type."""

    device: str
    dtype: torch.dtype


class NativeBackend:
    """Makes what computes on one device. A learner and its sampler share the weights.

    Args:
        trust_remote_code: whether code that comes with models and their tokenizers may run.

    Raises:
        UnsupportedModel: the placement has several devices.
    """

    def __init__(self, placement: Placement, *, trust_remote_code: bool = False) -> None:
        if placement.count != 1:
            raise UnsupportedModel(
                f"the native backend computes on one device, and not on {placement.count}", fix="use a count of 1"
            )
        self.placement = placement
        self._trusts = trust_remote_code

    def sampler(
        self,
        model: Path | Learner | TeacherSettings,
        *,
        slots: int = SLOTS,
        precision: Precision = "auto",
        replies: Replies | None = None,
    ) -> Sampler:
        """See `Backend`; the precision of a learner's sampler is the learner's.

        Raises:
            UnsupportedModel: the learner is not one of this backend, or its model has no tokenizer.
        """
        if isinstance(model, TeacherSettings):
            return HttpSampler(model, replies)
        if isinstance(model, Path):
            decoder, renderer = self._decoder(model, precision), self.renderer(model)
        elif isinstance(model, LocalLearner) and model.companions is not None:
            decoder, renderer = model.decoder, self.renderer(model.companions)
        else:
            raise UnsupportedModel(f"nothing can be sampled from a {type(model).__name__} without a tokenizer")
        return EngineSampler(engine_of(decoder, renderer, num_slots=slots))

    def renderer(self, model: Path | TeacherSettings) -> Renderer:
        if isinstance(model, TeacherSettings):
            return ConversationRenderer()
        return renderer_for(model, trust_remote_code=self._trusts)

    def positions(self, model: Path | TeacherSettings) -> int | None:
        """See `Backend`; a server does not say it."""
        if isinstance(model, TeacherSettings):
            return None
        config = AutoConfig.from_pretrained(model, trust_remote_code=self._trusts)
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def learner(
        self,
        model: Path,
        optimizer: OptimizerSettings,
        *,
        precision: Precision = "auto",
        temperature: float = 1.0,
        teacher: Path | None = None,
        lora: LoraSettings | None = None,
        recompute: bool = False,
        seed: int = 0,
    ) -> Learner:
        decoder = self._decoder(model, precision)
        adapter = None if lora is None else Adapter(decoder.network, lora.rank, lora.alpha, lora.targets, seed)
        return LocalLearner(
            decoder,
            optimizer,
            companions=model,
            temperature=temperature,
            teacher=None if teacher is None else self._decoder(teacher, precision),
            recompute=recompute,
            adapter=adapter,
        )

    def new_learner(
        self,
        model_type: str,
        config: dict[str, Any],
        optimizer: OptimizerSettings,
        *,
        seed: int,
        precision: Precision = "auto",
    ) -> Learner:
        decoder = new_decoder(config_from(model_type, config), seed=seed, **self._where(precision))
        return LocalLearner(decoder, optimizer)

    def rehearse(self, learner: Learner, largest: Largest, sampler: Sampler | None, tokens: int | None) -> int:
        """See `Backend`; on a CPU nothing is done."""
        if self.placement.device == "cpu" or not isinstance(learner, LocalLearner):
            return 0
        learning, kept = learner.rehearse(largest)
        if not isinstance(sampler, EngineSampler):
            return 0
        # What reward models take was not rehearsed: it is less than what learning takes.
        beside = learning if largest.scores else kept
        need = MemoryNeed(largest.sequences, largest.longest, largest.prompt, beside, learning, tokens)
        return sampler.reserve(need)

    def reward_learner(
        self, policy: Path, optimizer: OptimizerSettings, *, view: View, precision: Precision = "auto"
    ) -> RewardLearner:
        stop_tokens = self.renderer(policy).stop_tokens
        where = self._where(precision)
        model = new_reward_model(policy, view=view, stop_tokens=stop_tokens, trust_remote_code=self._trusts, **where)
        return ScalarLearner(model, optimizer, companions=policy)

    def scorer(
        self, model: Path, preference: Preference, *, tokens_per_batch: int, precision: Precision = "auto"
    ) -> Scorer:
        return ModelScorer(model, preference, tokens_per_batch=tokens_per_batch, **self._where(precision))

    def judge(self, settings: JudgeSettings, *, replies: Replies | None = None) -> Judge:
        return Judge(settings, replies)

    def _decoder(self, model: Path, precision: Precision) -> Decoder:
        return load_decoder(model, trust_remote_code=self._trusts, **self._where(precision))

    def _where(self, precision: Precision) -> _Where:
        return {"device": self.placement.device, "dtype": working_dtype(precision, self.placement.device)}
