"""LoRA (arXiv 2106.09685): what is trained is two thin matrices beside each frozen weight, A and B.

A linear layer with them stays a linear layer with its own weight, under its own name: who joins, copies or merges
weights sees no difference. The matrices are in fp32, and are rounded to the type of what they are multiplied with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from reasonmill.errors import UnsupportedModel
from reasonmill.model.adapter_config import WEIGHTS, read_adapter_config, written_config
from reasonmill.model.directory import ADAPTER, listed
from reasonmill.randomness import key

_A, _B = "lora_A", "lora_B"
# What PEFT calls the network that it wraps.
_WRAPPED = "base_model.model."
# In a mixture of experts PEFT takes these names to mean the experts, whose weights are no linear layers, wherever else
# they stand, and would look for other matrices.
_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


class Switch:
    """Whether the layers that share it add what their matrices say."""

    def __init__(self) -> None:
        self.on = True


class LoraLinear(nn.Linear):
    """A linear layer that adds scale * B A x.

    Attributes:
        lora_A, lora_B: [rank, inputs] and [outputs, rank], in fp32.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, switch: Switch, seed: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self._switch = scale, switch
        # As PEFT begins: with B = 0 nothing is added. Drawn on the CPU, whose numbers are the same everywhere.
        drawn = torch.empty(rank, self.in_features)
        nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=torch.Generator().manual_seed(seed))
        self.lora_A = nn.Parameter(drawn.to(self.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=self.weight.device))

    def forward(self, states: Tensor) -> Tensor:
        out = super().forward(states)
        return out + self.added(states) if self._switch.on else out

    def added(self, states: Tensor) -> Tensor:
        """What the matrices add to the layer's output."""
        narrow = F.linear(states, self.lora_A.to(states.dtype))
        return F.linear(narrow, self.lora_B.to(states.dtype)) * self.scale

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight with what the matrices add, rounded once, on the CPU."""
        return _sum(self.weight, self.lora_B, self.lora_A, self.scale).cpu()


def _sum(weight: Tensor, b: Tensor, a: Tensor, scale: float) -> Tensor:
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


class Adapter:
    """The matrices that were added to a network, all whose other parameters are frozen."""

    def __init__(self, network: PreTrainedModel, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        self._network = network
        self._rank, self._alpha = rank, alpha
        self._switch = Switch()
        network.requires_grad_(False)
        self._targets, linears = _targeted(network, targets)
        self._layers: dict[str, LoraLinear] = {}
        for name, linear in linears.items():
            layer = LoraLinear(linear, rank, alpha / rank, self._switch, key("lora", seed, name))
            network.set_submodule(name, layer.train(linear.training))
            self._layers[name] = layer

    @contextmanager
    def off(self) -> Iterator[None]:
        """In the block, the network computes as if it had no adapter."""
        self._switch.on = False
        try:
            yield
        finally:
            self._switch.on = True

    def merged_state(self) -> dict[str, Tensor]:
        """The weights of the network without an adapter that computes the same, by their names."""
        matrices = {f"{name}.{part}" for name in self._layers for part in (_A, _B)}
        state = {name: weight for name, weight in self._network.state_dict().items() if name not in matrices}
        return {**state, **{f"{name}.weight": layer.merged() for name, layer in self._layers.items()}}

    def write(self, directory: Path) -> None:
        """Makes a directory of the adapter in PEFT's format."""
        directory.mkdir()
        config = written_config(self._rank, self._alpha, self._targets)
        (directory / ADAPTER).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {
            f"{_WRAPPED}{name}.{part}.weight": getattr(layer, part).detach().cpu().contiguous()
            for name, layer in self._layers.items()
            for part in (_A, _B)
        }
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def _targeted(network: PreTrainedModel, targets: Sequence[str]) -> tuple[Sequence[str], dict[str, nn.Linear]]:
    """The targets, and the linear layers that they name: by the whole name, or by its last parts, as for PEFT.

    Args:
        targets: none for all linear layers that can have an adapter.

    Raises:
        UnsupportedModel: a target names nothing, or something that can't have one.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    fitting = linears_for_adapters(network)
    targets = targets or sorted({_last(name) for name in fitting})
    named = {target: [name for name in modules if name == target or name.endswith(f".{target}")] for target in targets}
    idle = [target for target, names in named.items() if not names]
    found = [name for name in modules if any(name in names for names in named.values())]
    others = [name for name in found if name not in fitting]
    if idle or others:
        fault = f"no part called {listed(idle)}" if idle else f"{listed(others)}, which no adapter is added to"
        raise UnsupportedModel(
            f"targets of the adapter: {type(network).__name__} has {fault}",
            fix=f"name linear layers of its decoder: {listed({_last(name) for name in fitting}, 10)}",
        )
    return targets, {name: fitting[name] for name in found}


def linears_for_adapters(network: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that can have an adapter, by their names: all but the head."""
    has_experts = any(parameter.ndim == 3 for parameter in network.parameters())
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) is nn.Linear
        and module is not network.get_output_embeddings()
        and not (has_experts and _last(name) in _OF_EXPERTS)
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


@torch.no_grad()
def merge_adapter(network: PreTrainedModel, directory: Path) -> None:
    """Adds an adapter in PEFT's format to the network's weights.

    Raises:
        UnsupportedModel: as of `read_adapter_config`; or its matrices can't be read, are not in pairs, or belong to
            what is no linear layer of the network, or one that shares its weight with another part.
    """
    config = read_adapter_config(directory)
    for name, (a, b) in _pairs(directory).items():
        try:
            module: Any = network.get_submodule(name)
        except AttributeError:
            module = None
        if type(module) is not nn.Linear or module.weight is getattr(network.get_input_embeddings(), "weight", None):
            raise _misfit(directory, f"{name!r} is no linear layer of a {type(network).__name__} with its own weight")
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != module.weight.shape or b.shape[1] != a.shape[0]:
            sizes = f"{list(b.shape)} by {list(a.shape)}, and the weight {list(module.weight.shape)}"
            raise _misfit(directory, f"the matrices of {name!r} are {sizes}")
        module.weight.copy_(_sum(module.weight, b, a, config.scale(name)))


def _pairs(directory: Path) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The matrices A and B of an adapter by the names of their modules."""
    opened: Any = safe_open  # safetensors annotates none of its functions
    found: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    try:
        with opened(directory / WEIGHTS, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no dictionary
                parts = re.fullmatch(rf"{re.escape(_WRAPPED)}(.+)\.({_A}|{_B})\.weight", name)
                if parts is None:
                    unknown.append(name)
                else:
                    found.setdefault(parts[1], {})[parts[2]] = weights.get_tensor(name)
    except SafetensorError as error:
        raise _misfit(directory, f"{WEIGHTS} can't be read: {error}") from error
    unknown += [name for name, parts in found.items() if len(parts) < 2]
    if unknown or not found:
        raise _misfit(directory, f"no pairs of matrices: {listed(unknown)}" if unknown else "it is empty")
    return {name: (parts[_A], parts[_B]) for name, parts in found.items()}


def _misfit(directory: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the adapter does not fit its base: {what}",
        fix="name the model that it was trained on, or merge it with PEFT (merge_and_unload)",
        where=str(directory),
    )
