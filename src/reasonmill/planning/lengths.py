"""How long the responses of a stage will be: as in a past run of it, or as measured, and longer as a policy learns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reasonmill.mill.workload import LIKELY, Guess
from reasonmill.planning.probes import Sampled
from reasonmill.recipe.graph import Node
from reasonmill.settings import decisive
from reasonmill.store.ledger import Ledger, StageRecord
from reasonmill.types import content_digest

# A policy's responses grow by this share of their limit in a step of RL, up to that share: r1-zero-tiny's went from 0.1
# to 0.4 in 24 steps, and R1-Zero's ended at 0.4 (14k of 32k).
GROWTH, GROWN = 0.0125, 0.4
_ON_POLICY = ("rl", "distill")


@dataclass(frozen=True)
class Lengths:
    """Responses of a stage.

    Attributes:
        mean: tokens, on average.
        source: where that comes from.
    """

    mean: float
    source: str


def taught_steps(nodes: Sequence[Node], finished: Collection[str]) -> dict[str, int]:
    """How many steps of RL lie behind what each stage begins with, through models and data that are still to be made.

    Args:
        finished: the stages whose models can be measured themselves.
    """
    behind: dict[str, int] = {}
    ends: dict[str, int] = {}
    for node in nodes:
        name = node.settings.name
        behind[name] = max((ends[source] for source in node.stage_inputs), default=0)
        own = getattr(node.settings, "steps", 0) if node.settings.kind in _ON_POLICY else 0
        ends[name] = 0 if name in finished else behind[name] + own
    return behind


def expected_length(node: Node, measured: Sampled | None, behind: int, ledger: Ledger | None, run: str) -> Lengths:
    """How long the responses of a stage that samples will be.

    Args:
        measured: the first model's responses to the stage's problems.
        behind: as of `taught_steps`, since that model.
        run: the recipe's name.
    """
    settings: Any = node.settings
    limit: int = settings.sampling.max_tokens
    past = None if ledger is None else _past(settings, ledger, run)
    if past is not None:
        return Lengths(min(past, limit), "a past run")
    if measured is None or measured.response is None:
        return Lengths(LIKELY.response(limit), "an assumption")
    steps = range(settings.steps) if settings.kind in _ON_POLICY else range(1)
    start = measured.response / limit
    shares = [max(start, min(GROWN, start + GROWTH * (behind + step))) for step in steps]
    return Lengths(limit * sum(shares) / len(shares), "measured")


def guess_of(lengths: Lengths, limit: int, prompt: float | None) -> Guess:
    """The guess under which a stage's work is counted."""
    found = replace(LIKELY, response_share=lengths.mean / limit)
    return found if prompt is None else replace(found, prompt_tokens=prompt)


def _past(settings: Any, ledger: Ledger, run: str) -> float | None:
    """The mean response of the latest finished stage of this run, name and kind; None where there is none."""
    records = [r for r in ledger.stages() if (r.run, r.name, r.kind) == (run, settings.name, settings.kind)]
    for record in reversed(records):
        if settings.kind in _ON_POLICY:
            rows = ledger.metrics(record.log_key)[: settings.steps]
            lengths = [row["length/response"] for row in rows if "length/response" in row]
            if lengths:
                return float(sum(lengths) / len(lengths))
        elif _is_of(record, settings):
            return float(record.tokens / (sum(settings.tasks.values()) * settings.samples))
    return None


def _is_of(record: StageRecord, settings: Any) -> bool:
    """Whether a stage had the same settings."""
    return record.artifact.config_digest == content_digest(decisive(settings))
