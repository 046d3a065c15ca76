"""AdamW (arXiv 1711.05101) on named parameters, with gradient clipping and fp32 master weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reasonmill.learn.settings import OptimizerSettings


class AdamW:
    """Updates parameters in place from the gradients that were gathered on them.

    Parameters in bf16 get fp32 master weights, and hold their rounded values. Their gradients are added up in fp32: in
    bf16 a sum grows no more where what is added is less than half the spacing of numbers of its size, 1/512 of it.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: OptimizerSettings) -> None:
        self._settings = settings
        self._parameters = dict(parameters)
        self._masters = {
            name: p if p.dtype == torch.float32 else p.detach().float().clone() for name, p in self._parameters.items()
        }
        self._first = {name: torch.zeros_like(p, requires_grad=False) for name, p in self._masters.items()}
        self._second = {name: torch.zeros_like(p, requires_grad=False) for name, p in self._masters.items()}
        self._num_updates = 0
        for parameter in self._parameters.values():
            parameter.grad_dtype = torch.float32

    def step(self, learning_rate: float, cause: str | None = None) -> dict[str, float]:
        """One update. A gradient that is not finite is dropped, and so is any for which there is a `cause`.

        Returns:
            The gradient's norm, and whether the update was skipped (`optim/skipped`); nothing of the state has
            changed then, and `skipped/CAUSE` is 1.0.
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        norm = math.sqrt(sum(float(torch.linalg.vector_norm(g).double() ** 2) for g in gradients.values()))
        if cause is None and not math.isfinite(norm):
            cause = "gradient"
        if cause is None:
            self._update(gradients, learning_rate, scale=min(1.0, self._settings.clip_norm / (norm + 1e-6)))
        for parameter in self._parameters.values():
            parameter.grad = None
        metrics = {"optim/grad_norm": norm, "optim/skipped": 0.0, "optim/learning_rate": learning_rate}
        return metrics if cause is None else {**metrics, "optim/skipped": 1.0, f"skipped/{cause}": 1.0}

    @torch.no_grad()
    def _update(self, gradients: Mapping[str, Tensor], learning_rate: float, scale: float) -> None:
        settings = self._settings
        self._num_updates += 1
        names = list(gradients)
        masters = [self._masters[name] for name in names]
        grads = [gradients[name] for name in names]
        torch._foreach_mul_(grads, scale)
        first, second = [self._first[n] for n in names], [self._second[n] for n in names]
        torch._foreach_lerp_(first, grads, 1 - settings.beta1)
        torch._foreach_mul_(second, settings.beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - settings.beta2)
        # Bias corrections of Adam, folded into the step size and the denominator.
        correction1 = 1 - settings.beta1**self._num_updates
        correction2 = 1 - settings.beta2**self._num_updates
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, math.sqrt(correction2))
        torch._foreach_add_(denominators, settings.epsilon)
        if settings.weight_decay:
            # Only matrices decay: shrinking norms and biases has no purpose.
            torch._foreach_mul_([m for m in masters if m.ndim > 1], 1 - learning_rate * settings.weight_decay)
        torch._foreach_addcdiv_(masters, first, denominators, -learning_rate / correction1)
        for name, master in zip(names, masters, strict=True):
            if self._parameters[name] is not master:
                self._parameters[name].copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Master weights, both moments and the number of updates: all that later updates depend on, not copied."""
        state = {"updates": torch.tensor(self._num_updates)}
        for part, tensors in (("master", self._masters), ("first", self._first), ("second", self._second)):
            state.update({f"{part}/{name}": tensor.detach() for name, tensor in tensors.items()})
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes a state back; the parameters follow.

        Raises:
            KeyError: the state is of other parameters.
        """
        self._num_updates = int(state["updates"])
        for part, tensors in (("master", self._masters), ("first", self._first), ("second", self._second)):
            for name, tensor in tensors.items():
                tensor.copy_(state[f"{part}/{name}"])
        for name, parameter in self._parameters.items():
            if parameter is not self._masters[name]:
                parameter.copy_(self._masters[name])
