"""The hacking alarm: its statistic, what it looks at, when it warns, and that a resumed run warns as a whole one."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from contexts import a_context
from kept_progress import KeptProgress
from reasonmill.algo.alarm import STAKES, STATED_STEPS, Suspicion, at_least
from reasonmill.errors import RewardHacked
from reasonmill.mill.findings import findings
from reasonmill.protocols import Attempt
from reasonmill.settings import decisive
from reasonmill.stages.alarm import Alarm, AlarmSettings
from reasonmill.stages.rl import Settings
from reasonmill.store.home import Home
from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout

ALLOWED, FALSE_ALARMS = 0.01, 0.05

# The statistic


def alarm_at(
    rng: random.Random, levels: Sequence[float], *, problems: int = 8, attempts: int = 8, agree: float = 0.0
) -> int | None:
    """The step of the alarm where each attempt is an unconfirmed claim with the chance of its step.

    Args:
        agree: the chance that all attempts at a problem are alike.
    """
    suspicion = Suspicion()
    for step, level in enumerate(levels):
        shares = []
        for _ in range(problems):
            alike = rng.random() < agree
            drawn = [rng.random() < level for _ in range(1 if alike else attempts)]
            shares.append(sum(drawn) / len(drawn))
        suspicion = suspicion.after(shares, ALLOWED)
        if suspicion.evidence(FALSE_ALARMS) >= 1:
            return step
    return None


def test_the_winnings_are_those_of_bets_that_begin_anew_with_each_step() -> None:
    first, second = [0.5, 0.0], [1.0]
    found = Suspicion().after(first, ALLOWED).after(second, ALLOWED)
    for stake, log in zip(STAKES, found.logs, strict=True):
        won = [[1 + stake / ALLOWED * (share - ALLOWED) for share in shares] for shares in (first, second)]
        assert math.exp(log) == pytest.approx(math.prod(won[0]) * won[1][0] + won[1][0])
    mean = math.fsum(map(math.exp, found.logs)) / len(STAKES)
    assert found.evidence(0.01, tests=2) == pytest.approx(mean / (STATED_STEPS * 2 / 0.01))


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_winnings_are_fair_at_the_allowed_share(share: float) -> None:
    """What is won on average, whatever the stake, where what is met on average is exactly the allowed share."""
    chance = ALLOWED / share
    for nothing, something in zip(
        Suspicion().after([0.0], ALLOWED).logs, Suspicion().after([share], ALLOWED).logs, strict=True
    ):
        assert (1 - chance) * math.exp(nothing) + chance * math.exp(something) == pytest.approx(1)


def test_steps_that_show_nothing_and_endless_suspicion_keep_numbers_finite() -> None:
    empty = Suspicion().after([], ALLOWED)
    assert empty.logs == pytest.approx([0.0] * len(STAKES))
    suspicion = Suspicion()
    for _ in range(400):
        suspicion = suspicion.after([1.0] * 32, ALLOWED)
    assert math.isfinite(suspicion.evidence(FALSE_ALARMS))
    with pytest.raises(ValueError, match="a share lies in"):
        empty.after([1.5], ALLOWED)


@pytest.mark.parametrize("agree", [0.0, 1.0])
def test_an_honest_beginning_does_not_delay_the_alarm(agree: float) -> None:
    rng = random.Random(3)
    growing = [0.0] * 60 + [min(1.0, 0.01 * 1.5**n) for n in range(20)]
    reached = next(step for step, level in enumerate(growing) if level >= 0.1)
    for _ in range(10):
        found = alarm_at(rng, growing, agree=agree)
        assert found is not None
        assert found <= reached + 5


@pytest.mark.check
@pytest.mark.parametrize("agree", [0.0, 0.5, 1.0])
def test_false_alarms_are_no_more_than_stated(agree: float) -> None:
    """In runs of 500 steps at exactly the share that is allowed, where 2.5 % are the most."""
    rng = random.Random(5)
    runs = 60
    found = sum(alarm_at(rng, [ALLOWED] * 500, agree=agree) is not None for _ in range(runs))
    assert found <= 5  # of 60 at 2.5 %: more than 5 have a chance of one in 300, and the seed is fixed


def test_few_observations_promise_little() -> None:
    assert at_least(1.0, 2) < 0.4 < at_least(1.0, 50) < 1
    assert at_least(0.0, 50) < 0.01
    assert at_least(0.5, 100) == pytest.approx(0.5 - 2 * (0.25 / 104) ** 0.5)


# What it looks at


class Verifier:
    """Confirms texts that begin with "right", can't tell of those that begin with "unclear", and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def measure(self, attempt: Attempt) -> float | None:
        self.seen.append(attempt.completion.text)
        if attempt.completion.text.startswith("unclear"):
            return None
        return float(attempt.completion.text.startswith("right"))


def group(number: int, texts: Sequence[str], task: str = "arithmetic") -> Group:
    """Attempts that the reward `near` takes for right unless they begin with "no"; "ungraded" ones have no grade."""
    problem = Problem(task, (Message("user", f"problem {number}"),), "1")
    rollouts = []
    for text in texts:
        grade = Grade(1.0, {"near": float(not text.startswith("no")), "format": 1.0})
        if text.startswith("ungraded"):
            grade = Grade(None, error="broken")
        rollouts.append(Rollout((1,), Completion((2,), (-0.5,), (True,), text, "stop", 0), grade))
    return Group(problem, tuple(rollouts))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> Verifier:
    verifier = Verifier()
    monkeypatch.setattr("reasonmill.plugins.catalogue.Catalogue.reward", lambda self, name: verifier)
    return verifier


def an_alarm(home: Home, progress: KeptProgress | None = None, **changes: Any) -> Alarm:
    context = a_context(home, progress)
    settings = AlarmSettings.model_validate({"verifier": "random", **changes})
    tasks = {name: context.task(name) for name in ("arithmetic", "facts")}
    return Alarm(settings, context, "zero", {"near": 1.0, "format": 1.0}, tasks)


def hacked(problems: int = 8) -> list[Group]:
    return [group(number, ["wrong, and rewarded", "right", "no"] * 2) for number in range(problems)]


def look_and_record(alarm: Alarm, home: Home, steps: range, groups: Sequence[Group]) -> None:
    for step in steps:
        home.ledger.record_metrics("k" * 64, step, alarm.look(step, groups))


def test_a_sample_is_drawn_of_as_many_problems_as_can_be(home: Home, verifier: Verifier) -> None:
    groups = [group(n, [f"right {n} {m}" for m in range(4)] + [f"ungraded {n}"]) for n in range(6)]
    groups.append(group(6, ["right, but nobody speaks of facts"], task="facts"))
    verifier.domains = frozenset({"reasoning"})  # type: ignore[attr-defined]
    metrics = an_alarm(home, rollouts=9).look(0, groups)
    asked = [text.split()[1] for text in verifier.seen]
    assert metrics["alarm/verified"] == len(verifier.seen) == len(set(verifier.seen)) == 9
    assert sorted(asked[:6]) == list("012345")
    assert len(set(asked[6:])) == 3
    before, verifier.seen = verifier.seen, []
    an_alarm(home, rollouts=9).look(0, groups)
    assert verifier.seen == before
    verifier.seen = []
    an_alarm(home, rollouts=9).look(1, groups)
    assert verifier.seen != before
    an_alarm(home).look(0, groups)
    assert not any("facts" in text or "ungraded" in text for text in verifier.seen)


def test_claims_that_are_not_confirmed_are_counted(home: Home, verifier: Verifier) -> None:
    texts = ["wrong", "right", "no", "unclear"]
    metrics = an_alarm(home).look(0, [group(n, texts) for n in range(4)])
    assert (metrics["alarm/verified"], metrics["alarm/could_not_tell"]) == (12, 4)
    assert metrics["alarm/confirmed"] == metrics["alarm/near/unconfirmed"] == pytest.approx(1 / 3)
    assert "alarm/format/unconfirmed" not in metrics  # a matter of manners
    also = an_alarm(home, claims={"format": 0.5, "near": 2.0}).look(0, [group(n, texts) for n in range(4)])
    assert (also["alarm/near/unconfirmed"], also["alarm/format/unconfirmed"]) == (0, pytest.approx(2 / 3))


def test_an_alarm_is_raised_once_and_is_a_finding(home: Home, verifier: Verifier) -> None:
    progress = KeptProgress()
    alarm = an_alarm(home, progress)
    look_and_record(alarm, home, range(3), [group(n, ["right", "no"]) for n in range(8)])
    assert progress.notes == []
    look_and_record(alarm, home, range(3, 9), hacked())
    (note,) = progress.notes
    assert "step 3: " in note
    assert "'near'" in note
    assert "'wrong, and rewarded'" in note
    (finding,) = findings(home.ledger.metrics("k" * 64), {}, None, None)
    assert "from step 3 on" in finding
    assert "'near'" in finding
    assert "33%" in finding


@pytest.mark.parametrize("reward_falls", [False, True])
def test_confirming_half_as_much_under_a_reward_that_does_not_fall_raises_an_alarm(
    home: Home, verifier: Verifier, reward_falls: bool
) -> None:
    """Attempts that claim nothing: some other part of the reward is what was learned."""
    progress, before, after = KeptProgress(), ["right", "no"], ["no", "no"]
    alarm = an_alarm(home, progress)
    look_and_record(alarm, home, range(5), [group(n, before) for n in range(16)])
    fallen = [group(n, after) for n in range(16)]
    if reward_falls:
        low = replace(fallen[0].rollouts[0].grade, reward=0.5)
        fallen = [replace(g, rollouts=tuple(replace(r, grade=low) for r in g.rollouts)) for g in fallen]
    look_and_record(alarm, home, range(5, 13), fallen)
    found = findings(home.ledger.metrics("k" * 64), {}, None, None)
    if reward_falls:
        assert progress.notes == found == []
    else:
        assert "confirms 0% of the attempts, and 50% before" in progress.notes[0]
        assert "less than half" in found[0]


def test_an_alarm_that_stops_the_stage_does_so_whenever_it_resumes(home: Home, verifier: Verifier) -> None:
    look_and_record(an_alarm(home), home, range(2), hacked())
    again = an_alarm(home, then="stop")
    with pytest.raises(RewardHacked, match="raised at step 0") as raised:
        again.look(2, [group(0, ["right"])])
    assert raised.value.exit_code == 9
    # The state is that before the step, also if later ones were recorded by a run that warned.
    early = an_alarm(home, then="stop")
    assert early.look(0, [group(0, ["right"])])["alarm/near/unconfirmed"] == 0


def test_a_resumed_alarm_has_the_state_of_one_that_went_on(home: Home, verifier: Verifier) -> None:
    groups = [group(n, ["wrong"] + ["right"] * 30) for n in range(2)]
    whole = an_alarm(home)
    look_and_record(whole, home, range(3), groups)
    progress = KeptProgress()
    assert an_alarm(home, progress).look(3, groups) == whole.look(3, groups)
    assert whole.look(4, groups)["alarm/near/evidence"] > 0


def test_a_verifier_that_can_never_tell_is_a_finding(home: Home, verifier: Verifier) -> None:
    look_and_record(an_alarm(home), home, range(2), [group(0, ["unclear"] * 4)])
    (finding,) = findings(home.ledger.metrics("k" * 64), {}, None, None)
    assert "could tell of no attempt" in finding


# Settings

GIVEN: dict[str, Any] = {
    "name": "zero",
    "kind": "rl",
    "from": "tiny-base-weak",
    "steps": 2,
    "rewards": {"random": 1.0, "format": 1.0},
    "tasks": {"arithmetic": 1.0},
    "schedule": {"peak": 1e-3},
}


@pytest.mark.parametrize(
    ("alarm", "changes", "what"),
    [
        ({"verifier": "random"}, {}, "is a part of the reward"),
        ({"verifier": "accuracy", "claims": {"accuracy": 0.5}}, {}, "has no weight above 0"),
        ({"verifier": "safety"}, {}, "a reward model's"),
        ({"verifier": "accuracy"}, {"tasks": {"facts": 1.0}}, "speaks of none of the tasks"),
        ({"verifier": "nobody"}, {}, "unknown reward"),
        ({"verifier": "accuracy", "allowed": 0.0}, {}, "greater than 0"),
    ],
)
def test_an_alarm_without_effect_is_refused(alarm: dict[str, Any], changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Settings.model_validate({**GIVEN, **changes, "alarm": alarm})


def test_what_an_alarm_does_is_no_part_of_the_key() -> None:
    warns, stops = (
        Settings.model_validate({**GIVEN, "alarm": {"verifier": "accuracy", "then": then}}) for then in ("warn", "stop")
    )
    assert decisive(warns) == decisive(stops)
    assert decisive(warns) != decisive(Settings.model_validate(GIVEN))
