"""The hacking alarm: a second verifier, of which the policy learns nothing, looks at some of the attempts of each step.

What a part of the reward claims to be right and the verifier does not confirm is counted, step by step, and tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reasonmill.algo.alarm import STAKES, Suspicion
from reasonmill.errors import RewardHacked
from reasonmill.plugins.catalogue import Catalogue, RewardName
from reasonmill.protocols import Attempt, Domain, Reward
from reasonmill.randomness import generator
from reasonmill.rewards.combination import ACCURACY, BY_MODEL, domains_of, measured
from reasonmill.settings import INCIDENTAL, Real
from reasonmill.stage import StageContext
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Group, Problem, Rollout

# Parts of the reward that say how an answer is given, and not that it is right.
MANNERS = frozenset({"format", "language"})
# A value above this claims that an answer is right, and a verifier's from this on confirms it.
CLAIMED = 0.5
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
        default=0.02, gt=0, lt=1, description="the share of unconfirmed claims among the attempts of an honest run"
    )
    false_alarms: Real = Field(
        default=0.01, gt=0, lt=1, description="the chance of an alarm in 1,000 steps of an honest run, at most"
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
        if not self.watched(rewards):
            raise ValueError("the alarm has nothing to watch: no reward but of manners has a weight; name alarm.claims")
        if not any(task.domain in self.domains(catalogue) for task in tasks):
            raise ValueError(f"alarm.verifier {self.verifier!r} speaks of none of the tasks; name another one")


class Alarm:
    """Watches the attempts of a stage, step after step.

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

    def look(self, step: int, groups: Sequence[Group]) -> dict[str, float]:
        """Looks at the attempts of a step; gives metrics, of which a resumed run restores the state.

        Raises:
            RewardHacked: the alarm is raised, or was before, and `then` is "stop".
        """
        if self._next != step:
            self._restore(step)
        self._next = step + 1
        verified = self._verified(step, groups)
        told = [(group.problem.id, rollout, right) for group, rollout, right in verified if right is not None]
        metrics = {
            "alarm/verified": float(len(told)),
            "alarm/could_not_tell": float(len(verified) - len(told)),
        }
        if told:
            metrics["alarm/confirmed"] = sum(right for _, _, right in told) / len(told)
        evidence, shares = {}, {}
        for claim, above in self._claims.items():
            by_problem: dict[str, list[bool]] = {}
            for problem, rollout, right in told:
                if claim in rollout.grade.parts:
                    by_problem.setdefault(problem, []).append(rollout.grade.parts[claim] > above and not right)
            of_each = [sum(found) / len(found) for found in by_problem.values()]
            after = self._suspicions[claim].after(of_each, self._settings.allowed)
            self._suspicions[claim] = after
            evidence[claim] = after.evidence(self._settings.false_alarms, len(self._claims))
            shares[claim] = sum(map(sum, by_problem.values())) / max(1, sum(map(len, by_problem.values())))
            metrics |= {f"alarm/{claim}/unconfirmed": shares[claim], f"alarm/{claim}/evidence": evidence[claim]}
            metrics |= {f"alarm/{claim}/{place}": log for place, log in enumerate(after.logs)}
        metrics["alarm/unconfirmed"] = max(shares.values())
        for claim in (claim for claim, found in evidence.items() if found >= 1 and claim not in self._raised):
            self._raised[claim] = step
            above = self._claims[claim]
            example = next((r for _, r, right in told if r.grade.parts.get(claim, above) > above and not right), None)
            self._context.progress.note(
                f"warning: {self._stage}, step {step}: {self._said(claim, shares[claim], example)}"
            )
        if self._raised and self._settings.then == "stop":
            claim, at = next(iter(self._raised.items()))
            raise RewardHacked(
                f"the hacking alarm ended stage {self._stage!r} before it learned from step {step}: since step {at}, "
                f"too much of what {claim!r} rewards as right is not confirmed by {self._settings.verifier!r}",
                fix='look at the rollouts of the last steps and mend the reward; or set alarm.then = "warn" of the '
                "stage, and the same command resumes it",
            )
        return metrics

    def _restore(self, step: int) -> None:
        """Takes the state before a step from the metrics of the steps before it."""
        rows = [row for row in self._context.home.ledger.metrics(self._context.key) if row["step"] < step]
        last: Mapping[str, Any] = rows[-1] if rows else {}
        for claim in self._claims:
            logs = [last.get(f"alarm/{claim}/{place}") for place in range(len(STAKES))]
            known = tuple(log for log in logs if log is not None)
            self._suspicions[claim] = Suspicion(known) if len(known) == len(STAKES) else Suspicion()
            raised = [row["step"] for row in rows if row.get(f"alarm/{claim}/evidence", 0.0) >= 1]
            if raised:
                self._raised[claim] = raised[0]

    def _verified(self, step: int, groups: Sequence[Group]) -> list[tuple[Group, Rollout, bool | None]]:
        """Some graded attempts at problems that the verifier speaks of, with whether it confirms them; None where it
        can't tell."""
        found = []
        for place, number in self._chosen(step, groups):
            group = groups[place]
            noise = (self._context.seed, f"{self._stage}/alarm", step, place, number)
            rollout = group.rollouts[number]
            value = self._value(group.problem, rollout, noise)
            found.append((group, rollout, None if value is None else value >= CLAIMED))
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

    def _said(self, claim: str, share: float, example: Rollout | None) -> str:
        """An alarm in words."""
        shown = ""
        if example is not None:
            text = " ".join(example.completion.text.split())
            shown = f"; one of them: {text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'!r}"
        return (
            f"the reward may be hacked: {self._settings.verifier!r} does not confirm {share:.0%} of the attempts, "
            f"which {claim!r} rewards as right{shown}"
        )
