"""Peak memory of a stage, from numbers: what each parameter, each token of a row and each token of a sequence takes.

An engine or a learner that needs other amounts says so by other numbers; the sums stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reasonmill.placement import MARGIN, SAMPLING_SHARE, SEQUENCE_REST

Part = Literal["process", "weights", "frozen copies", "optimizer", "gradients", "keys and values", "activations"]
# Of each parameter in fp32: its gradient, AdamW's two moments, and the optimizer step's denominator.
GRADIENT_BYTES, MOMENT_BYTES, DENOMINATOR_BYTES, MASTER_BYTES = 4.0, 8.0, 4.0, 4.0
# Bytes of activations for each token, layer and unit of width in 16 bits, attention scores aside (arXiv 2205.05198,
# equation 2 without its last term); nothing is recomputed but the logits.
ACTIVATION_BYTES = 34
# The least that settings allow for the tokens of a row.
_SHORTEST_ROW = 64


@dataclass(frozen=True)
class Numbers:
    """What a stage's memory is made of; None where a number is not known.

    Attributes:
        parameters: of the model that is worked on.
        weight_bytes: of one weight in use, and of one cached number.
        copied: parameters of the models that are held beside it.
        is_trained: whether there are an optimizer and gradients.
        adapter: parameters of the adapter that these belong to, in fp32; None where all of the model is trained.
        sequences, longest: sequences that are sampled together, and tokens of the longest.
        cached_bytes: keys and values of one token, in all layers.
        sampling_bytes: what each token of a sequence takes while it is sampled, where that is more than its keys and
            values.
        sampling_copies: bytes of copies of weights that are held while it samples.
        row: tokens of one forward pass of training.
        activation_bytes: what the backward pass needs of one token of a row.
        row_bytes: what it needs of a row, however long that is.
        process: bytes that are in use before a model is loaded.
        card: bytes of a GPU that nobody else uses. Its engine takes no more for keys and values than is left of them
            while it samples, lets sequences wait, and gives them back while the learner learns; None where as many
            sequences run as are asked for, and their cache stays.
        spare: tokens for which the engine has memory beside its sequences.
        scores: whether reward models compute while it samples, for which as much stays free as the learner computes
            with.
    """

    parameters: float
    weight_bytes: int
    copied: float = 0.0
    is_trained: bool = False
    adapter: float | None = None
    sequences: int = 0
    longest: int = 0
    cached_bytes: float | None = 0.0
    sampling_bytes: float = 0.0
    sampling_copies: float = 0.0
    row: int = 0
    activation_bytes: float | None = 0.0
    row_bytes: float = 0.0
    process: float = 0.0
    card: float | None = None
    spare: int = 0
    scores: bool = False


@dataclass(frozen=True)
class Peak:
    """The fullest moment of a stage: bytes by what they are for, and what is missing from them."""

    parts: Mapping[Part, float]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def peak(numbers: Numbers) -> Peak:
    """The fullest of three moments: while it samples, in a forward and backward pass, and in the optimizer's step."""
    held: dict[Part, float] = {
        "process": numbers.process,
        "weights": numbers.parameters * numbers.weight_bytes,
        "frozen copies": numbers.copied * numbers.weight_bytes,
    }
    cache = _cache(numbers)
    unknown = ["the cache of keys and values"] if numbers.sequences and numbers.cached_bytes is None else []
    sampling = max(cache, at_a_time(numbers) * numbers.longest * numbers.sampling_bytes)
    copied_too = held["weights"] + numbers.sampling_copies
    moments: list[dict[Part, float]] = [{**held, "weights": copied_too, "keys and values": sampling}]
    if numbers.is_trained:
        held["optimizer"] = _optimizer(numbers)
        moments[0] |= {"optimizer": held["optimizer"]}
        held["gradients"] = _trained(numbers) * GRADIENT_BYTES
        held["keys and values"] = cache if numbers.card is None else 0.0
        unknown += ["activations"] if numbers.activation_bytes is None else []
        moments.append({**held, "activations": _activations(numbers)})
        denominators = _trained(numbers) * DENOMINATOR_BYTES if numbers.card is None else 0.0  # a GPU's step is fused
        moments.append({**held, "optimizer": held["optimizer"] + denominators})
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    return Peak({part: size for part, size in fullest.items() if size}, tuple(unknown))


def at_a_time(numbers: Numbers) -> int:
    """How many sequences are sampled at the same time: as many as there is memory for, one at least."""
    if numbers.card is None or not numbers.cached_bytes or not numbers.longest:
        return numbers.sequences
    fitting = _cache(numbers) / (numbers.cached_bytes * (numbers.longest + SEQUENCE_REST))
    return max(1, min(numbers.sequences, int(fitting)))


def _cache(numbers: Numbers) -> float:
    """Bytes of keys and values: what sequences need, or on a GPU what is left for them."""
    each = numbers.cached_bytes or 0.0
    if numbers.card is None or not numbers.sequences:
        return numbers.sequences * numbers.longest * each
    length = numbers.longest + SEQUENCE_REST
    if numbers.is_trained:
        held = (numbers.parameters + numbers.copied) * numbers.weight_bytes + _optimizer(numbers)
        beside = _trained(numbers) * GRADIENT_BYTES + _activations(numbers) if numbers.scores else 0.0
        left = numbers.card * (1 - MARGIN) - held - beside
    else:
        left = numbers.card * SAMPLING_SHARE
    return max(length * each, min((numbers.sequences * length + numbers.spare) * each, left))


def _trained(numbers: Numbers) -> float:
    """How many parameters have gradients."""
    return numbers.parameters if numbers.adapter is None else numbers.adapter


def _optimizer(numbers: Numbers) -> float:
    """Bytes of moments and master weights."""
    # An adapter's own numbers are no part of the model's, and count as its master weights.
    master = MASTER_BYTES if numbers.adapter is not None or numbers.weight_bytes < MASTER_BYTES else 0.0
    return _trained(numbers) * (MOMENT_BYTES + master)


def _activations(numbers: Numbers) -> float:
    return numbers.row * (numbers.activation_bytes or 0.0) + numbers.row_bytes


def activation_bytes(
    layers: int | None, hidden_size: int | None, weight_bytes: int, *, recompute: bool = False
) -> float | None:
    """Bytes of activations of one token of a row, where none were measured; None where the sizes are not known.

    Args:
        recompute: whether of each layer only what goes into it is kept, and all of one at a time.
    """
    if layers is None or hidden_size is None:
        return None
    kept = 2 * layers + ACTIVATION_BYTES if recompute else ACTIVATION_BYTES * layers
    return kept * hidden_size * weight_bytes / 2


def what_lowers(
    found: Peak, numbers: Numbers, stage: str, available: float, *, has_slots: bool, can_recompute: bool = False
) -> str:
    """What to change where a stage does not fit: the setting of what takes most of the memory that can be spared.

    Args:
        can_recompute: whether the stage's settings say that activations be computed twice, and do not yet.
        has_slots: whether the stage's settings say how many sequences are sampled together.
    """
    over = found.total - available
    movable = {part: size for part, size in found.parts.items() if part != "process"}
    largest = max(movable, key=lambda part: movable[part])
    if largest == "keys and values":
        fitting = int(numbers.sequences * (1 - over / movable[largest]))
        if fitting >= 1 and has_slots and numbers.card is None:
            return f"lower {stage}.sampling.slots to {fitting}, or {stage}.sampling.max_tokens"
        return f"lower {stage}.sampling.max_tokens, or take a smaller model"
    if largest == "activations":
        if can_recompute:
            return f"set {stage}.recompute = true"
        fitting = int(numbers.row * (1 - over / movable[largest]))
        if fitting >= _SHORTEST_ROW:
            return f"lower {stage}.tokens_per_batch to {fitting}; a longer sequence takes a row of its own all the same"
    if numbers.weight_bytes > 2 and found.total - movable.get("weights", 0.0) / 2 <= available:
        return f'set {stage}.precision = "bf16"'
    return "take a smaller model, or a machine with more memory"
