"""The learner of reward models: a loss on the scalars of whole texts, AdamW as for policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from reasonmill.activity import beat
from reasonmill.algo.packing import TextRow
from reasonmill.learn.adamw import AdamW
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.divergence import Gathered
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.learn.state_file import StateFile, write_state
from reasonmill.model.reward import RewardModel, save_reward_model


class ScalarLearner:
    """Trains a reward model's own weights.

    Args:
        companions: the model directory whose tokenizer a saved model keeps.
    """

    def __init__(self, model: RewardModel, optimizer: OptimizerSettings, *, companions: Path) -> None:
        self._model = model
        self._companions = companions
        self._parameters = dict(model.network.named_parameters())
        self._optimizer = AdamW(self._parameters, optimizer)
        self._gathered = Gathered()

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
        self._gathered.add(row, scores=scores, loss=summed)
        return summed, scores

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One AdamW step, or none where something of the update was not finite: see `AdamW.step`."""
        return self._gathered.step(self._optimizer, learning_rate)

    @property
    def skipped_batch(self) -> str:
        """Digest of what the last skipped update was made of; empty if none was skipped."""
        return self._gathered.skipped_batch

    @torch.no_grad()
    def rewards(self, row: TextRow) -> Tensor:
        """Rewards [texts of the row] under the current weights."""
        return self._model.rewards(row)

    def save(self, directory: Path) -> None:
        """Writes all that later updates depend on, tensor by tensor."""
        write_state(directory, self._optimizer.state())

    def load(self, directory: Path) -> None:
        """Takes back what `save` wrote; the model's weights follow.

        Raises:
            KeyError: the state is of another network.
        """
        self._optimizer.load_state(StateFile(directory))

    def save_model(self, directory: Path) -> None:
        """Writes a directory that AutoModelForSequenceClassification loads, the tokenizer alongside."""
        save_reward_model(self._model, directory, companions=self._companions)
