"""What a step's rollouts are like under the learner, before its first update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from reasonmill.algo.correction import mismatch
from reasonmill.algo.packing import Batch, pack, unpack
from reasonmill.errors import SamplerMismatch
from reasonmill.protocols import Learner
from reasonmill.randomness import Part, generator
from reasonmill.types import Example

# Where nothing else needs the learner's log-probs, the mismatch is measured on a batch's tokens divided by this: a
# thousand of them show wrong weights as well as eight thousand do, which take a twentieth of a step on a CPU.
_MEASURED = 8


def scored(
    parts: Sequence[Sequence[Example]],
    name: Literal["old_logprobs", "ref_logprobs"],
    score: Callable[[Sequence[Batch]], Tensor],
    tokens_per_batch: int,
) -> list[list[Example]]:
    """The examples of mini-batches with log-probs as `name`.

    They are scored in the very batches that they are trained in, because in bf16 other batches give other log-probs:
    before the first update, the policy's are exactly those that the learner gave here.

    Args:
        score: gives the log-probs of all positions of batches, joined in order.
    """
    packed = [pack(part, tokens_per_batch) for part in parts]
    if not any(packed):
        return [list(part) for part in parts]
    values = score([batch for batches in packed for batch in batches])
    sizes = [sum(batch.num_tokens for batch in batches) for batches in packed]
    found = []
    for part, batches, own in zip(parts, packed, values.split(sizes), strict=True):
        fields: list[dict[str, Any]] = [{name: row} for row in unpack(own, batches, part)]
        found.append([replace(example, **field) for example, field in zip(part, fields, strict=True)])
    return found


def with_old_logprobs(
    learner: Learner,
    parts: Sequence[Sequence[Example]],
    *,
    as_drawn: bool,
    step: int,
    bound: float,
    tokens_per_batch: int,
    noise: tuple[Part, ...],
) -> tuple[list[list[Example]], dict[str, float]]:
    """The examples of mini-batches with the log-probs that ratios are against, and how far the learner's are from the
    sampler's; nothing is measured where there are none.

    Args:
        as_drawn: whether ratios are against the sampler's log-probs. Only some examples are scored then, to measure the
            mismatch.
        bound: the mean difference of log-probs, in nats, that ends the run.
        noise: names the draw of these examples.

    Raises:
        SamplerMismatch: learner and sampler are further apart.
    """

    def now(batches: Sequence[Batch]) -> Tensor:
        return torch.cat([learner.logprobs(batch).cpu() for batch in batches])

    everything = [example for part in parts for example in part]
    looked_at = [_some(everything, tokens_per_batch // _MEASURED, noise)] if as_drawn else parts
    with_old = scored(looked_at, "old_logprobs", now, tokens_per_batch)
    measured = mismatch([example for part in with_old for example in part]) if everything else {}
    refuse_mismatch(measured, step, bound)
    return [list(part) for part in parts] if as_drawn else with_old, measured


def refuse_mismatch(measured: Mapping[str, float], step: int, bound: float) -> None:
    """Checks a mismatch that was measured. What is not finite is left to what skips updates.

    Raises:
        SamplerMismatch: it is above the bound.
    """
    mean = measured.get("mismatch/mean", 0.0)
    if math.isfinite(mean) and mean > bound:
        raise SamplerMismatch(
            f"learner and sampler differ by {mean:.3g} nats a token on what was sampled in step "
            f"{step}, and at most by {measured['mismatch/max']:.3g}; {bound:.3g} are allowed on average",
            fix="compute in fp32, or find what the two do differently: temperature, precision, other weights; if the "
            'difference is meant, set old_policy = "learner" and loss.correction, and raise max_mismatch',
        )


def _some(examples: Sequence[Example], tokens: int, noise: tuple[Part, ...]) -> list[Example]:
    """Examples that were drawn, as many as have so many tokens, and at least one."""
    chosen: list[Example] = []
    for example in generator("mismatch", *noise).sample(list(examples), len(examples)):
        tokens -= len(example.tokens)
        if chosen and tokens < 0:
            break
        chosen.append(example)
    return chosen
