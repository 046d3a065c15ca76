"""Curation: collected samples become a dataset (R1 paper: cold-start data, rejection sampling, the 800k samples)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from reasonmill.curation.decontamination import HeldOut
from reasonmill.curation.filters import Keep, Sample, sample_fault
from reasonmill.curation.selection import Counts, JudgeFault, Reason, Selection
from reasonmill.errors import RecipeError
from reasonmill.plugins.catalogue import ConversationsTable, ProblemCounts, RewritingTable
from reasonmill.protocols import Conversations
from reasonmill.randomness import generator
from reasonmill.recipe.reference import GradedRef
from reasonmill.rewards.judge import Claim, JudgeSettings
from reasonmill.rewards.verdicts import verdicts_on
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.store.conversations import CONVERSATIONS_FILE, write_conversations
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import final_answer
from reasonmill.types import Conversation, held_out

MAKES: ArtifactKind = "dataset"
COUNTS_FILE = "curation.json"
# How many texts that were matched most are among the figures.
SHOWN = 3


class Settings(StageSettings):
    """Settings of a `curate` stage."""

    kind: Literal["curate"]
    data: list[GradedRef] = Field(min_length=1)
    keep: Keep = Keep()
    judge: JudgeSettings | None = Field(
        default=None, description="a model behind a server that must call an answer correct, beside what `keep` asks"
    )
    rewrite: RewritingTable | None = Field(default=None, description="how responses are rewritten; as drawn if unset")
    decontaminate: ProblemCounts = Field(
        default={}, description="evaluation tasks, and how many of their dev and test problems must not be in the data"
    )
    wording: list[str] = Field(
        default=[], description="texts that evaluations put around their questions, which are no contamination"
    )
    max_conversations: int | None = Field(
        default=None, ge=1, description="samples kept at most; what `general` mixes in comes on top"
    )
    general: ConversationsTable | None = Field(default=None, description="non-reasoning data to mix in; none if unset")

    @model_validator(mode="after")
    def _can_rewrite(self) -> Settings:
        if self.rewrite is not None and not self.keep.well_formed:
            raise ValueError("only well-formed responses can be rewritten: leave keep.well_formed at true")
        return self

    @model_validator(mode="after")
    def _wording_has_effect(self) -> Settings:
        if self.wording and not self.decontaminate:
            raise ValueError("wording has no effect without decontaminate; remove it, or name the evaluation tasks")
        return self


def check_read_tasks(settings: Settings, tasks: Sequence[NamedTask]) -> None:
    """Refuses, before anything runs, to keep a language where it is not known which one is wanted.

    Args:
        tasks: those of the rollouts that the stage reads.

    Raises:
        RecipeError: there is such a task.
    """
    if settings.keep.min_language > 0:
        for task in tasks:
            task.require_languages("keep.min_language")


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Curates the rollouts that `data` refers to; the outcome is a dataset and the account of what was dropped."""
    samples = _samples([inputs[f"data[{place}]"].path for place in range(len(settings.data))], context)
    noise = (context.seed, settings.name)
    # One shuffle decides which samples are kept where only some can be, and in which order they are read.
    generator("curate", *noise).shuffle(samples)
    context.progress.begin(settings.name, len(samples), "samples")
    evaluated = _evaluated(settings, context)
    selection = Selection(
        settings.keep,
        evaluated,
        rewrite=None if settings.rewrite is None else context.catalogue.plugin("rewritings", settings.rewrite).made,
        max_conversations=settings.max_conversations,
    )
    judged, refused = _judged(settings, samples, context)
    conversations, counts = selection.select(judged)
    counts = Counts(len(samples), counts.kept, {**counts.dropped, **refused})
    _refuse_nothing(counts, settings.name, evaluated)
    metrics: dict[str, Any] = counts.as_metrics()
    if settings.general is not None:
        source: Conversations = context.catalogue.plugin("conversations", settings.general).made
        drawn = [source.conversation(index, noise=noise) for index in range(settings.general.conversations)]
        known = [conversation for conversation in drawn if not held_out(conversation.split)]
        general = [conversation for conversation in known if not evaluated.overlaps(conversation)]
        dropped: dict[Reason | JudgeFault, int] = {
            "held_out": len(drawn) - len(known),
            "contaminated": len(known) - len(general),
        }
        metrics["general"] = Counts(len(drawn), len(general), dropped).as_metrics()
        conversations += general
        generator("mix", *noise).shuffle(conversations)
    context.asked().refuse_conversations(settings.name, conversations)
    metrics["conversations"] = len(conversations)
    metrics["unknown_split"] = sum(conversation.split is None for conversation in conversations)
    metrics["matched"] = dict(evaluated.found.most_common(SHOWN))
    metrics["sources"] = dict(sorted(Counter(conversation.source for conversation in conversations).items()))
    context.progress.advance(len(samples), {})
    context.progress.end(metrics)
    return Outcome(lambda target: _write(target, conversations, metrics), metrics)


def _samples(directories: Sequence[Path], context: StageContext) -> list[Sample]:
    return [
        Sample(group.problem, rollout.completion, rollout.grade, context.task(group.problem.task), rollout.dialogue)
        for directory in directories
        for group in read_groups(directory / GROUPS_FILE)
        for rollout in group.rollouts
    ]


def _judged(
    settings: Settings, samples: Sequence[Sample], context: StageContext
) -> tuple[list[Sample], dict[Reason | JudgeFault, int]]:
    """The samples without those that the judge did not call correct, in their order, and how many those were.

    The judge is asked about samples that `keep` would let pass; others stay, to be dropped for what is wrong with them.
    """
    if settings.judge is None:
        return list(samples), {}
    asked = [place for place, sample in enumerate(samples) if sample_fault(sample, settings.keep) is None]
    claims = [Claim(samples[place].problem, final_answer(samples[place].completion.text) or "") for place in asked]
    judge = context.judge(settings.judge, replies=context.replies)
    given = verdicts_on(claims, judge.correct, run=context, stage=settings.name)
    verdicts = dict(zip(asked, given, strict=True))
    counted = Counter(verdicts.values())
    kept = [sample for place, sample in enumerate(samples) if verdicts.get(place, True)]
    return kept, {"judged_wrong": counted[False], "not_judged": counted[None]}


def _evaluated(settings: Settings, context: StageContext) -> HeldOut:
    """The first problems of the splits "test" and, where a task has it, "dev": those that `evaluate` stages of the same
    recipe ask."""
    tasks = [context.task(name) for name in settings.decontaminate]
    problems = [
        problem
        for task in tasks
        for split in ("test", "dev")
        if split == "test" or _has_dev(task)
        for problem in islice(task.problems(split, context.seed), settings.decontaminate[task.name])
    ]
    open_ended = [task.name for task in tasks if task.domain != "reasoning"]
    return HeldOut(problems, open_ended=open_ended, wording=settings.wording)


def _has_dev(task: NamedTask) -> bool:
    try:
        task.problem("dev", 0, 0)
    except RecipeError:
        return False
    return True


def _refuse_nothing(counts: Counts, stage: str, evaluated: HeldOut) -> None:
    if counts.kept == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.dropped.items() if count)
        if evaluated.found:
            ((text, times),) = evaluated.found.most_common(1)
            reasons += f"; {times} of the contaminated ones have {text!r} from an evaluation, which may be its wording"
        raise RecipeError(
            f"none of the {counts.sampled} samples is left after curation: {reasons or 'nothing was sampled'}",
            where=f"keep of stage {stage!r}",
            fix="loosen the rule that dropped most, or collect from a better model or with more samples",
        )


def _write(target: Path, conversations: Sequence[Conversation], metrics: Mapping[str, Any]) -> None:
    write_conversations(target / CONVERSATIONS_FILE, conversations)
    (target / COUNTS_FILE).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
