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
        norm = _norm(list(gradients.values()))
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
        self._num_updates += 1
        names = list(gradients)
        masters = [self._masters[name] for name in names]
        grads = [gradients[name] for name in names]
        if scale < 1.0:
            torch._foreach_mul_(grads, scale)
        first, second = [self._first[n] for n in names], [self._second[n] for n in names]
        if masters and masters[0].device.type == "cuda":
            self._fused_update(masters, grads, first, second, learning_rate)
        else:
            self._plain_update(masters, grads, first, second, learning_rate)
        rounded = [name for name, master in zip(names, masters, strict=True) if self._parameters[name] is not master]
        if rounded:
            torch._foreach_copy_([self._parameters[n] for n in rounded], [self._masters[n] for n in rounded])

    def _plain_update(
        self, masters: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], rate: float
    ) -> None:
        settings = self._settings
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
            torch._foreach_mul_([m for m in masters if _decays(m)], 1 - rate * settings.weight_decay)
        torch._foreach_addcdiv_(masters, first, denominators, -rate / correction1)

    def _fused_update(
        self, masters: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], rate: float
    ) -> None:
        """The same in one pass over all tensors, whose reading and writing is what a GPU waits for."""
        settings = self._settings
        updates = torch.tensor(float(self._num_updates), device=masters[0].device)
        for decays in (True, False):
            chosen = [place for place, master in enumerate(masters) if _decays(master) == decays]
            if not chosen:  # an adapter has matrices only, and the kernel refuses none
                continue
            torch._fused_adamw_(
                [masters[place] for place in chosen],
                [grads[place] for place in chosen],
                [first[place] for place in chosen],
                [second[place] for place in chosen],
                [],
                [updates] * len(chosen),
                lr=rate,
                beta1=settings.beta1,
                beta2=settings.beta2,
                weight_decay=settings.weight_decay if decays else 0.0,
                eps=settings.epsilon,
                amsgrad=False,
                maximize=False,
            )

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


def _norm(gradients: list[Tensor]) -> float:
    """The norm of all gradients together. A GPU is waited for once, not for each of them."""
    if not gradients:
        return 0.0
    norms = torch.stack(torch._foreach_norm(gradients)).double() ** 2
    return math.sqrt(sum(norms.tolist()))


def _decays(master: Tensor) -> bool:
    """Only matrices decay: shrinking norms and biases has no purpose."""
    return master.ndim > 1
