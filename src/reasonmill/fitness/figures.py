"""What attempts at a task's problems say about the model: shares and amounts with 95 % intervals by problem."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from reasonmill.algo.intervals import Estimate, clustered_mean, clustered_share
from reasonmill.algo.pass_at_k import pass_at_curve
from reasonmill.fitness.probing import Probed, said_before
from reasonmill.protocols import Renderer
from reasonmill.rewards.grades import reasons
from reasonmill.rollouts import thinking_tokens
from reasonmill.transcript import read_transcript
from reasonmill.types import Grade, Problem, Rollout


@dataclass(frozen=True)
class Figures:
    """Those of one task. Shares are of attempts unless they say of what; None where there was nothing to measure.

    Attributes:
        problems, samples: how many were asked, and attempts at each.
        pass_at: by k, over the problems with so many graded attempts.
        signal: share of the groups in which some attempts are right and others are wrong.
        reward_signal: share of the groups whose rewards differ, right or wrong.
        reach: share of the problems that some attempt or some answer that the model was made to give solves.
        format: in R1's format, as the reward of that name has it.
        answered: with one answer block that can be read.
        thinks: that say something before their answer.
        truncated: that were cut off by the limit of their length.
        could_not_tell: that could not be graded; `reasons` says why, with counts.
        tokens, thinking_tokens: of an attempt, and of its thinking between the tags.
        entropy: of the sampler's distribution, in nats, mean over tokens.
        with_thinking: right among those that say something before their answer; where they give none, the answer counts
            that the model was made to give behind it.
        at_once: right among answers that the model was made to give without thinking.
        gain: the difference of the two, within problems that have both.
    """

    problems: int
    samples: int
    pass_at: dict[int, Estimate]
    signal: Estimate
    reward_signal: Estimate
    reach: Estimate
    format: Estimate
    answered: Estimate
    thinks: Estimate
    truncated: Estimate
    could_not_tell: Estimate
    reasons: dict[str, int]
    tokens: Estimate
    thinking_tokens: Estimate
    entropy: Estimate | None
    with_thinking: Estimate | None
    at_once: Estimate | None
    gain: Estimate | None

    def as_metrics(self) -> dict[str, Any]:
        """All of them for JSON, in the form in which evaluations have theirs; what was not measured is None."""
        found: dict[str, Any] = {
            name: value.as_metric() if isinstance(value, Estimate) else value
            for name, value in ((name, getattr(self, name)) for name in asdict(self))
        }
        found["pass_at"] = {str(k): value.as_metric() for k, value in self.pass_at.items()}
        return found


def figures_of(probed: Sequence[Probed], renderer: Renderer) -> Figures:
    """The figures of a task's problems.

    Raises:
        ValueError: there are none.
    """
    attempts = [(each.group.problem, rollout) for each in probed for rollout in each.group.rollouts]
    problems = [each.group.problem for each in probed]

    def share(of: Callable[[Rollout], float]) -> Estimate:
        return clustered_share([of(rollout) for _, rollout in attempts], _clusters(problem for problem, _ in attempts))

    def of_problems(values: Sequence[float]) -> Estimate:
        return clustered_share(values, _clusters(problems))

    def amount(of: Callable[[Rollout], float]) -> Estimate:
        return clustered_mean([of(rollout) for _, rollout in attempts], _clusters(problem for problem, _ in attempts))

    thinking = [float(count) for count in thinking_tokens([rollout for _, rollout in attempts], renderer)]
    compared = [(each.group.problem, _with_thinking(each), _accuracies(each.at_once)) for each in probed]
    both = [(problem, mean(thought) - mean(said)) for problem, thought, said in compared if thought and said]
    return Figures(
        problems=len(probed),
        samples=max(len(each.group.rollouts) for each in probed),
        pass_at=pass_at_curve(_counts(probed)),
        signal=of_problems([float(0 < sum(found := _own(each)) < len(found)) for each in probed]),
        reward_signal=of_problems([float(not each.group.is_flat) for each in probed]),
        reach=of_problems([float(any(_all_grades(each))) for each in probed]),
        format=share(lambda rollout: rollout.grade.parts["format"]),
        answered=share(lambda rollout: float(read_transcript(rollout.completion.text).answer is not None)),
        thinks=share(lambda rollout: float(bool(said_before(rollout.completion.text)))),
        truncated=share(lambda rollout: float(rollout.completion.finish == "length")),
        could_not_tell=share(lambda rollout: float(rollout.grade.reward is None)),
        reasons=reasons(rollout.grade for _, rollout in attempts),
        tokens=amount(lambda rollout: float(rollout.completion.num_sampled)),
        thinking_tokens=clustered_mean(thinking, _clusters(problem for problem, _ in attempts)),
        entropy=_entropy(attempts),
        with_thinking=_share_of([(problem, value) for problem, thought, _ in compared for value in thought]),
        at_once=_share_of([(problem, value) for problem, _, said in compared for value in said]),
        gain=clustered_mean([value for _, value in both], _clusters(p for p, _ in both)) if len(both) > 1 else None,
    )


def _counts(probed: Sequence[Probed]) -> list[tuple[Hashable, int, int]]:
    """Of each problem its cluster, and its graded attempts: all, and those that are right."""
    return [(each.group.problem.cluster, len(found), int(sum(found))) for each in probed if (found := _own(each))]


def _own(probed: Probed) -> list[float]:
    """Whether the attempts are right, of those that could be graded."""
    return _accuracies([rollout.grade for rollout in probed.group.rollouts])


def _accuracies(grades: Sequence[Grade]) -> list[float]:
    """Whether answers are right; a part of a point is none."""
    return [float(grade.parts.get("accuracy", 0.0) == 1.0) for grade in grades if grade.reward is not None]


def _all_grades(probed: Probed) -> list[float]:
    return _own(probed) + _accuracies([*probed.at_once, *probed.continued.values()])


def _with_thinking(probed: Probed) -> list[float]:
    """Whether the attempts are right that say something before their answer. Those without an answer count where the
    model was made to give one."""
    found: list[float] = []
    for number, rollout in enumerate(probed.group.rollouts):
        text = rollout.completion.text
        if not said_before(text):
            continue
        own = _accuracies([rollout.grade])
        if own == [1.0] or read_transcript(text).answer is not None:
            found += own
        elif number in probed.continued:
            found += _accuracies([probed.continued[number]])
    return found


def _entropy(attempts: Sequence[tuple[Problem, Rollout]]) -> Estimate | None:
    """What the sampler's own log-probs of its draws come to, which is the entropy on average; None without any."""
    values: list[float] = []
    clusters: list[Hashable] = []
    for problem, rollout in attempts:
        drawn = zip(rollout.completion.logprobs or (), rollout.completion.sampled, strict=False)
        own = [-logprob for logprob, sampled in drawn if sampled]
        values += own
        clusters += [problem.cluster] * len(own)
    return clustered_mean(values, clusters) if values else None


def _share_of(values: Sequence[tuple[Problem, float]]) -> Estimate | None:
    return clustered_share([v for _, v in values], _clusters(p for p, _ in values)) if values else None


def _clusters(problems: Iterable[Problem]) -> list[Hashable]:
    return [problem.cluster for problem in problems]
