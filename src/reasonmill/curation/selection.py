"""Samples become conversations or are dropped, each under the first reason that applies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from reasonmill.curation.decontamination import HeldOut
from reasonmill.curation.deduplication import Said, Turns, normalised_said, normalised_turns
from reasonmill.curation.filters import Keep, Sample, SampleFault, ThinkingFault, sample_fault, thinking_fault
from reasonmill.protocols import Rewriting
from reasonmill.transcript import read_transcript
from reasonmill.types import Conversation

JudgeFault = Literal["judged_wrong", "not_judged"]
Surplus = Literal["contaminated", "duplicate", "per_problem", "max_conversations"]
Reason = SampleFault | ThinkingFault | Surplus
REASONS: tuple[Reason, ...] = tuple(
    reason for kind in (SampleFault, ThinkingFault, Surplus) for reason in get_args(kind)
)


@dataclass(frozen=True)
class Counts:
    """What became of all samples; `dropped` has every reason, those that dropped nothing too.

    Raises:
        RuntimeError: the numbers do not add up, so that a sample was lost or counted twice.
    """

    sampled: int
    kept: int
    dropped: Mapping[Reason | JudgeFault, int]

    def __post_init__(self) -> None:
        if self.sampled != self.kept + sum(self.dropped.values()):
            raise RuntimeError(
                f"{self.sampled} samples, but {self.kept} kept and {sum(self.dropped.values())} dropped: {self.dropped}"
            )

    def as_metrics(self) -> dict[str, Any]:
        """The form in which they are stored."""
        return {"sampled": self.sampled, "kept": self.kept, "dropped": dict(self.dropped)}


@dataclass(frozen=True)
class Selection:
    """The rules, in the order in which they are tried: the reasons' order in `REASONS`.

    Correctness and format are asked of the sample as it was drawn. What passes is rewritten, and all other rules are
    about the text that will be trained on: a rewrite may repair what would otherwise be dropped.

    Attributes:
        rewrite: makes the response to train on; it keeps the answer. None leaves responses as they were drawn.
        held_out: what no conversation may overlap, beside what was drawn from a held-out split, which is dropped first.
        max_conversations: how many are kept at most; all if None.
    """

    keep: Keep
    held_out: HeldOut
    rewrite: Rewriting | None = None
    max_conversations: int | None = None

    def select(self, samples: Sequence[Sample]) -> tuple[list[Conversation], Counts]:
        """The conversations that are kept, in the order of their samples: where only some can be, the first ones."""
        kept: list[Conversation] = []
        dropped: Counter[Reason] = Counter()
        seen: set[Said] = set()
        per_problem: Counter[Turns] = Counter()
        for sample in samples:
            reason: Reason | None = sample_fault(sample, self.keep)
            if reason is None:
                conversation = self._conversation(sample)
                turns = normalised_turns(sample.problem.messages)
                reason = self._why_dropped(sample, conversation, seen, per_problem[turns], len(kept))
            if reason is None:
                per_problem[turns] += 1
                kept.append(conversation)
            else:
                dropped[reason] += 1
        return kept, Counts(len(samples), len(kept), {reason: dropped[reason] for reason in REASONS})

    def _conversation(self, sample: Sample) -> Conversation:
        problem, drawn = sample.problem, sample.text
        response = drawn if self.rewrite is None else self.rewrite.rewrite(problem, drawn)
        if response != drawn:
            before, after = read_transcript(drawn), read_transcript(response)
            if after.answer != before.answer or not after.well_formed:
                raise RuntimeError(
                    f"rewriting spoiled a response to problem {problem.id}: {drawn!r} became {response!r}"
                )
        return Conversation(problem.messages + sample.dialogue, response, sample.source, problem.id, problem.split)

    def _why_dropped(
        self, sample: Sample, conversation: Conversation, seen: set[Said], num_of_problem: int, num_kept: int
    ) -> Reason | None:
        fault = thinking_fault(conversation.response, sample, self.keep)
        if fault is not None:
            return fault
        if self.held_out.overlaps(conversation):
            return "contaminated"
        said = normalised_said(conversation)
        if said in seen:
            return "duplicate"
        seen.add(said)
        if self.keep.per_problem is not None and num_of_problem >= self.keep.per_problem:
            return "per_problem"
        if self.max_conversations is not None and num_kept >= self.max_conversations:
            return "max_conversations"
        return None
