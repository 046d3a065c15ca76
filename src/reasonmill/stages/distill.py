"""On-policy distillation: the student samples, and learns at each of its own tokens what the teacher would say there.

The loss is the reverse KL to the teacher over the whole vocabulary (algo/reverse_kl.py): where the student puts
probability that the teacher does not, it loses it. Grades are only measured; nothing is learned from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.learn.divergence import total
from reasonmill.learn.on_policy import Update
from reasonmill.recipe.reference import ModelRef
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext
from reasonmill.stages.on_policy import OnPolicySettings, Policy
from reasonmill.types import Example, Group, content_digest

MAKES: ArtifactKind = "model"
NEEDS = ("sampler", "learner")


class Settings(OnPolicySettings):
    """Settings of a `distill` stage: `from` is the student."""

    kind: Literal["distill"]
    teacher: ModelRef
    problems_per_step: int = Field(default=64, ge=1)
    group_size: int = Field(default=4, ge=1, description="samples of each problem")


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains the student `from` refers to towards `teacher`; the outcome is the trained student."""
    student_dir, teacher_dir = inputs["from"].path, inputs["teacher"].path
    require_same_tokenizer(student_dir, teacher_dir, f"teacher of stage {settings.name!r}")
    student = Policy(settings, context, student_dir, teacher_dir)

    def updates(step: int, groups: Sequence[Group]) -> tuple[Mapping[str, float], Iterator[Update]]:
        return {}, of_step(step, groups)

    def of_step(step: int, groups: Sequence[Group]) -> Iterator[Update]:
        learning_rate = settings.schedule.at(step, settings.steps)
        for share in range(settings.updates_per_step):
            if examples := kl_examples(groups[share :: settings.updates_per_step]):
                yield kl_update(examples, settings.tokens_per_batch, learning_rate)

    def sample(step: int) -> list[Group]:
        return student.draw(step, student.mix, ACCURACY_ALONE)

    return student.train(sample, updates, kind="kl", loss=LossSettings())


def kl_examples(groups: Sequence[Group]) -> list[Example]:
    """An example of each rollout; every token that the student sampled counts as one."""
    return [
        Example(
            tokens=rollout.prompt_tokens + rollout.completion.tokens,
            weights=[0.0] * len(rollout.prompt_tokens) + [float(sampled) for sampled in rollout.completion.sampled],
            loss="kl",
        )
        for group in groups
        for rollout in group.rollouts
        if any(rollout.completion.sampled)
    ]


def kl_update(examples: Sequence[Example], tokens_per_batch: int, learning_rate: float) -> Update:
    """The update on the mean over all sampled tokens."""
    batches = pack(examples, tokens_per_batch)
    divisor = total(float(batch.weights.double().sum()) for batch in batches)
    return Update(batches, LossSettings(), divisor, learning_rate, num_rollouts=len(examples))


def require_same_tokenizer(student_dir: Path, teacher_dir: Path, where: str) -> None:
    """Refuses a teacher that reads other tokens than the student.

    Raises:
        RecipeError: the tokenizers differ.
        UnsupportedModel: a model has no tokenizer.json to compare.
    """
    if _tokenizer_digest(student_dir) != _tokenizer_digest(teacher_dir):
        raise RecipeError(
            "student and teacher have different tokenizers, so the teacher can't score the student's tokens",
            where=where,
            fix="use a teacher of the student's family, or fine-tune the student on the teacher's text (sft)",
        )


def _tokenizer_digest(model_dir: Path) -> str:
    """Digest of what turns text into tokens; how a tokenizer pads and truncates is left out."""
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModel(
            "the model has no tokenizer.json, so its tokenizer can't be compared with another model's",
            where=str(model_dir),
            fix="save its fast tokenizer next to it",
        )
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    return content_digest({key: value for key, value in content.items() if key not in ("padding", "truncation")})
