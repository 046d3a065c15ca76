"""The hacking alarm: a second verifier, of which the policy learns nothing, looks at some of the attempts of each step.

What the reward grows by, and the verifier does not confirm, is counted and tested, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.algo.alarm import STAKES, Suspicion, at_least
from reasonmill.errors import RewardHacked
from reasonmill.plugins.catalogue import Catalogue, RewardName
from reasonmill.protocols import Attempt, Domain, Reward
from reasonmill.randomness import generator
from reasonmill.rewards.combination import BY_MODEL, domains_of, measured
from reasonmill.rewards.grades import ACCURACY
from reasonmill.settings import INCIDENTAL, Real
from reasonmill.stage import StageContext
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Group, Problem, Rollout

# Parts of the reward that say how an answer is given, and not that it is right.
MANNERS = frozenset({"format", "language"})
# A value above this claims that an answer is right, and a verifier's from this on confirms it.
CLAIMED = 0.5
# What the metrics call the test of whether the verifier confirms much less than before: no reward has this name.
FALL = "*"
_CONFIRMED, _REWARD, _PROBLEMS = "alarm/confirmed", "alarm/reward", "alarm/problems"
# How much of an attempt a warning shows.
_SHOWN = 80


class AlarmSettings(BaseModel):
    """What the alarm watches, and what it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verifier: RewardName = Field(
        description="a reward that has no weight, from 0 to 1: what is below 0.5 is not confirmed; or `accuracy`"
    )
    claims: dict[str, Real] = Field(
        default={},
        description="the parts of the reward that claim an answer to be right, with the value above which they do; by "
        "default all that have a weight but format and language, above 0.5",
    )
    rollouts: int = Field(default=128, ge=1, description="attempts of a step that the verifier looks at, at most")
    allowed: Real = Field(
        default=0.01, gt=0, lt=1, description="the share of unconfirmed claims among the attempts of an honest run"
    )
    false_alarms: Real = Field(
        default=0.05, gt=0, lt=1, description="the chance of an alarm in 1,000 steps of an honest run, at most"
    )
    then: Annotated[Literal["warn", "stop"], INCIDENTAL] = Field(
        default="warn", description="what an alarm does: it warns, or it ends the stage before it learns from the step"
    )

    def watched(self, rewards: Mapping[str, float]) -> dict[str, float]:
        """The parts that claim an answer to be right, with the value above which they do.

        Args:
            rewards: the weights of the stage's rewards.
        """
        return dict(self.claims) or {n: CLAIMED for n, weight in rewards.items() if weight > 0 and n not in MANNERS}

    def rule(self, catalogue: Catalogue) -> Reward | None:
        """What verifies; None for the graders of the tasks."""
        return None if self.verifier == ACCURACY else catalogue.reward(self.verifier)

    def domains(self, catalogue: Catalogue) -> frozenset[Domain]:
        """Those whose problems the verifier speaks of."""
        rule = self.rule(catalogue)
        return domains_of(self.verifier, {} if rule is None else {self.verifier: rule})

    def require_fit(self, rewards: Mapping[str, float], tasks: Sequence[NamedTask], catalogue: Catalogue) -> None:
        """Checks the settings against the rewards and the tasks of the stage.

        Raises:
            ValueError: the verifier is no second one, or there is nothing to be watched.
        """
        if rewards.get(self.verifier):
            raise ValueError(f"alarm.verifier {self.verifier!r} is a part of the reward: name one that has no weight")
        if self.verifier in BY_MODEL:
            raise ValueError(f"alarm.verifier {self.verifier!r} is a reward model's: name a rule, or 'accuracy'")
        for name in self.claims:
            if not rewards.get(name, 0.0) > 0:
                raise ValueError(f"alarm.claims names {name!r}, which has no weight above 0 in rewards")
        if not any(task.domain in self.domains(catalogue) for task in tasks):
            raise ValueError(f"alarm.verifier {self.verifier!r} speaks of none of the tasks; name another one")


class Alarm:
    """Watches the attempts of a stage, step after step.

    Two things raise it. A part of the reward claims more attempts to be right that the verifier does not confirm than
    an honest run may have. Or the verifier confirms less than half of what it did before, while the reward is as high
    as it was or higher: then some other part of it was what the policy learned.

    Args:
        rewards: the weights of the stage's rewards.
        tasks: by name, those of all problems.
    """

    def __init__(
        self,
        settings: AlarmSettings,
        context: StageContext,
        stage: str,
        rewards: Mapping[str, float],
        tasks: Mapping[str, NamedTask],
    ) -> None:
        self._settings = settings
        self._context = context
        self._stage = stage
        self._tasks = tasks
        self._claims = settings.watched(rewards)
        self._rule = settings.rule(context.catalogue)
        self._domains = settings.domains(context.catalogue)
        self._next: int | None = None  # the step that the state is of; None before the first one
        self._suspicions: dict[str, Suspicion] = {}
        self._raised: dict[str, int] = {}  # the steps at which an alarm was raised, by the claim
        # Of each step: the share that was confirmed, the mean reward, the problems that were looked at.
        self._before: list[tuple[float, float, float]] = []

    def look(self, step: int, groups: Sequence[Group]) -> dict[str, float]:
        """Looks at the attempts of a step; gives metrics, of which a resumed run restores the state.

        Raises:
            RewardHacked: the alarm is raised, or was before, and `then` is "stop".
        """
        if self._next != step:
            self._restore(step)
        self._next = step + 1
        verified = self._verified(step, groups)
        told = [(problem, rollout, right) for problem, rollout, right in verified if right is not None]
        metrics = {
            "alarm/verified": float(len(told)),
            "alarm/could_not_tell": float(len(verified) - len(told)),
        }
        if told:
            metrics[_CONFIRMED] = _mean([right for _, _, right in told])
            metrics[_PROBLEMS] = float(len({problem.cluster for problem, _, _ in told}))
            metrics[_REWARD] = _mean([r.grade.reward for g in groups for r in g.rollouts if r.grade.reward is not None])
        for claim, above in self._claims.items():
            known = [(p, r.grade.parts[claim] > above and not right) for p, r, right in told if claim in r.grade.parts]
            metrics[f"alarm/{claim}/unconfirmed"] = _mean([unconfirmed for _, unconfirmed in known])
            metrics |= self._tested(claim, _by_problem(known), self._settings.allowed)
        metrics["alarm/unconfirmed"] = max(
            (metrics[f"alarm/{claim}/unconfirmed"] for claim in self._claims), default=0.0
        )
        metrics |= self._fall(told, metrics)
        for claim in (*self._claims, FALL):
            if metrics[f"alarm/{claim}/evidence"] >= 1 and claim not in self._raised:
                self._raised[claim] = step
                said = self._said_of_fall(metrics) if claim == FALL else self._said(claim, metrics, told)
                self._context.progress.note(f"warning: {self._stage}, step {step}: the reward may be hacked: {said}")
        if told:
            self._before.append((metrics[_CONFIRMED], metrics[_REWARD], metrics[_PROBLEMS]))
        if self._raised and self._settings.then == "stop":
            raise RewardHacked(
                f"the hacking alarm, raised at step {min(self._raised.values())}, ended stage {self._stage!r} before "
                f"it learned from step {step}: {self._settings.verifier!r} does not confirm what the reward grows by",
                fix='look at the rollouts of the last steps and mend the reward; or set alarm.then = "warn" of the '
                "stage, and the same command resumes it",
            )
        return metrics

    def _tested(self, claim: str, shares: Sequence[float], allowed: float) -> dict[str, float]:
        """Metrics of a test after one more step."""
        after = self._suspicions[claim] = self._suspicions[claim].after(shares, allowed)
        logs = {f"alarm/{claim}/{place}": log for place, log in enumerate(after.logs)}
        return {f"alarm/{claim}/evidence": after.evidence(self._settings.false_alarms, len(self._claims) + 1), **logs}

    def _fall(self, told: Sequence[tuple[Problem, Rollout, bool]], metrics: Mapping[str, float]) -> dict[str, float]:
        """The test of whether less than half of what was confirmed still is; no evidence where the reward fell."""
        surely, _, reward = self._level()
        shares = _by_problem([(problem, not right) for problem, _, right in told]) if surely > 0 else []
        tested = self._tested(FALL, shares, 1 - max(0.0, surely) / 2)
        return tested if metrics.get(_REWARD, -math.inf) >= reward else {**tested, f"alarm/{FALL}/evidence": 0.0}

    def _level(self) -> tuple[float, float, float]:
        """What was confirmed of all attempts up to some step: at least, on average, and under which mean reward. The
        step is that at which most was confirmed at least."""
        levels, looked_at = [(0.0, 0.0, -math.inf)], 0.0
        for stop, (_, _, problems) in enumerate(self._before, start=1):
            looked_at += problems
            confirmed, reward = (_mean(values) for values in list(zip(*self._before[:stop], strict=True))[:2])
            levels.append((at_least(confirmed, looked_at), confirmed, reward))
        return max(levels)

    def _restore(self, step: int) -> None:
        """Takes the state before a step from the metrics of the steps before it."""
        rows = [row for row in self._context.home.ledger.metrics(self._context.key) if row["step"] < step]
        last: Mapping[str, Any] = rows[-1] if rows else {}
        self._before = [(row[_CONFIRMED], row[_REWARD], row[_PROBLEMS]) for row in rows if _CONFIRMED in row]
        self._raised = {}
        for claim in (*self._claims, FALL):
            logs = tuple(last[name] for place in range(len(STAKES)) if (name := f"alarm/{claim}/{place}") in last)
            self._suspicions[claim] = Suspicion(logs) if logs else Suspicion()
            raised = [row["step"] for row in rows if row.get(f"alarm/{claim}/evidence", 0.0) >= 1]
            if raised:
                self._raised[claim] = raised[0]

    def _verified(self, step: int, groups: Sequence[Group]) -> list[tuple[Problem, Rollout, bool | None]]:
        """Some graded attempts at problems that the verifier speaks of, with whether it confirms them; None where it
        can't tell."""
        found = []
        for place, number in self._chosen(step, groups):
            group = groups[place]
            noise = (self._context.seed, f"{self._stage}/alarm", step, place, number)
            rollout = group.rollouts[number]
            value = self._value(group.problem, rollout, noise)
            found.append((group.problem, rollout, None if value is None else value >= CLAIMED))
        return found

    def _chosen(self, step: int, groups: Sequence[Group]) -> list[tuple[int, int]]:
        """(place of the group, of the attempt): drawn, and of as many problems as can be."""
        rng = generator("alarm", self._context.seed, self._stage, step)
        queues = []
        for place, group in enumerate(groups):
            graded = [number for number, r in enumerate(group.rollouts) if r.grade.reward is not None]
            rng.shuffle(graded)
            if graded and self._tasks[group.problem.task].domain in self._domains:
                queues.append([(place, number) for number in graded])
        rng.shuffle(queues)
        longest = max(map(len, queues), default=0)
        turns = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
        return turns[: self._settings.rollouts]

    def _value(self, problem: Problem, rollout: Rollout, noise: tuple[int | str, ...]) -> float | None:
        """What the verifier says."""
        if self._rule is None:
            return rollout.grade.parts.get(ACCURACY)
        return measured(self._rule, Attempt(problem, rollout.completion, self._tasks[problem.task], noise))

    def _said(self, claim: str, metrics: Mapping[str, float], told: Sequence[tuple[Problem, Rollout, bool]]) -> str:
        """An alarm in words, with an attempt as an example."""
        above, shown = self._claims[claim], ""
        for _, rollout, right in told:
            if rollout.grade.parts.get(claim, above) > above and not right:
                text = " ".join(rollout.completion.text.split())
                shown = f"; one of them: {text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'!r}"
                break
        return (
            f"{claim!r} rewards {metrics[f'alarm/{claim}/unconfirmed']:.0%} of the attempts as right, which "
            f"{self._settings.verifier!r} does not confirm{shown}"
        )

    def _said_of_fall(self, metrics: Mapping[str, float]) -> str:
        _, confirmed, reward = self._level()
        return (
            f"{self._settings.verifier!r} confirms {metrics[_CONFIRMED]:.0%} of the attempts, and {confirmed:.0%} "
            f"before, while the reward is {metrics[_REWARD]:.2f}, and was {reward:.2f}"
        )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _by_problem(found: Sequence[tuple[Problem, bool]]) -> list[float]:
    """The share of each problem, or of each thing that several problems ask for."""
    by_cluster: dict[tuple[str, str], list[bool]] = {}
    for problem, value in found:
        by_cluster.setdefault(problem.cluster, []).append(value)
    return [_mean(values) for values in by_cluster.values()]
