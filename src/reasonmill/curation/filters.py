"""What makes a sample worth learning from: correctness, format and readable thinking (R1 paper, cold start)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reasonmill.settings import Real
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import read_transcript, with_opening
from reasonmill.types import Completion, ConversationSource, Grade, Message, Problem, held_out

SampleFault = Literal["held_out", "ungraded", "incorrect", "malformed"]
ThinkingFault = Literal["too_short", "too_long", "repetitive", "unknown_language", "mixed_language"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One attempt at a problem that may become a conversation of a dataset.

    The rules are about the last turn; `dialogue` is what was said between the problem and that turn.
    """

    problem: Problem
    completion: Completion
    grade: Grade
    task: NamedTask
    dialogue: tuple[Message, ...] = ()

    @property
    def text(self) -> str:
        """What was said, with the tag that opens its thinking where the prompt of a model behind a server had that."""
        return self.completion.text if self.completion.logprobs is not None else with_opening(self.completion.text)

    @property
    def source(self) -> ConversationSource:
        """What kind of data it would be."""
        return "reasoning" if self.task.domain == "reasoning" else "general"


class Keep(BaseModel):
    """Which samples are kept. Lengths are in words: what white space separates, numbers and operators too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    correct: bool = Field(default=True, description="only what the task graded with an accuracy of 1")
    well_formed: bool = Field(default=True, description="only ended responses of one thinking and one answer block")
    min_thinking_words: int = Field(default=0, ge=0)
    max_thinking_words: int | None = Field(default=None, ge=1)
    max_repetition: Real = Field(default=1.0, ge=0, le=1, description="share of repeated n-grams within the thinking")
    repetition_words: int = Field(default=8, ge=1, description="words of these n-grams")
    min_language: Real = Field(default=0.0, ge=0, le=1, description="share of words in the prompt's language")
    per_problem: int | None = Field(default=None, ge=1, description="samples kept of each problem; all if unset")

    @model_validator(mode="after")
    def _repetition_counts(self) -> Keep:
        if self.max_repetition == 1 and "repetition_words" in self.model_fields_set:
            raise ValueError("repetition_words has no effect where everything may be repeated; lower max_repetition")
        return self

    @model_validator(mode="after")
    def _can_be_met(self) -> Keep:
        if self.max_thinking_words is not None and self.min_thinking_words > self.max_thinking_words:
            raise ValueError(
                f"no thinking has at least {self.min_thinking_words} and at most {self.max_thinking_words} words"
            )
        return self


def sample_fault(sample: Sample, keep: Keep) -> SampleFault | None:
    """Why the sample as it was drawn is not kept; None if it is fine."""
    if held_out(sample.problem.split):
        return "held_out"
    if sample.grade.reward is None:
        return "ungraded"
    if keep.correct and sample.grade.parts["accuracy"] != 1.0:
        return "incorrect"
    text, finish = sample.text, sample.completion.finish
    if not text or (keep.well_formed and not (finish == "stop" and read_transcript(text).well_formed)):
        return "malformed"  # an empty response teaches nothing, whatever the rules say
    return None


def thinking_fault(response: str, sample: Sample, keep: Keep) -> ThinkingFault | None:
    """Why the thinking of a response is not kept; None if it is fine."""
    thinking = read_transcript(response).thinking
    words = len(thinking.split())
    if words < keep.min_thinking_words:
        return "too_short"
    if keep.max_thinking_words is not None and words > keep.max_thinking_words:
        return "too_long"
    if repetition(thinking, keep.repetition_words) > keep.max_repetition:
        return "repetitive"
    if keep.min_language > 0:
        language = sample.task.language_of(sample.problem)
        if language is None:
            return "unknown_language"
        # Thinking without a word of any language, sums for example, mixes none.
        share = sample.task.language_share(thinking, language)
        if share is not None and share < keep.min_language:
            return "mixed_language"
    return None


def repetition(text: str, num_words: int) -> float:
    """Share of the text's n-grams of words that stood in it before; 0.0 for a text without any n-gram."""
    words = text.lower().split()
    grams = [tuple(words[start : start + num_words]) for start in range(len(words) - num_words + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
