"""What each stage will take, and all together: seconds, memory, disk and money, from its work and what was measured.

Seconds are work times what a unit of it took; curation, gates and servers are left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from reasonmill.mill.model_size import ModelSize
from reasonmill.mill.workload import Workload
from reasonmill.placement import SEQUENCE_REST
from reasonmill.planning.memory import Numbers, Peak, activation_bytes
from reasonmill.planning.probes import Learned, Sampled

HOUR_S = 3600.0


@dataclass(frozen=True)
class Cost:
    """What a stage will take; a field is None where it is not known, and `unknown` says why.

    Attributes:
        memory_bytes: at the fullest moment; a lower bound if something of it is `unknown`.
        disk_bytes: what it writes to the home.
        money: in the unit of the price.
        fix: what to change where the memory does not suffice.
    """

    tokens: float | None = None
    seconds: float | None = None
    memory_bytes: float | None = None
    disk_bytes: float | None = None
    money: float | None = None
    unknown: tuple[str, ...] = ()
    fix: str = ""


def total(costs: Iterable[Cost]) -> Cost:
    """What runs one after the other: sums, and the largest memory. What is not known is left out of them."""
    known = list(costs)

    def summed(values: Iterable[float | None]) -> float | None:
        given = [value for value in values if value is not None]
        return sum(given) if given else None

    return Cost(
        tokens=summed(cost.tokens for cost in known),
        seconds=summed(cost.seconds for cost in known),
        memory_bytes=max((cost.memory_bytes for cost in known if cost.memory_bytes is not None), default=None),
        disk_bytes=summed(cost.disk_bytes for cost in known),
        money=summed(cost.money for cost in known),
    )


def priced(cost: Cost, price_per_hour: float | None, devices: int) -> Cost:
    """With the money that the stage's device hours cost.

    Args:
        price_per_hour: of one device; None leaves the money out.
    """
    if price_per_hour is None or cost.seconds is None:
        return cost
    return replace(cost, money=cost.seconds / HOUR_S * devices * price_per_hour)


def seconds_of(
    work: Workload,
    sampled: Sampled | None,
    learned: Learned | None,
    policy: ModelSize | None,
    sizes: Mapping[str, ModelSize | None],
) -> float | None:
    """How long a stage takes here; None where a measurement that it needs was not made.

    A model that only scores takes what the policy's learner takes to score, by the share of their parameters.

    Args:
        sizes: of the models that the stage reads, by the key of its settings.
    """
    seconds = 0.0
    if work.sampled:
        if sampled is None:
            return None
        seconds += sampled.load_s + _sampling_s(work, sampled)
    if work.trained or work.scored:
        if learned is None:
            return None
        seconds += learned.load_s + work.trained * learned.trained_s + work.updates * learned.step_s
        for key, tokens in work.scored.items():
            size = sizes.get(key)
            share = size.active / policy.active if size and policy else 1.0
            seconds += tokens * learned.scored_s * share
    return seconds


def _sampling_s(work: Workload, sampled: Sampled) -> float:
    """Seconds of sampling: reading prompts, steps in which sequences get a token each, and these tokens.

    Of each call, the steps are as many as keep all sequences busy, and those of the longest one beyond the mean.
    """
    in_call = work.responses / max(work.calls, 1)
    mean = work.sampled / max(work.responses, 1)
    limit = max(1.0, work.longest - sampled.prompt)
    longest = limit
    if sampled.response and sampled.longest:
        longest = min(limit, mean * sampled.longest / sampled.response)
    steps = work.calls * (in_call * mean / max(1.0, min(work.sequences, in_call)) + max(0.0, longest - mean))
    return work.prompts * sampled.prompt_s + steps * sampled.step_s + work.sampled * sampled.token_s


def numbers_of(
    work: Workload,
    policy: ModelSize,
    sizes: Mapping[str, ModelSize | None],
    weight_bytes: int,
    sampled: Sampled | None,
    learned: Learned | None,
    process: float,
    card: float | None = None,
) -> Numbers:
    """What the stage's memory is made of.

    Args:
        sampled: has what a sampler used, if that was measured.
        learned: has the activations, if they were measured; else they are computed from the sizes.
        process: bytes that are in use before a model is loaded.
        card: bytes of the GPU that nobody else uses, if it runs on one.
    """
    copies = sum((sizes.get(key) or policy).parameters for key in work.copies)
    measured = learned.activation_bytes if learned else None
    cached = policy.cached_values
    return Numbers(
        parameters=policy.parameters,
        adapter=policy.adapter_parameters(work.lora) if work.lora else None,
        weight_bytes=weight_bytes,
        copied=copies,
        is_trained=bool(work.trained),
        sequences=work.sequences,
        longest=work.longest,
        cached_bytes=None if cached is None else float(cached * weight_bytes),
        # An engine on a GPU has its memory before; what it uses beside is of its steps, and not of sequences.
        sampling_bytes=(sampled.slot_bytes or 0.0) if sampled and card is None else 0.0,
        sampling_copies=sampled.copied_bytes if sampled else 0.0,
        row=work.row,
        activation_bytes=measured
        if measured is not None
        else activation_bytes(policy.layers, policy.hidden_size, weight_bytes, recompute=work.recompute),
        row_bytes=learned.row_bytes if learned else 0.0,
        process=process,
        card=card,
        # A sequence as long as the context would still run.
        spare=(policy.context or work.longest) + SEQUENCE_REST if work.trained else 0,
        scores=any(key.startswith("reward_models.") for key in work.copies),
    )


def missing(work: Workload, is_here: bool, found: Peak | None) -> tuple[str, ...]:
    """What is not known of a stage, in words.

    Args:
        is_here: whether there is a model to measure.
        found: its memory; None where the model's size is not known.
    """
    told = ["how fast the server is"] if work.served else []
    if work.sampled or work.trained or work.scored:
        told += [] if is_here else ["how fast its model is, which is not on this machine yet"]
        told += ["the size of its model"] if found is None else found.unknown
    return tuple(told)
