"""The learner of on-policy distillation: a teacher scores what the student wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch
from reasonmill.algo.reverse_kl import Head, reverse_kl
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.model.decoder import Decoder


class DistillationLearner(LocalLearner):
    """A learner whose "kl" batches are trained towards a teacher: reverse KL at each position of the batch.

    Args:
        teacher: frozen; it must read the same tokens as the decoder.
        temperature: that of both distributions, the sampler's.
    """

    def __init__(
        self,
        decoder: Decoder,
        teacher: Decoder,
        optimizer: OptimizerSettings,
        *,
        companions: Path | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(decoder, optimizer, companions=companions, temperature=temperature)
        self._teacher = teacher

    def _token_losses(self, batch: Batch, loss: LossSettings) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        if batch.loss != "kl":
            return super()._token_losses(batch, loss)
        divergence = reverse_kl(
            _hidden(self.decoder, batch),
            _head(self.decoder),
            self._teacher_hidden(batch),
            _head(self._teacher),
            temperature=self._temperature,
        )
        return divergence, {"loss/kl": divergence.detach()}, None

    @torch.no_grad()
    def _teacher_hidden(self, batch: Batch) -> Tensor:
        return _hidden(self._teacher, batch)


def _hidden(decoder: Decoder, batch: Batch) -> Tensor:
    return decoder.hidden(batch.inputs, batch.positions, decoder.packed_layout(batch.lengths))


def _head(decoder: Decoder) -> Head:
    return Head(decoder.head_weight, decoder.softcap)
