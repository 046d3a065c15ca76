"""The learner of reward models: a loss on the scalars of whole texts, AdamW as for policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from reasonmill.algo.packing import TextRow
from reasonmill.learn.adamw import AdamW, OptimizerSettings
from reasonmill.model.reward import RewardModel


class ScalarLearner:
    """Trains a reward model's own weights. `state`, `load_state` and `optim_step` are those of a Learner."""

    def __init__(self, model: RewardModel, optimizer: OptimizerSettings) -> None:
        self._model = model
        self._parameters = dict(model.network.named_parameters())
        self._optimizer = AdamW(self._parameters, optimizer)

    def forward_backward(
        self, row: TextRow, losses: Callable[[Tensor], Tensor], denominator: float
    ) -> tuple[float, Tensor]:
        """Adds the gradient of sum(losses) / denominator to the gathered gradients.

        Args:
            losses: takes the rewards of the row's texts.

        Returns:
            (sum of the losses, rewards of the row's texts on the CPU). Non-finite losses leave non-finite gradients
            behind, which `optim_step` refuses.
        """
        rewards = self._model.rewards(row)
        total = losses(rewards).sum() / denominator
        total.backward()
        return float(total.detach()) * denominator, rewards.detach().cpu()

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One AdamW step; a gradient that is not finite is dropped and reported as `optim/skipped` 1.0."""
        return self._optimizer.step(learning_rate)

    def state(self) -> dict[str, Tensor]:
        """All that later updates depend on."""
        return self._optimizer.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes a state back; the model's weights follow.

        Raises:
            KeyError: the state is of another network.
        """
        self._optimizer.load_state(state)
