"""Machine one: problems into graded rollouts. It knows samplers, tasks and rewards by their Protocols only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reasonmill.activity import each, phase
from reasonmill.errors import TooManyUngraded
from reasonmill.protocols import Renderer, Sampler
from reasonmill.randomness import Part, generator, key
from reasonmill.rewards.combination import RewardWeights
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import read_transcript
from reasonmill.types import Completion, Group, Problem, Request, Rollout, SamplingParams


def stage_seed(seed: int, stage: str) -> int:
    """The seed of a stage's own problems, so that no two stages of a recipe learn from the same ones.

    Args:
        seed: the recipe's.
    """
    return key("problems", seed, stage)


@dataclass(frozen=True)
class TaskMix:
    """Tasks and their shares among the problems that are drawn."""

    tasks: Mapping[str, NamedTask]
    shares: Mapping[str, float]

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of the mix; which task it is from depends on the arguments only."""
        names = list(self.shares)
        name = generator("mix", seed, index).choices(names, weights=[self.shares[n] for n in names])[0]
        return self.tasks[name].problem(split, seed, index)


def collect(
    sampler: Sampler,
    renderer: Renderer,
    tasks: Mapping[str, NamedTask],
    problems: Sequence[Problem],
    *,
    rewards: RewardWeights,
    num_samples: int,
    params: SamplingParams,
    noise: tuple[Part, ...],
    on_completion: Callable[[int], None] | None = None,
) -> list[Group]:
    """Samples `num_samples` completions of each problem and grades them.

    Args:
        tasks: by name; those of the problems.
        noise: names the draw, for example (seed, stage, step); with the place of the problem and of the sample it
            decides all sampling noise.
        on_completion: told how many completions are finished, for progress.

    Returns:
        One group for each problem, in their order; rollouts in the order of their sample numbers.
    """
    prompts = [renderer.render(problem.messages) for problem in problems]
    requests = [
        Request(prompt, params, key("sample", *noise, place, sample))
        for place, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]
    completions: list[Completion | None] = [None] * len(requests)
    for finished, (index, completion) in enumerate(each("sampling", sampler.generate(requests)), start=1):
        completions[index] = completion
        if on_completion is not None:
            on_completion(finished)
    groups = []
    for place, problem in enumerate(problems):
        attempts = completions[place * num_samples : (place + 1) * num_samples]
        drawn = [completion for completion in attempts if completion is not None]
        if len(drawn) != num_samples:
            raise RuntimeError(f"the sampler lost {num_samples - len(drawn)} of the requests for problem {problem.id}")
        with phase("grading"):
            grades = rewards.grade(tasks[problem.task], problem, drawn, noise=(*noise, place))
        rollouts = [Rollout(prompts[place], c, g) for c, g in zip(drawn, grades, strict=True)]
        groups.append(Group(problem, tuple(rollouts)))
    return groups


def refuse_ungraded(groups: Sequence[Group], limit: float) -> None:
    """Checks that at most the share `limit` of the rollouts could not be graded.

    Raises:
        TooManyUngraded: more could not.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    errors = [rollout.grade.error for rollout in rollouts if rollout.grade.reward is None]
    if len(errors) > limit * len(rollouts):
        raise TooManyUngraded(
            f"{len(errors)} of {len(rollouts)} rollouts could not be graded, for example: {errors[0]}",
            fix="mend the grader, or raise max_ungraded",
        )


def thinking_tokens(rollout: Rollout, renderer: Renderer) -> int:
    """Tokens of the rollout's thinking, without the tags."""
    thinking = read_transcript(rollout.completion.text).thinking
    return renderer.num_tokens(thinking) if thinking else 0
