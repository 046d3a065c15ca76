"""Estimates for --dry-run: how long the stages of a recipe take, and whether they fit into the device's memory.

Time is tokens x operations per token / rate: 2 operations per parameter for a forward pass, 6 with the backward pass
(arXiv 2001.08361, section 2.1); attention itself, loading, grading and the disk are left out. The rates of devices
stand in estimate.toml, with where each comes from.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reasonmill.mill.model_size import ModelSize, sizes_by_stage
from reasonmill.mill.planning import PlannedStage
from reasonmill.mill.space import weight_bytes
from reasonmill.mill.workload import Guess, Workload, workloads
from reasonmill.recipe.graph import Node
from reasonmill.stage import StageSettings

GIGABYTE = 1e9

# Sequences that still run, on average, of those that were started together: short ones are done early.
_RUNNING_SHARE = 0.5
# Bytes of activations for each token, layer and unit of width in 16 bits, attention scores aside (arXiv 2205.05198,
# equation 2 without its last term); nothing is recomputed but the logits.
_ACTIVATION_BYTES = 34


@dataclass(frozen=True)
class Device:
    """Rates of a device class. `bandwidth` None: sampling is bound by operations alone.

    Attributes:
        layer_s: the least time that a layer of a decode step takes, however small it is.
    """

    name: str
    memory_bytes: float
    sampling_flops: float
    training_flops: float
    weight_bytes: int
    bandwidth: float | None = None
    layer_s: float = 0.0


_DEVICES: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def cpu(memory_bytes: float) -> Device:
    """Two cores."""
    return Device(memory_bytes=memory_bytes, **_DEVICES["cpu"])


def gpu(memory_bytes: float = 80 * GIGABYTE) -> Device:
    """One GPU of the H100's class."""
    return Device(memory_bytes=memory_bytes, **_DEVICES["gpu"])


@dataclass(frozen=True)
class Cost:
    """What a stage will take; a field is None where it is not known, and `unknown` says why.

    Attributes:
        memory_bytes: on the device; a lower bound if something is `unknown`.
    """

    tokens: float | None = None
    seconds: float | None = None
    memory_bytes: float | None = None
    unknown: tuple[str, ...] = ()


def estimate(nodes: tuple[Node, ...], planned: Sequence[PlannedStage], device: Device, guess: Guess) -> dict[str, Cost]:
    """An estimate of each stage that is not cached, by its name; of one that resumes, what is left of it.

    Args:
        nodes: the stages of a recipe.
        planned: what `plan` says of them, in the same order.
    """
    sizes = sizes_by_stage(nodes)
    work = workloads(nodes, {stage.name: stage.artifact for stage in planned if stage.artifact is not None}, guess)
    return {
        stage.name: _estimate(node.settings, stage, work[stage.name], sizes[stage.name], device)
        for node, stage in zip(nodes, planned, strict=True)
        if stage.status != "cached"
    }


def total(estimates: Mapping[str, Cost]) -> Cost:
    """The sum of tokens and times and the largest memory; `unknown` lists the stages that are not in the sums."""
    known = [e for e in estimates.values() if e.seconds is not None]
    return Cost(
        sum(e.tokens for e in known if e.tokens is not None),
        sum(e.seconds for e in known if e.seconds is not None),
        max((e.memory_bytes for e in known if e.memory_bytes is not None), default=None),
        tuple(name for name, e in estimates.items() if e.seconds is None),
    )


def _estimate(
    settings: StageSettings,
    stage: PlannedStage,
    work: Workload | None,
    sizes: Mapping[str, ModelSize | None],
    device: Device,
) -> Cost:
    if work is None:
        return Cost(unknown=("how much data it reads",))
    steps: int | None = getattr(settings, "steps", None)
    left = 1 - stage.resumes_at / steps if stage.resumes_at is not None and steps else 1.0
    device = replace(device, weight_bytes=weight_bytes(settings, device.weight_bytes))
    if work.rescored and device.weight_bytes < 4:
        work = replace(work, scored={**work.scored, "from": work.scored["from"] + work.rescored})
    tokens = work.tokens * left
    if not tokens:
        return Cost(tokens, 0.0, 0.0)
    waits = ("how fast the server is",) if work.served else ()
    if work.served == work.tokens:
        return Cost(tokens, memory_bytes=0.0, unknown=waits)
    policy = sizes[""] or sizes.get("from")
    if policy is None:
        return Cost(tokens, unknown=(*waits, "the size of the model"))
    memory, unknown = _memory(work, policy, sizes, device)
    seconds = None if waits else _seconds(work, policy, sizes, device) * left
    return Cost(tokens, seconds, memory, (*waits, *unknown))


def _seconds(work: Workload, policy: ModelSize, sizes: Mapping[str, ModelSize | None], device: Device) -> float:
    operations = 6 * policy.active * work.trained
    operations += sum(2 * (sizes.get(key) or policy).active * tokens for key, tokens in work.scored.items())
    running = max(1.0, _RUNNING_SHARE * work.sequences)
    sampling = work.sampled * _seconds_per_token(policy, running, work.mean_context, device)
    return operations / device.training_flops + sampling


def _seconds_per_token(policy: ModelSize, running: float, context: float, device: Device) -> float:
    """Seconds for each sampled token, `running` sequences of `context` tokens being sampled together."""
    computing = 2 * policy.active / device.sampling_flops
    if device.bandwidth is None:
        return computing
    # Each token of all running sequences reads the weights once, and each sequence its own keys and values.
    weights = policy.parameters * device.weight_bytes / running
    cache = context * (policy.cached_values or 0) * device.weight_bytes
    launching = device.layer_s * (policy.layers or 0) / running
    return max(computing, (weights + cache) / device.bandwidth, launching)


def _memory(
    work: Workload, policy: ModelSize, sizes: Mapping[str, ModelSize | None], device: Device
) -> tuple[float, tuple[str, ...]]:
    """(bytes at the fullest moment, what is missing from them)."""
    width = device.weight_bytes
    held = policy.parameters * width
    unknown = []
    for key in work.copies:
        size = sizes.get(key) or policy
        held += size.parameters * width
    if work.trained:
        # In fp32: gradients, AdamW's two moments, and master weights where the weights are bf16.
        held += policy.parameters * (12 + (4 if width == 2 else 0))
    passing = [0.0]
    if work.sequences:
        if policy.cached_values is None:
            unknown.append("the cache of keys and values")
        passing.append(work.sequences * work.longest * (policy.cached_values or 0) * width)
    if work.row:
        if policy.layers is None or policy.hidden_size is None:
            unknown.append("activations")
        shape = work.row * (policy.layers or 0) * (policy.hidden_size or 0)
        passing.append(shape * _ACTIVATION_BYTES * width / 2)
        # The optimizer step makes an fp32 denominator of each weight.
        passing.append(policy.parameters * 4)
    return held + max(passing), tuple(unknown)
