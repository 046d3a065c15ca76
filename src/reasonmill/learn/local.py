"""The learner of one process: forward and backward on packed rows, AdamW, fp32 master weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reasonmill.algo.logprobs import token_logprobs
from reasonmill.algo.losses import LossSettings, token_losses
from reasonmill.algo.packing import Batch
from reasonmill.learn.adamw import AdamW, OptimizerSettings
from reasonmill.model.decoder import Decoder


class LocalLearner:
    """Trains the decoder's own weights, so that a sampler in the same process sees each step without a copy.

    Args:
        temperature: that of the distribution that is scored; the sampler's, for policy gradients.
    """

    def __init__(self, decoder: Decoder, optimizer: OptimizerSettings, *, temperature: float = 1.0) -> None:
        self._decoder = decoder
        self._temperature = temperature
        self._parameters = dict(decoder.network.named_parameters())
        self._optimizer = AdamW(self._parameters, optimizer)

    def forward_backward(self, batch: Batch, loss: LossSettings, denominator: float) -> dict[str, float]:
        """Adds the gradient of sum(weights * token losses) / denominator to the gathered gradients.

        Returns:
            Weighted sums over the batch: "loss", and the loss's statistics by metric name. Non-finite losses leave
            non-finite gradients behind, which `optim_step` refuses.
        """
        batch = batch.to(self._decoder.device)
        losses, statistics = self._token_losses(batch, loss)
        total = (losses * batch.weights).sum() / denominator
        total.backward()
        sums = {name: float((values * batch.weights).sum()) for name, values in statistics.items()}
        return {"loss": float(total.detach()) * denominator, **sums}

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One AdamW step; a gradient that is not finite is dropped and reported as `optim/skipped` 1.0."""
        return self._optimizer.step(learning_rate)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities [N] of the batch's targets under the current weights."""
        return self._policy_logprobs(batch.to(self._decoder.device)).detach()

    def _token_losses(self, batch: Batch, loss: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
        return token_losses(self._policy_logprobs(batch), batch, loss)

    def _policy_logprobs(self, batch: Batch) -> Tensor:
        hidden = self._decoder.hidden(batch.inputs, batch.positions, self._decoder.packed_layout(batch.lengths))
        return token_logprobs(
            hidden,
            self._decoder.head_weight,
            batch.targets,
            temperature=self._temperature,
            softcap=self._decoder.softcap,
        )

    def weights(self) -> dict[str, Tensor]:
        """The decoder's weights by name, not copied."""
        return {name: p.detach() for name, p in self._parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """All that later updates depend on."""
        return self._optimizer.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes a state back; the decoder's weights follow.

        Raises:
            KeyError: the state is of another network.
        """
        self._optimizer.load_state(state)
