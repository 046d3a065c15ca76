"""Machine one: problems into graded rollouts. It knows samplers, tasks and rewards by their Protocols only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reasonmill.activity import each, phase
from reasonmill.episodes import Ended, Episodes, begun
from reasonmill.errors import TooManyUngraded
from reasonmill.protocols import Draws, Renderer
from reasonmill.randomness import Part, generator, key
from reasonmill.rewards.combination import Begun, BegunGroup, RewardWeights
from reasonmill.tasks.named import NamedTask
from reasonmill.transcript import read_transcript
from reasonmill.types import Group, Problem, Request, Rollout, SamplingParams


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
    sampler: Draws,
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
    """Samples `num_samples` attempts at each problem and grades them. An attempt has one turn, or those of an episode
    where the task has an environment.

    Args:
        tasks: by name; those of the problems.
        params: `max_tokens` bounds all turns of an attempt together, replies included.
        noise: names the draw, for example (seed, stage, step); with the place of the problem and of the sample it
            decides all sampling noise.
        on_completion: called with how many attempts are finished, for progress.

    Returns:
        One group for each problem, in their order; rollouts in the order of their sample numbers.

    Raises:
        RecipeError: a task has an environment, and the sampler gives text alone.
        UnsupportedModel: the model's template can't continue a conversation.
    """
    requests: list[Request] = []
    attempts: dict[int, Ended] = {}
    pending: dict[int, Begun] = {}
    together: dict[int, BegunGroup] = {}
    with Episodes(renderer) as episodes:
        samples = [
            (place, sample, begun(tasks[problem.task], problem))
            for place, problem in enumerate(problems)
            for sample in range(num_samples)
        ]
        asked = [episode.messages if episode else problems[place].messages for place, _, episode in samples]
        each_once = list(dict.fromkeys(asked))
        prompts = dict(zip(each_once, renderer.render_all(each_once), strict=True))
        for (place, sample, episode), messages in zip(samples, asked, strict=True):
            request = Request(prompts[messages], params, key("sample", *noise, place, sample))
            if episode is not None:
                episodes.add(len(requests), episode, tasks[problems[place].task], request)
            requests.append(request)
        completions = sampler.generate(requests, episodes.follow_up) if episodes else sampler.generate(requests)
        for index, completion in each("sampling", completions):
            place, sample = divmod(index, num_samples)
            attempts[index] = attempt = episodes.ended(index, completion)
            # Workers grade while the sampler samples.
            pending[index] = rewards.begin(
                tasks[problems[place].task], problems[place], attempt.completion, noise=(*noise, place, sample)
            )
            own = range(place * num_samples, (place + 1) * num_samples)
            if attempts.keys() >= set(own):
                drawn = [attempts[other].completion for other in own]
                task = tasks[problems[place].task]
                together[place] = rewards.begin_group(task, problems[place], drawn, noise=(*noise, place))
            if on_completion is not None:
                on_completion(len(attempts))
        if len(attempts) != len(requests):
            raise RuntimeError(f"the sampler lost {len(requests) - len(attempts)} of {len(requests)} requests")
    groups = []
    for place, problem in enumerate(problems):
        own = range(place * num_samples, (place + 1) * num_samples)
        ended = [attempts[index] for index in own]
        with phase("grading"):
            grades = rewards.grade(
                tasks[problem.task],
                problem,
                [end.completion for end in ended],
                noise=(*noise, place),
                begun=[pending[index] for index in own],
                begun_group=together[place],
            )
        rollouts = [
            # What an environment failed at has no grade, whatever its last turn was like.
            Rollout(
                request.prompt_tokens,
                end.completion,
                replace(grade, reward=None, error=end.error) if end.error else grade,
                end.replies,
            )
            for request, end, grade in zip(requests[own.start : own.stop], ended, grades, strict=True)
        ]
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
            fix="fix the grader, or raise max_ungraded",
        )


def thinking_tokens(rollouts: Sequence[Rollout], renderer: Renderer) -> list[int]:
    """Tokens of each rollout's thinking in all its turns, without the tags."""
    thoughts = [
        (place, thinking)
        for place, rollout in enumerate(rollouts)
        for text in rollout.texts
        if (thinking := read_transcript(text).thinking)
    ]
    found = [0] * len(rollouts)
    counts = renderer.num_tokens([thinking for _, thinking in thoughts])
    for (place, _), count in zip(thoughts, counts, strict=True):
        found[place] += count
    return found
