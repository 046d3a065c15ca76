"""The learner of reward models: a loss on the scalars of whole texts, AdamW as for policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from reasonmill.activity import beat
from reasonmill.algo.packing import TextRow
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.learn.trained import TrainedNetwork
from reasonmill.model.reward import RewardModel


class ScalarLearner(TrainedNetwork):
    """Trains a reward model's own weights.

    Args:
        companions: the model directory whose tokenizer a saved model keeps.
    """

    def __init__(self, model: RewardModel, optimizer: OptimizerSettings, *, companions: Path) -> None:
        super().__init__(model.network, optimizer, companions)
        self._model = model

    def forward_backward(
        self, row: TextRow, losses: Callable[[Tensor], Tensor], denominator: float
    ) -> tuple[float, Tensor]:
        """Adds the gradient of sum(losses) / denominator to the gathered gradients.

        Args:
            losses: takes the rewards of the row's texts.

        Returns:
            (sum of the losses, rewards of the row's texts on the CPU). If one of them is not finite, `optim_step`
            refuses the update that this is a part of.
        """
        beat()
        with deterministic(self._model.device):
            rewards = self._model.rewards(row)
            total = losses(rewards).sum() / denominator
            total.backward()
        summed, scores = float(total.detach()) * denominator, rewards.detach().cpu()
        self._gather(row, scores=scores, loss=summed)
        return summed, scores

    @torch.no_grad()
    def rewards(self, row: TextRow) -> Tensor:
        """Rewards [texts of the row] under the current weights."""
        return self._model.rewards(row)
