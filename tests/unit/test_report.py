import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reasonmill.mill.report import thinking_spans, write_report
from reasonmill.store.groups import write_groups
from reasonmill.store.home import Home
from reasonmill.types import Completion, Grade, Group, Message, Problem, Reply, Rollout
from summaries import before_and_after, evaluating, evaluation, figure, stage, summary

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page: fails on tags that don't match, and keeps the text, the attributes and the texts of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.texts: list[tuple[str, str]] = []  # (innermost tag and class, text)
        self._classes: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
            self._classes.append(dict(attrs).get("class") or "")

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._classes.pop()

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((f"{self.open[-1]}.{self._classes[-1]}", data.strip()))

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for _, text in self.texts).split())

    def within(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


def rollout(text: str, length: int, accuracy: float | None, finish: Any = "stop") -> Rollout:
    completion = Completion((7,) * length, (-0.5,) * length, (True,) * length, text, finish, 0)
    if accuracy is None:
        return Rollout((1, 2), completion, Grade(None, {}, "the grader ran out of time"))
    return Rollout((1, 2), completion, Grade(accuracy + 0.125, {"accuracy": accuracy, "format": 0.125}))


def group(question: str, *rollouts: Rollout, task: str = "countdown-3") -> Group:
    return Group(Problem(task, (Message("user", question),), "24"), rollouts)


def commit_step(home: Home, key: str, step: int, groups: Sequence[Group], metrics: dict[str, float]) -> None:
    digest = home.objects.put(lambda directory: write_groups(directory / "groups.parquet", groups))
    home.ledger.commit_step(key, step, digest)
    home.ledger.record_metrics(key, step, metrics)


def report(home: Home, directory: Path, data: dict[str, Any]) -> str:
    directory.mkdir(exist_ok=True)
    write_report(directory, home, data, {stage["name"]: stage["key"] for stage in data["stages"]})
    return (directory / "report.html").read_text(encoding="utf-8")


def test_stages_whose_bits_can_not_be_promised_are_named(home: Home, tmp_path: Path) -> None:
    asked = [stage("samples", "collect", repeatable=False), stage("data", "curate", repeatable=False)]
    page = Page(report(home, tmp_path / "run", summary(stage("zero", "rl"), *asked)))
    assert "can’t promise the same bits when it is run again: samples, data asked a model behind a server" in page.text
    assert "same bits" not in Page(report(home, tmp_path / "run", summary(stage("zero", "rl")))).text


@pytest.fixture
def trained(home: Home) -> dict[str, Any]:
    """A run with a loss curve, three RL steps and an evaluation before and after."""
    for step in range(3):
        home.ledger.record_metrics("key-base", step, {"loss/ce": 3.0 - step})
    early = group("make 24 early", rollout("<answer>8 * 3</answer>", 5, 1.0), rollout("<answer>8</answer>", 3, 0.0))
    middle = group("make 24 in between", rollout("<answer>8 * 3</answer>", 5, 1.0))
    late = group("make 24 late", rollout("<think>so</think><answer>3 * 8</answer>", 9, 1.0))
    for step, shown in enumerate([early, middle, late]):
        lengths = {"length/response": 20.0 + step, "length/thinking": 10.0 + step}
        rewards = {"reward/mean": 0.1 * step, "reward/accuracy": 0.1 * step, "reward/format": 0.5}
        commit_step(home, "key-zero", step, [shown], {**rewards, **lengths, "groups/flat": 0.25})
    return before_and_after()


def test_the_page_is_balanced_and_needs_nothing_from_outside(
    home: Home, tmp_path: Path, trained: dict[str, Any]
) -> None:
    html = report(home, tmp_path / "run", trained)
    page = Page(html)
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    for outside in ("http://", "https://", "url(//", "@import", " src="):
        assert outside not in html


def test_the_page_does_without_the_examples_of_a_step_whose_groups_were_deleted(
    home: Home, tmp_path: Path, trained: dict[str, Any]
) -> None:
    home.objects.delete(str(home.ledger.step_groups("key-zero", 2)))
    text = Page(report(home, tmp_path / "run", trained)).text
    assert "make 24 early" in text
    assert "make 24 in between" in text
    assert "make 24 late" not in text


def test_the_page_tells_the_facts_of_the_run_and_of_its_stages(
    home: Home, tmp_path: Path, trained: dict[str, Any]
) -> None:
    text = Page(report(home, tmp_path / "run", trained)).text
    assert text.count("tiny-zero") == 2  # the title of the window and of the page
    # 30 + 30 + 42 + 30 seconds
    assert "seed 17 time 2m12s tokens 114,004,500 machine a <small> machine threads 2" in text
    assert "reasonmill 0.1.0 torch 2.13.0 transformers 5.23.0" in text
    assert "base pretrain 30s 114,000,000 feedc0ffee00 cached" in text
    assert "zero rl 42s 1,500 0123456789ab" in text


def test_the_table_holds_each_model_in_the_order_of_the_recipe(
    home: Home, tmp_path: Path, trained: dict[str, Any]
) -> None:
    text = Page(report(home, tmp_path / "run", trained)).text
    table = text[text.index("Task by task") : text.index("Stages", text.index("Task by task"))]
    assert table.strip() == (
        "Task by task base eval-base zero eval-zero countdown-3 500 problems × 4 samples, seed 0 "
        "pass@1 13.5% 11.4–15.6 63.1% 61.0–65.2 "
        "format 71.0% 70.0–72.0 – "
        "thinking tokens 11.2 8.1–14.3 118 115–122"
    )


def test_rollouts_of_the_first_and_the_last_step_are_shown(home: Home, tmp_path: Path, trained: dict[str, Any]) -> None:
    page = Page(report(home, tmp_path / "run", trained))
    assert "Rollouts of step 0" in page.text
    assert "make 24 early correct · reward 1.12 (accuracy 1.00, format 0.12) · 5 tokens" in page.text
    assert "wrong · reward 0.12 (accuracy 0.00, format 0.12) · 3 tokens" in page.text
    assert "Rollouts of step 2 countdown-3 make 24 late" in page.text
    assert "in between" not in page.text
    assert page.within("span.thinking") == ["<think>so</think>"]


def test_what_a_model_wrote_is_escaped(home: Home, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    nasty = group(attack + "?", rollout(attack + "</pre>", 3, 0.0), task=attack)
    commit_step(home, "key-zero", 0, [nasty], {"reward/mean": 0.0})
    html = report(home, tmp_path / "run", summary(stage("zero", "rl")))
    page = Page(html)
    assert "<script" not in html
    assert page.text.count(attack) == 3


def test_the_same_data_gives_the_same_bytes(home: Home, tmp_path: Path, trained: dict[str, Any]) -> None:
    assert report(home, tmp_path / "run", trained) == report(home, tmp_path / "again", trained)


def test_a_run_without_evaluation_has_no_table(home: Home, tmp_path: Path) -> None:
    home.ledger.record_metrics("key-zero", 0, {"reward/mean": 0.5})
    page = Page(report(home, tmp_path / "run", summary(stage("zero", "rl"))))
    assert "Before and after" not in page.text
    assert page.tags.count("svg") == 1


def test_a_run_without_training_has_no_charts(home: Home, tmp_path: Path) -> None:
    metrics = evaluation(figure(0.5, 0.4, 0.6))
    page = Page(report(home, tmp_path / "run", summary(evaluating("eval", "base", metrics))))
    assert "svg" not in page.tags
    assert "50.0%" in page.text


@pytest.mark.parametrize(
    ("metrics", "title", "legend"),
    [
        ({"reward/helpfulness": 0.7, "reward/safety": 0.9}, "Preference rewards", ["helpfulness", "safety"]),
        ({"reward/safety": 0.9}, "Preference rewards", ["safety"]),
        ({"policy/kl": 0.01}, "KL to the reference", []),
        ({"loss/kl": 0.4}, "KL to the teacher", []),
        ({"loss/pairwise": 0.69}, "Loss", ["of pairs"]),
        ({"loss/pointwise": 0.69}, "Loss", ["of responses"]),
        ({"groups/ungraded": 0.1}, None, []),
    ],
)
def test_a_stage_has_the_charts_of_what_it_recorded(
    home: Home, tmp_path: Path, metrics: dict[str, float], title: str | None, legend: list[str]
) -> None:
    for step in range(2):
        home.ledger.record_metrics("key-r1", step, metrics)
    html = report(home, tmp_path / "run", summary(stage("r1", "rl")))
    assert re.findall(r'role="img" aria-label="([^"]*)"', html) == ([title] if title else [])
    assert Page(html).within("span.key") == legend


def test_preference_rewards_are_drawn_from_the_step_that_has_them(home: Home, tmp_path: Path) -> None:
    for step in range(8):
        preferences = {"reward/helpfulness": 0.5 + 0.05 * step} if step >= 6 else {}
        home.ledger.record_metrics("key-r1", step, {"reward/mean": 0.5, **preferences})
    page = Page(report(home, tmp_path / "run", summary(stage("r1", "rl"))))
    assert page.tags.count("svg") == 2
    assert "Preference rewards" in page.text


def test_a_figure_of_one_problem_has_no_interval(home: Home, tmp_path: Path) -> None:
    metrics = evaluation({"value": 0.5, "low": None, "high": None})
    page = Page(report(home, tmp_path / "run", summary(evaluating("eval", "base", metrics))))
    assert "50.0%" in page.text
    assert "50.0–" not in page.text
    assert "None" not in page.text


def test_models_that_were_not_evaluated_on_a_task_have_gaps(home: Home, tmp_path: Path) -> None:
    first = evaluating("eval-a", "base", evaluation(figure(0.5, 0.4, 0.6)))
    other = evaluating("eval-b", "base", evaluation(figure(0.25, 0.2, 0.3), task="arithmetic"))
    text = Page(report(home, tmp_path / "run", summary(first, other))).text
    assert "pass@1 50.0% 40.0–60.0 – arithmetic" in text
    assert "pass@1 – 25.0% 20.0–30.0" in text


def test_problems_with_right_and_wrong_attempts_and_each_task_come_first(home: Home, tmp_path: Path) -> None:
    right, wrong = rollout("yes", 2, 1.0), rollout("no", 2, 0.0)
    groups = [
        group("flat", wrong, wrong),
        group("first", right, wrong),
        group("second", right, wrong),
        group("third", right, wrong),
        group("other task", right, wrong, task="arithmetic"),
    ]
    commit_step(home, "key-zero", 0, groups, {"reward/mean": 0.5})
    page = Page(report(home, tmp_path / "run", summary(stage("zero", "rl"))))
    assert page.within("p.prompt") == ["first", "other task", "second"]


def test_the_attempts_shown_are_those_of_median_length(home: Home, tmp_path: Path) -> None:
    lengths = [9, 30, 4, 8, 5]
    right = [rollout(f"right {length}", length, 1.0) for length in lengths]
    wrong = [rollout("wrong 6", 6, 0.0, "length"), rollout("wrong 2", 2, 0.0), rollout("ungraded", 1, None)]
    commit_step(home, "key-zero", 0, [group("make 24", *right, *wrong)], {"reward/mean": 0.5})
    page = Page(report(home, tmp_path / "run", summary(stage("zero", "rl"))))
    assert page.within("pre.") == ["right 8", "wrong 2"]


def test_an_attempt_that_could_not_be_graded_says_why(home: Home, tmp_path: Path) -> None:
    commit_step(home, "key-zero", 0, [group("make 24", rollout("hm", 1, None, "length"))], {"groups/flat": 1.0})
    text = Page(report(home, tmp_path / "run", summary(stage("zero", "rl")))).text
    assert "not graded · reward the grader ran out of time · 1 tokens, cut off" in text


def test_long_curves_are_smoothed_and_say_so(home: Home, tmp_path: Path) -> None:
    for step in range(80):
        home.ledger.record_metrics("key-base", step, {"loss/ce": 1.0 / (1 + step)})
    text = Page(report(home, tmp_path / "run", summary(stage("base", "pretrain")))).text
    assert "Bold: mean over 5 steps." in text  # 80 // 40 on either side


def test_a_curve_without_finite_values_is_not_drawn(home: Home, tmp_path: Path) -> None:
    home.ledger.record_metrics("key-base", 0, {"loss/ce": float("nan"), "reward/mean": float("inf")})
    home.ledger.record_metrics("key-base", 1, {"loss/ce": float("nan"), "reward/mean": 1.0})
    page = Page(report(home, tmp_path / "run", summary(stage("base", "pretrain"))))
    assert page.within("b.") == ["Reward"]


def test_all_turns_of_an_episode_are_shown_with_what_the_environment_said(home: Home, tmp_path: Path) -> None:
    completion = Completion(
        (7,) * 5, (-0.5, 0.0, -0.5, -0.5, -0.5), (True, False, True, True, True), "<think>oh</think>8 * 3", "stop", 0
    )
    reply = Reply(1, 2, "<think>hm</think>8 + <3", (Message("user", "no & again"), Message("tool", "11")))
    two_turns = Rollout((1, 2), completion, Grade(1.0, {"accuracy": 1.0}), (reply,))
    commit_step(home, "key-again", 0, [group("make 24", two_turns, rollout("8", 3, 0.0))], {"reward/mean": 0.5})
    page = Page(report(home, tmp_path / "run", summary(stage("again", "rl"))))
    assert page.within("span.thinking") == ["<think>hm</think>", "<think>oh</think>"]
    assert page.within("p.answer") == ["no & again", "11"]
    assert "<think>hm</think> 8 + <3 user: no & again tool: 11 <think>oh</think> 8 * 3" in page.text
    assert "4 tokens" in page.text  # the environment's are not counted


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("", []),
        ("4 + 4", [(False, "4 + 4")]),
        ("<think>a</think>b", [(True, "<think>a</think>"), (False, "b")]),
        ("b<think>a", [(False, "b"), (True, "<think>a")]),
        ("a</think>b", [(True, "<think>a</think>"), (False, "b")]),
        ("<think>a</think>b</think>", [(True, "<think>a</think>"), (False, "b</think>")]),
    ],
)
def test_thinking_is_told_from_the_answer(text: str, spans: list[tuple[bool, str]]) -> None:
    assert thinking_spans(text) == spans


def test_the_page_says_why_a_gate_decided(home: Home, tmp_path: Path) -> None:
    verdict = stage("gate", "gate", metrics={"promoted": False, "reasons": ["reasoning is worse"]})
    text = Page(report(home, tmp_path / "run", summary(verdict))).text
    assert "gate refused reasoning is worse" in text
