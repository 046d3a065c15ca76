"""The reference of the KL term: what the policy was, some steps ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reasonmill.algo.packing import Batch
from reasonmill.learn.local import LocalLearner


class Reference:
    """A frozen copy of the policy, replaced by the policy every `every` steps (R1-Zero: every 400 updates).

    It lends its weights to the learner's network for as long as it scores, so that only the weights exist twice.
    """

    def __init__(self, learner: LocalLearner, every: int) -> None:
        self._learner = learner
        self._every = every
        self._weights = {name: weight.clone() for name, weight in learner.weights().items()}

    def before_step(self, step: int) -> None:
        """Takes the policy's weights if the reference is due to be replaced."""
        if step % self._every == 0:
            for name, weight in self._learner.weights().items():
                self._weights[name].copy_(weight)

    @torch.no_grad()
    def logprobs(self, batches: Sequence[Batch]) -> Tensor:
        """Log-probs of all positions of the batches, joined in order."""
        policy = self._learner.weights()
        self._exchange(policy)
        try:
            return torch.cat([self._learner.logprobs(batch).cpu() for batch in batches])
        finally:
            self._exchange(policy)

    def _exchange(self, policy: Mapping[str, Tensor]) -> None:
        for name, weight in policy.items():
            kept = weight.clone()
            weight.copy_(self._weights[name])
            self._weights[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The reference's weights, named apart from the learner's state."""
        return {f"reference/{name}": weight.clone() for name, weight in self._weights.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(state[f"reference/{name}"])
