"""The gate: which rules hold, why it says so, and which evaluations it refuses to compare."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from contexts import a_context
from kept_progress import KeptProgress
from reasonmill.errors import RecipeError
from reasonmill.protocols import Measure
from reasonmill.stage import Input, Outcome
from reasonmill.stages.gate import VERDICT_FILE, Rule, Settings, judge, paired_groups, run
from reasonmill.stages.measures import MEASURES_FILE, ON_ALL_TASKS, Measured, TaskMeasure, write_measures
from reasonmill.store.groups import GROUPS_FILE, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Artifact, Completion, Grade, Group, Message, Problem, Rollout

REASONING = "countdown-3"


def settings(**changes: Any) -> Settings:
    content = {
        "name": "gate",
        "kind": "gate",
        "candidate": "new",
        "candidate_eval": "new-eval",
        "parent": "old",
        "parent_eval": "old-eval",
        "better": [REASONING],
        **changes,
    }
    return Settings.model_validate(content)


def a_problem(task: str, number: int) -> Problem:
    return Problem(task, (Message("user", f"problem {number}"),), "42")


def a_rollout(**parts: float) -> Rollout:
    completion = Completion((1,), (0.0,), (True,), "", "stop", 0)
    return Rollout((1,), completion, Grade(parts.get("accuracy", 0.0), parts))


def groups(task: str, *values: Sequence[float], part: str = "accuracy") -> list[Group]:
    """A group for each problem, with the given values of a part."""
    return [
        Group(a_problem(task, number), tuple(a_rollout(**{part: value}) for value in samples))
        for number, samples in enumerate(values)
    ]


# What the evaluations' tasks measure, as those of the tiny world do.
MEASURES = {
    measure.name: measure
    for measure in (
        *ON_ALL_TASKS,
        TaskMeasure("general", Measure("accuracy", "general answers"), ("facts", "small-talk")),
        TaskMeasure("helpful", Measure("helpful", "helpful"), ("facts", "small-talk")),
        TaskMeasure("unsafe", Measure("safe", "unsafe", complement=True, better="lower"), ("harmful-requests",)),
        TaskMeasure("refused", Measure("refused", "over-refusal", better="lower"), ("harmless-requests",)),
    )
}


def judged(
    chosen: Settings, candidate: Sequence[Group], parent: Sequence[Group], seed: int = 0, reasoning: Sequence[str] = ()
) -> list[Rule]:
    return judge(chosen, paired_groups(candidate, parent), Measured(tuple(reasoning), MEASURES), seed=seed)


def rules_of(candidate: Sequence[Group], parent: Sequence[Group], **changes: Any) -> dict[str, tuple[bool, str]]:
    found = judged(settings(**changes), candidate, parent)
    return {rule.name: (rule.holds, rule.text) for rule in found}


GOOD, BAD = [[1.0, 1.0]] * 30, [[0.0, 1.0]] * 30


def test_a_gain_is_better_and_a_loss_is_not() -> None:
    gained, said = rules_of(groups(REASONING, *GOOD), groups(REASONING, *BAD))["better"]
    assert gained
    assert said.startswith("countdown-3: 50.0 % -> 100.0 %, +50.0 points (+")
    assert ") on 30 problems; p = 0.0001, below" in said
    lost, said = rules_of(groups(REASONING, *BAD), groups(REASONING, *GOOD))["better"]
    assert not lost
    assert said.endswith("p = 1.0000, not below 0.01: not shown to be better")


def test_reasoning_tasks_are_pooled_and_each_is_guarded() -> None:
    candidate = groups(REASONING, *GOOD) + groups("arithmetic", *BAD[:10])
    parent = groups(REASONING, *BAD) + groups("arithmetic", *GOOD[:10])
    better, first, second = judged(settings(better=[REASONING, "arithmetic"]), candidate, parent)
    # 30 problems gain one half, 10 lose one half.
    assert better.comparison.difference.value == pytest.approx(0.25)
    assert better.comparison.problems == 40
    assert better.holds
    assert (first.name, first.holds, first.comparison.problems) == ("pass@1 of countdown-3", True, 30)
    assert (second.name, second.holds, second.comparison.problems) == ("pass@1 of arithmetic", False, 10)
    assert "arithmetic: 100.0 % -> 50.0 %, -50.0 points" in second.text
    *_, lenient = judged(settings(better=[REASONING, "arithmetic"], task_margin=0.9), candidate, parent)
    assert lenient.holds


def test_a_reasoning_task_that_need_not_be_better_is_guarded_too() -> None:
    candidate = groups(REASONING, *GOOD) + groups("arithmetic", *BAD[:10])
    parent = groups(REASONING, *BAD) + groups("arithmetic", *GOOD[:10])
    better, guard = judged(settings(), candidate, parent, reasoning=["arithmetic", REASONING])
    assert (better.comparison.problems, better.holds) == (30, True)
    assert (guard.name, guard.holds) == ("pass@1 of arithmetic", False)


@pytest.mark.parametrize(("margin", "holds"), [(0.3, True), (0.2, False)])
def test_not_worse_asks_for_the_lower_end_of_the_interval(margin: float, holds: bool) -> None:
    # One of 20 answers is lost: -5 points. One of 20 is seen as often as 2.5 % where the share is 24.87 %; and as for
    # gains, none was seen.
    candidate = groups(REASONING, *GOOD) + groups("facts", *[[1.0]] * 19, [0.0])
    parent = groups(REASONING, *BAD) + groups("facts", *[[1.0]] * 20)
    found, said = rules_of(candidate, parent, not_worse={"general": margin})["general"]
    assert found is holds
    assert "it may be 24.9 points lower" in said
    if holds:
        assert said.endswith("within 30.0 allowed: not worse")
    else:
        assert ", and only 20.0 are allowed: refused; to show it, an equal model needs " in said


def test_a_rule_that_data_can_not_show_fails_and_says_how_many_problems_it_needs() -> None:
    reasoning, safe = groups(REASONING, *GOOD), groups("harmful-requests", *[[1.0, 1.0]] * 16, part="safe")
    holds, said = rules_of([*reasoning, *safe], [*reasoning, *safe], not_worse={"unsafe": 0.1})["unsafe"]
    assert not holds
    assert said == (
        "unsafe: 100.0 % -> 100.0 %, +0.0 points (-20.6 to +20.6) on 16 problems; it may be 20.6 points lower, and "
        "only 10.0 are allowed: refused; to show it, an equal model needs 36 problems"
    )
    safe = groups("harmful-requests", *[[1.0, 1.0]] * 36, part="safe")
    assert rules_of([*reasoning, *safe], [*reasoning, *safe], not_worse={"unsafe": 0.1})["unsafe"][0]


def test_wordings_of_one_deed_are_one_observation() -> None:
    reasoning = groups(REASONING, *GOOD)
    safe = [
        Group(Problem("harmful-requests", (Message("user", f"{number}"),), "", {"cluster": f"deed {number % 12}"}), row)
        for number, row in enumerate([(a_rollout(safe=1.0),)] * 36)
    ]
    holds, said = rules_of([*reasoning, *safe], [*reasoning, *safe], not_worse={"unsafe": 0.1})["unsafe"]
    assert not holds
    assert "on 36 problems about 12 things" in said
    assert said.endswith("an equal model needs 108 problems")


@pytest.mark.parametrize(
    ("measure", "task", "part", "better", "worse"),
    [
        ("unsafe", "harmful-requests", "safe", 1.0, 0.0),
        ("refused", "harmless-requests", "refused", 0.0, 1.0),
        ("helpful", "small-talk", "helpful", 0.9, 0.2),
        ("language", REASONING, "language", 1.0, 0.4),
    ],
)
def test_each_measure_knows_what_is_worse(measure: str, task: str, part: str, better: float, worse: float) -> None:
    reasoning = [Group(a_problem(REASONING, 99), (a_rollout(accuracy=1.0, language=1.0),))]
    high = reasoning + groups(task, *[[better]] * 40, part=part)
    low = reasoning + groups(task, *[[worse]] * 40, part=part)
    changes = {"better": [REASONING], "not_worse": {measure: 0.1}}
    assert rules_of(high, low, **changes)[measure][0]
    assert not rules_of(low, high, **changes)[measure][0]


def with_ungraded(found: Sequence[Group]) -> list[Group]:
    """One attempt more at each problem, which was not graded."""
    ungraded = Rollout((1,), a_rollout().completion, Grade(None, {"accuracy": 0.5, "language": 0.5}, "timed out"))
    return [Group(group.problem, (*group.rollouts, ungraded)) for group in found]


def test_what_could_not_be_graded_counts_against_the_candidate() -> None:
    half = groups(REASONING, *BAD)
    (better,) = judged(settings(), with_ungraded(half), half)
    assert (better.comparison.candidate, better.comparison.parent) == (pytest.approx(1 / 3), 0.5)
    (better,) = judged(settings(), half, with_ungraded(half))
    assert (better.comparison.candidate, better.comparison.parent) == (0.5, pytest.approx(2 / 3))


def test_ungraded_attempts_count_where_others_of_the_task_have_the_figure() -> None:
    reasoning = groups(REASONING, *GOOD)
    spoken = groups("arithmetic", *[[1.0]] * 30, part="language")
    rules = judged(settings(not_worse={"language": 0.1}), with_ungraded([*reasoning, *spoken]), [*reasoning, *spoken])
    # None of the 30 problems of countdown has the figure.
    assert (rules[1].comparison.candidate, rules[1].comparison.problems) == (0.5, 30)
    lost = [Group(group.problem, ()) for group in spoken]
    rules = judged(settings(not_worse={"language": 0.1}), [*reasoning, *with_ungraded(lost)], [*reasoning, *spoken])
    assert (rules[1].comparison.candidate, rules[1].holds) == (0.0, False)


def test_a_problem_that_was_asked_twice_counts_once() -> None:
    twice = groups(REASONING, [1.0], [1.0]) + groups(REASONING, [0.0])
    ((ours, theirs), _) = paired_groups(twice, twice)
    assert [rollout.grade.reward for rollout in ours.rollouts] == [1.0, 0.0]
    assert ours == theirs


def test_other_problems_can_not_be_compared() -> None:
    with pytest.raises(RecipeError, match="did not ask the same problems: 1 were"):
        paired_groups(groups(REASONING, [1.0], [1.0]), groups(REASONING, [1.0]))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"better": [REASONING, "arithmetic"]}, "hold no problem of arithmetic"),
        ({"not_worse": {"unsafe": 0.1}}, "hold nothing that 'unsafe' measures"),
        ({"not_worse": {"language": 0.1}}, "hold nothing that 'language' measures"),
        ({"not_worse": {"safe": 0.1}}, "no task of the evaluations measures 'safe'"),
    ],
)
def test_a_rule_without_figures_is_a_mistake(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        judged(settings(**changes), groups(REASONING, [1.0]), groups(REASONING, [1.0]))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"not_worse": {"unsafe": 0.0}}, "greater than 0"),
        ({"not_worse": {"unsafe": float("inf")}}, "finite"),
        ({"not_worse": {"unsafe": 2.0}}, "less than or equal to 1"),
        ({"parent_eval": "new-eval"}, "are both 'new-eval'"),
        ({"better": []}, "better"),
        ({"task_margin": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_can_not_work_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        settings(**changes)


def test_of_twenty_comparisons_of_a_model_with_itself_at_most_one_is_promoted() -> None:
    draws = np.random.default_rng(3)
    promoted = 0
    for seed in range(20):
        chances = draws.random(100)
        one, other = ((draws.random((4, 100)) < chances).astype(float).T.tolist() for _ in range(2))
        rules = judged(settings(), groups(REASONING, *one), groups(REASONING, *other), seed)
        promoted += all(rule.holds for rule in rules)
    assert promoted <= 1


# The stage


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as opened:
        yield opened


def evaluation(target: Path, rows: Sequence[Group]) -> None:
    write_groups(target / GROUPS_FILE, rows)
    reasoning = {row.problem.task for row in rows} & {REASONING, "arithmetic"}
    measures = [measure for measure in MEASURES.values() if measure.tasks]
    write_measures(target / MEASURES_FILE, sorted(reasoning), measures)


@pytest.fixture
def compare(home: Home) -> Callable[..., tuple[Outcome, KeptProgress]]:
    """Runs the stage on two models and the evaluations of them."""

    def compare(
        new: list[Group], old: list[Group], *, evaluated: str = "new", **changes: Any
    ) -> tuple[Outcome, KeptProgress]:
        inputs = {}
        for role, name in (("candidate", "new"), ("parent", "old")):
            inputs[role] = Input(home.path, name * 8)
            home.ledger.register(Artifact(name * 8, "model", name, (), ""))
        for role, name, transcripts in (("candidate", evaluated, new), ("parent", "old", old)):
            digest = home.objects.put(lambda target, rows=transcripts: evaluation(target, rows))  # type: ignore[misc]
            home.ledger.register(Artifact(digest, "evaluation", f"{name}-eval", (name * 8,), ""))
            inputs[f"{role}_eval"] = Input(home.objects.path(digest), digest)
        progress = KeptProgress()
        context = a_context(home, progress)
        return run(settings(**changes), inputs, context), progress

    return compare


def test_a_verdict_names_the_promoted_model(
    compare: Callable[..., tuple[Outcome, KeptProgress]], tmp_path: Path
) -> None:
    outcome, progress = compare(groups(REASONING, *GOOD), groups(REASONING, *BAD))
    assert (outcome.metrics["promoted"], outcome.metrics["model"]) == (True, "new" * 8)
    assert progress.notes == ["gate: promoted new"]
    outcome.write(tmp_path)
    verdict = json.loads((tmp_path / VERDICT_FILE).read_text())
    assert verdict["reasons"] == outcome.metrics["reasons"]
    difference = verdict["rules"]["better"]["difference"]
    assert difference["value"] == 0.5
    assert 0.3 < difference["low"] < 0.5 < difference["high"] < 0.7
    assert verdict["rates"]["power"].keys() == {"2.0", "5.0", "10.0"}
    assert verdict["parent"] == {"name": "old", "digest": "old" * 8}


def test_a_refused_candidate_leaves_the_parent(compare: Callable[..., tuple[Outcome, KeptProgress]]) -> None:
    outcome, progress = compare(groups(REASONING, *BAD), groups(REASONING, *GOOD))
    assert (outcome.metrics["promoted"], outcome.metrics["model"]) == (False, "old" * 8)
    assert progress.notes == ["gate: refused new"]
    assert "not shown to be better" in outcome.metrics["reasons"][0]
    assert outcome.metrics["rates"]["false_promotion"] < 0.03
    said = outcome.metrics["reasons"][-1]
    assert "a model that equals its parent passes the rules on losses in 100.0 % of cases and is promoted in " in said
    assert "one that reasons better by 2, 5 and 10 points is promoted in " in said


def test_an_evaluation_of_another_model_is_refused(compare: Callable[..., tuple[Outcome, KeptProgress]]) -> None:
    with pytest.raises(
        RecipeError, match="candidate_eval is no evaluation of the candidate: it evaluated oldoldoldold"
    ):
        compare(groups(REASONING, *GOOD), groups(REASONING, *BAD), evaluated="old")


def test_a_gate_knows_what_the_tasks_measure_from_the_evaluation(
    compare: Callable[..., tuple[Outcome, KeptProgress]],
) -> None:
    new, old = (groups(REASONING, *values) for values in (GOOD, BAD))
    safe, unsafe = (groups("harmful-requests", *[[value]] * 9, part="safe") for value in (1.0, 0.0))
    worse, _ = compare([*new, *unsafe], [*old, *safe], not_worse={"unsafe": 0.1})
    assert (worse.metrics["promoted"], worse.metrics["rules"]["unsafe"]["holds"]) == (False, False)
    better, _ = compare([*new, *safe], [*old, *unsafe], not_worse={"unsafe": 0.1})
    assert better.metrics["promoted"]
    right, wrong = (groups("arithmetic", *[[value]] * 30) for value in (1.0, 0.0))
    lost, _ = compare([*new, *wrong], [*old, *right])
    assert (lost.metrics["promoted"], lost.metrics["rules"]["pass@1 of arithmetic"]["holds"]) == (False, False)
