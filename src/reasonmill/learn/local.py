"""The learner of one process: forward and backward on packed rows, AdamW, fp32 master weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reasonmill.activity import beat
from reasonmill.algo.logprobs import token_logprobs
from reasonmill.algo.losses import LossSettings, token_losses
from reasonmill.algo.packing import Batch
from reasonmill.learn.adamw import AdamW, OptimizerSettings
from reasonmill.learn.deterministic import deterministic
from reasonmill.learn.divergence import Gathered
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
        self._gathered = Gathered()

    def forward_backward(self, batch: Batch, loss: LossSettings, denominator: float) -> dict[str, float]:
        """Adds the gradient of sum(weights * token losses) / denominator to the gathered gradients.

        Returns:
            Weighted sums over the batch: "loss", and the loss's statistics by metric name. If something of them was
            not finite, `optim_step` refuses the update that this is a part of.
        """
        beat()
        moved = batch.to(self._decoder.device)
        with deterministic(self._decoder.device):
            losses, statistics, policy_logprobs = self._token_losses(moved, loss)
            total = (losses * moved.weights).sum() / denominator
            total.backward()
        sums = {name: float((values * moved.weights).sum()) for name, values in statistics.items()}
        summed = float(total.detach()) * denominator
        # The batch on the CPU, which needs no copy to be looked at.
        self._gathered.add(
            batch,
            advantages=batch.advantages,
            sampler_logprobs=batch.sampler_logprobs,
            ref_logprobs=batch.ref_logprobs,
            policy_logprobs=policy_logprobs,
            loss=summed,
        )
        return {"loss": summed, **sums}

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """One AdamW step, or none where something of the update was not finite: see `AdamW.step`."""
        return self._gathered.step(self._optimizer, learning_rate)

    @property
    def skipped_batch(self) -> str:
        """Digest of what the last skipped update was made of; empty if none was skipped."""
        return self._gathered.skipped_batch

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities [N] of the batch's targets under the current weights."""
        beat()
        # With the kernels of the forward pass that is differentiated: before an update the two must not differ.
        with deterministic(self._decoder.device):
            return self._policy_logprobs(batch.to(self._decoder.device)).detach()

    def _token_losses(self, batch: Batch, loss: LossSettings) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Loss of each position, its statistics, and the policy's log-probs if the loss was made from them."""
        policy_logprobs = self._policy_logprobs(batch)
        return *token_losses(policy_logprobs, batch, loss), policy_logprobs.detach()

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
