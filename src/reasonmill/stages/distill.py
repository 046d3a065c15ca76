"""On-policy distillation: the student samples, and learns at each of its own tokens what the teacher would say there.

The loss is the reverse KL to the teacher over the whole vocabulary (algo/reverse_kl.py): where the student puts
probability that the teacher does not, it loses it. Grades are only measured; nothing is learned from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import pack
from reasonmill.algo.schedules import Schedule
from reasonmill.errors import RecipeError, UnsupportedModel
from reasonmill.learn.divergence import total
from reasonmill.learn.on_policy import Update, train_on_policy
from reasonmill.learn.settings import OptimizerSettings
from reasonmill.plugins.catalogue import TaskShares
from reasonmill.recipe.reference import ModelRef
from reasonmill.rewards.combination import ACCURACY_ALONE
from reasonmill.rollouts import TaskMix, collect, stage_seed
from reasonmill.settings import INCIDENTAL
from reasonmill.stage import ArtifactKind, Input, Outcome, StageContext, StageSettings
from reasonmill.stages.rl import SamplingSettings, rollout_metrics
from reasonmill.types import Example, Group, SamplingParams, content_digest

MAKES: ArtifactKind = "model"
NEEDS = ("sampler", "learner")


class Settings(StageSettings):
    """Settings of a `distill` stage: `from` is the student."""

    kind: Literal["distill"]
    from_: ModelRef = Field(alias="from")
    teacher: ModelRef
    tasks: TaskShares = Field(min_length=1, description="tasks and their shares")
    steps: int = Field(ge=1)
    problems_per_step: int = Field(default=64, ge=1)
    group_size: int = Field(default=4, ge=1, description="samples of each problem")
    updates_per_step: int = Field(default=1, ge=1, description="optimizer steps that share a step's samples")
    sampling: SamplingSettings = SamplingSettings()
    schedule: Schedule
    optimizer: OptimizerSettings = OptimizerSettings()
    tokens_per_batch: int = Field(default=4096, ge=64, description="positions of one forward pass")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    state_every: Annotated[int, INCIDENTAL] = Field(default=10, ge=1, description="steps between saved states")

    def against_more_steps(self) -> str | None:
        """The schedule's reason."""
        return self.schedule.against_more_steps()


def run(settings: Settings, inputs: Mapping[str, Input], context: StageContext) -> Outcome:
    """Trains the student `from` refers to towards `teacher`; the outcome is the trained student."""
    student_dir, teacher_dir = inputs["from"].path, inputs["teacher"].path
    require_same_tokenizer(student_dir, teacher_dir, f"teacher of stage {settings.name!r}")
    renderer = context.renderer(student_dir)
    learner = context.learner(
        student_dir,
        settings.optimizer,
        precision=settings.precision,
        temperature=settings.sampling.temperature,
        teacher=teacher_dir,
    )
    sampler = context.sampler(learner, slots=settings.sampling.slots)
    tasks = {name: context.task(name) for name in settings.tasks}
    mix = TaskMix(tasks, settings.tasks)
    params = SamplingParams(temperature=settings.sampling.temperature, max_tokens=settings.sampling.max_tokens)

    own_seed = stage_seed(context.seed, settings.name)

    def sample(step: int) -> list[Group]:
        first = step * settings.problems_per_step
        return collect(
            sampler,
            renderer,
            tasks,
            [mix.problem("train", own_seed, first + i) for i in range(settings.problems_per_step)],
            rewards=ACCURACY_ALONE,
            num_samples=settings.group_size,
            params=params,
            noise=(context.seed, settings.name, step),
        )

    def updates(step: int, groups: Sequence[Group]) -> Iterator[Update]:
        learning_rate = settings.schedule.at(step, settings.steps)
        for share in range(settings.updates_per_step):
            if examples := kl_examples(groups[share :: settings.updates_per_step]):
                yield kl_update(examples, settings.tokens_per_batch, learning_rate)

    metrics, tokens = train_on_policy(
        context,
        sampler,
        learner,
        name=settings.name,
        steps=settings.steps,
        state_every=settings.state_every,
        rollouts_per_step=settings.problems_per_step * settings.group_size,
        compared=False,
        sample=sample,
        updates=updates,
        measure=lambda groups: rollout_metrics(groups, renderer),
    )
    context.progress.end(metrics)
    return Outcome(learner.save_model, metrics, tokens)


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
    content = json.loads(path.read_text(encoding="utf-8"))
    return content_digest({key: value for key, value in content.items() if key not in ("padding", "truncation")})
