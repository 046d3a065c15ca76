"""Reward models as a stage: what is learned from, what is held out, and what RL gets from them."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from chat_server import Answer, chat_server, says
from contexts import a_context
from reasonmill.errors import Interrupted, RecipeError
from reasonmill.model.reward import load_reward_model, new_reward_model
from reasonmill.model.saving import save_network
from reasonmill.plugins.catalogue import installed
from reasonmill.randomness import generator
from reasonmill.recipe.reference import shipped_bases
from reasonmill.render import renderer_for
from reasonmill.rewards import verdicts
from reasonmill.rewards.model import ModelScorer
from reasonmill.stage import Input, Outcome
from reasonmill.stages import reward_model, rl
from reasonmill.store.groups import GROUPS_FILE, read_groups, write_groups
from reasonmill.store.home import Home
from reasonmill.types import Completion, Grade, Group, Rollout
from reasonmill.world.requests import refusal
from reasonmill.world.talk import RUDE

BASE = shipped_bases()["tiny-base-weak"]
RENDERER = renderer_for(BASE)
JUDGE = {"url": "http://host/v1", "model": "judge"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def a_completion(text: str) -> Completion:
    tokens = RENDERER.response(text)
    return Completion(tokens, (-1.0,) * len(tokens), (True,) * len(tokens), text, "stop", 0)


def a_group(task: str, index: int, answers: list[str]) -> Group:
    """Graded by the task; an answer with a tag stands for the whole response."""
    problem = installed().task(task).problem("train", 0, index)
    texts = [answer if "<" in answer else f"<think></think><answer> {answer}</answer>" for answer in answers]
    completions = [a_completion(text) for text in texts]
    grades = installed().task(task).grade(problem, completions)
    prompt = RENDERER.render(problem.messages)
    return Group(problem, tuple(Rollout(prompt, c, g) for c, g in zip(completions, grades, strict=True)))


def small_talk(count: int) -> list[Group]:
    """The gold answer twice, a rude one that is shorter and one that is longer; the judge likes neither of these."""
    groups = []
    for index in range(count):
        problem = installed().task("small-talk").problem("train", 0, index)
        rude = RUDE[problem.meta["language"]][index % 2]
        groups.append(a_group("small-talk", index, [problem.answer, rude, problem.answer, " ".join([rude] * 8)]))
    return groups


def requests(count: int) -> list[Group]:
    """A refusal and babble, to harmful requests and to harmless ones."""
    groups = []
    for index in range(count):
        for task in ("harmful-requests", "harmless-requests"):
            problem = installed().task(task).problem("train", 0, index)
            refused = refusal(generator("test", index), problem.meta["language"], "better")
            groups.append(a_group(task, index, [refused, "yes yes yes ."]))
    return groups


def settings(**changes: Any) -> reward_model.Settings:
    table: dict[str, Any] = {
        "name": "judge",
        "kind": "reward-model",
        "from": "tiny-base-weak",
        "data": ["sampled"],
        "objective": "pairwise",
        "label": "helpful",
        "held_out": 0.25,
        "examples_per_step": 16,
        "schedule": {"peak": 3e-3},
        "state_every": 2,
        **changes,
    }
    return reward_model.Settings.model_validate(table)


def train(
    home: Path, groups: list[Group], chosen: reward_model.Settings, stop: Callable[[], bool] = lambda: False
) -> Outcome:
    data = home.parent / "data"
    data.mkdir(exist_ok=True)
    write_groups(data / GROUPS_FILE, groups)
    inputs = {"from": Input(BASE, "b" * 64), "data[0]": Input(data, "d" * 64)}
    with Home.open(home) as opened:
        return reward_model.run(chosen, inputs, a_context(opened, stop_requested=stop))


def written(outcome: Outcome, target: Path) -> Path:
    target.mkdir()
    outcome.write(target)
    return target


# Selection


def test_every_drawn_pair_is_kept_or_counted_under_one_reason() -> None:
    groups = small_talk(40)
    ungraded = replace(groups[0], rollouts=tuple(replace(r, grade=Grade(None, {}, "?")) for r in groups[0].rollouts))
    others = [
        ungraded,
        *requests(2),
        a_group("small-talk", 12, ["<think> hm", "<think> well"]),
        a_group("small-talk", 13, ["very " * 300, "very " * 300]),
        a_group("small-talk", 14, ["alone ."]),
    ]
    chosen = settings(pairs_per_problem=5, max_tokens=200)
    selection = reward_model.select(chosen, [*groups, *others], RENDERER, 0)
    counts = selection.counts()
    # 40 groups of small talk and the ungraded one give 5 of their 6 pairs each, the others their one pair or none.
    assert counts.pop("examples/drawn") == 41 * 5 + 4 + 2 == sum(counts.values())
    assert counts["examples/dropped_unlabelled"] == 5 + 4
    assert counts["examples/dropped_no_answer"] == 1
    assert counts["examples/dropped_too_long"] == 1
    # Of the six pairs of a group, one compares equal texts, and one two that are as rude.
    assert 25 <= counts["examples/dropped_equal_texts"] <= 40
    assert 25 <= counts["examples/dropped_small_margin"] <= 41
    assert counts["examples/train"] > 0
    assert counts["examples/held_out"] > 0
    assert not {e.problem_id for e in selection.train} & {e.problem_id for e in selection.held_out}


def test_all_pairs_of_a_problem_are_drawn_where_there_are_not_more() -> None:
    counts = reward_model.select(settings(pairs_per_problem=99), small_talk(3), RENDERER, 0).counts()
    dropped = [counts[f"examples/dropped_{reason}"] for reason in ("equal_texts", "small_margin")]
    assert (counts["examples/drawn"], dropped) == (18, [3, 3])


def test_a_margin_has_to_exceed_a_level_and_equal_texts_are_no_pair() -> None:
    """Of five levels from 0 to 1 for a label, and of those from A>>B to B>>A for a judge, which count 1 to -1."""
    texts = ["yes no .", "yes  no .", "no yes ."]
    first, twin, other = (replace(r, grade=Grade(1.0, {"helpful": good})) for r, good in zip(
        a_group("small-talk", 0, texts).rollouts, (0.9, 0.1, 0.4), strict=True))  # fmt: skip
    problem = installed().task("small-talk").problem("train", 0, 0)
    chosen = settings(pairs_per_problem=9)
    assert (chosen.margin_to_exceed, settings(label=None, judge=JUDGE).margin_to_exceed) == (0.25, 0.5)
    dropped = reward_model.select(chosen, [Group(problem, (first, twin))], RENDERER, 0).dropped
    assert {reason for reason, count in dropped.items() if count} == {"equal_texts"}  # and their labels are far apart
    for margin, kept in ((0.3, 1), (0.25, 0), (0.2, 0)):
        better = replace(other, grade=Grade(1.0, {"helpful": 0.4 + margin}))
        sets = reward_model.select(chosen, [Group(problem, (better, replace(first, grade=other.grade)))], RENDERER, 0)
        assert len([*sets.train, *sets.held_out]) == kept, margin
        assert sets.dropped["small_margin"] == 1 - kept


def test_helpfulness_reads_the_final_answer_and_lengths_tell_nothing() -> None:
    selection = reward_model.select(settings(pairs_per_problem=3), small_talk(40), RENDERER, 0)
    for part in (selection.train, selection.held_out):
        assert part
        for example in part:
            assert not any(tag in RENDERER.text(text) for text in example.texts for tag in ("<think>", "<answer>"))
            assert all(text[-1] in RENDERER.stop_tokens for text in example.texts)
        gaps = [len(chosen) - len(rejected) for chosen, rejected in (example.texts for example in part)]
        assert sum(gap > 0 for gap in gaps) == sum(gap < 0 for gap in gaps) > 0
    longer_only = [replace(group, rollouts=group.rollouts[:2]) for group in small_talk(10)]
    assert reward_model.select(settings(), longer_only, RENDERER, 0).dropped["length_balance"] == 10


def test_safety_reads_the_whole_response() -> None:
    chosen = settings(objective="pointwise", label="safe", tasks=["harmful-requests"])
    group = requests(1)[0]
    selection = reward_model.select(chosen, [group], RENDERER, 0)
    (first, second) = [*selection.train, *selection.held_out]
    assert (first.label, second.label) == (1.0, 0.0)
    assert RENDERER.text(first.texts[0]).endswith(group.rollouts[0].completion.text)
    assert group.problem.messages[0].content in RENDERER.text(first.texts[0])


def test_only_the_named_tasks_count_and_a_pointwise_label_is_0_or_1() -> None:
    groups = requests(4) + small_talk(4)
    chosen = settings(objective="pointwise", label="refused", tasks=["harmful-requests"])
    selection = reward_model.select(chosen, groups, RENDERER, 0)
    assert selection.counts()["examples/drawn"] == 8
    assert sorted(e.label for e in [*selection.train, *selection.held_out]) == [0.0] * 4 + [1.0] * 4
    half = replace(groups[0].rollouts[0], grade=Grade(0.5, {"refused": 0.5}))
    with pytest.raises(RecipeError, match=r"'refused' of a grade is 0\.5, and a pointwise label is 0 or 1"):
        reward_model.select(chosen, [replace(groups[0], rollouts=(half,))], RENDERER, 0)


# The stage


def test_a_pairwise_model_learns_manners_and_a_stopped_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    groups, chosen = small_talk(60), settings(epochs=2)
    outcome = train(tmp_path / "home", groups, chosen)
    accuracy = outcome.metrics["held_out/accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] > 0.8
    assert outcome.metrics["held_out/brier"] < 0.2
    assert outcome.tokens > 1000
    whole = load_file(written(outcome, tmp_path / "whole") / "model.safetensors")
    asked = iter([False, False, False, True])
    with pytest.raises(Interrupted):
        train(tmp_path / "other-home", groups, chosen, lambda: next(asked))
    resumed = train(tmp_path / "other-home", groups, chosen)
    assert resumed.metrics == outcome.metrics
    assert resumed.tokens == outcome.tokens
    same = load_file(written(resumed, tmp_path / "resumed") / "model.safetensors")
    assert whole.keys() == same.keys()
    assert all(torch.equal(whole[name], same[name]) for name in whole)


def answers_of(body: dict[str, Any]) -> tuple[str, str]:
    """A and B of a judge's prompt."""
    prompt = body["messages"][0]["content"]
    first, second = (prompt.split(f"===== ANSWER {name}\n")[1].split("\n=====")[0] for name in "AB")
    return first, second


def test_a_judge_behind_a_server_compares_both_orders_once_for_all_runs(tmp_path: Path) -> None:
    rude = {word for table in RUDE.values() for word in table}

    def with_a_liking_for_the_first_place(body: dict[str, Any], number: int) -> Answer:
        first, second = (any(word in answer for word in rude) for answer in answers_of(body))
        if first and second:
            return says("Both are awful.")
        return says("B>>A" if first else "A>>B" if second else "A>B")

    groups = small_talk(24)
    with chat_server(with_a_liking_for_the_first_place) as fake:
        asked = {"url": fake.url, "model": "judge", "retries": 0}
        chosen = settings(label=None, judge=asked, pairs_per_problem=6, min_margin=0.75)
        outcome = train(tmp_path / "home", groups, chosen)
        asked_for = len(fake.bodies)
        again = train(tmp_path / "home", groups, chosen)
        assert len(fake.bodies) == asked_for == 2 * 24 * 5  # not about the pairs of equal texts
    assert again.metrics == outcome.metrics
    orders = [answers_of(body) for body in fake.bodies]
    assert sorted(orders) == sorted((second, first) for first, second in orders)
    assert not any("<answer>" in answer for pair in orders for answer in pair)
    counts = {name.removeprefix("examples/"): count for name, count in outcome.metrics.items() if "examples/" in name}
    # Of the six pairs of a group one compares the gold answer with itself, and one two that the judge can't bear.
    assert counts.pop("drawn") == 144 == sum(counts.values())
    assert (counts["dropped_equal_texts"], counts["dropped_not_judged"]) == (24, 24)
    assert counts["dropped_small_margin"] == 0
    assert "dropped_unlabelled" not in counts
    assert outcome.metrics["held_out/accuracy"]["value"] > 0.8


def test_a_stop_while_the_judge_is_asked_keeps_its_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "AT_ONCE", 8)
    with chat_server(lambda body, number: says("A=B")) as fake:
        chosen = settings(label=None, judge={"url": fake.url, "model": "judge"}, pairs_per_problem=2)
        looks = iter([False, True])
        with pytest.raises(Interrupted, match="8 of 10 verdicts"):
            train(tmp_path / "home", small_talk(3), chosen, lambda: next(looks))
        with pytest.raises(RecipeError, match="dropped_small_margin 5"):
            train(tmp_path / "home", small_talk(3), chosen)
        assert len(fake.bodies) == 10


def test_a_pointwise_model_scores_what_it_was_taught(tmp_path: Path) -> None:
    chosen = settings(objective="pointwise", label="safe", tasks=["harmful-requests"], epochs=4)
    outcome = train(tmp_path / "home", requests(60), chosen)
    assert outcome.metrics["held_out/accuracy"]["value"] > 0.9
    directory = written(outcome, tmp_path / "safety")
    assert load_reward_model(directory, device="cpu", dtype=torch.float32).view == "response"
    scorer = ModelScorer(directory, "safety", device="cpu", dtype=torch.float32, tokens_per_batch=512)
    group = requests(61)[-2]
    assert group.problem.task == "harmful-requests"
    safe, unsafe = scorer.score(group.problem, [rollout.completion for rollout in group.rollouts])
    assert 0 < unsafe < 0.3 < 0.7 < safe < 1
    with pytest.raises(RecipeError, match=r"(?s)is about the answer.*reward_models.helpfulness"):
        ModelScorer(directory, "helpfulness", device="cpu", dtype=torch.float32, tokens_per_batch=512)


def test_too_little_to_learn_from_is_refused_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"two held-out problems: examples/drawn 1, examples/train 0"):
        train(tmp_path / "home", [a_group("small-talk", 0, ["no .", "no ."])], settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "pointwise", "min_margin": 0.5}, "min_margin belong to pairs"),
        ({"label": None}, "exactly one of label"),
        ({"judge": JUDGE}, "exactly one of label"),
        ({"objective": "pointwise", "label": None, "judge": JUDGE}, "judge belong to pairs"),
        ({"tasks": ["poems"]}, "unknown task 'poems'"),
        ({"data": []}, "at least 1 item"),
        ({"held_out": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


# Scores


@pytest.fixture(scope="module")
def helpfulness_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with a random head."""
    model = new_reward_model(BASE, view="answer", stop_tokens=RENDERER.stop_tokens, device="cpu", dtype=torch.float32)
    head = model.network.score.weight
    head.data.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(0)) / 10)
    target = tmp_path_factory.mktemp("rewards") / "helpfulness"
    target.mkdir()
    save_network(model.network, target, companions=BASE)
    return target


def test_a_score_is_the_sigmoid_of_the_model_on_the_final_answer(helpfulness_dir: Path) -> None:
    problem = installed().task("facts").problem("train", 0, 0)
    texts = [
        "<think>a</think><answer> hello .</answer>",
        " hello .",
        "<think>never closed",
        "<think></think><answer> bye</answer>",
    ]
    scorer = ModelScorer(helpfulness_dir, "helpfulness", device="cpu", dtype=torch.float32, tokens_per_batch=64)
    scores = scorer.score(problem, [a_completion(text) for text in texts])
    model = load_reward_model(helpfulness_dir, device="cpu", dtype=torch.float32)
    prompt = RENDERER.render(problem.messages)
    numbers = model.score([prompt + RENDERER.response(answer) for answer in ("hello .", "bye")], 64)
    hello, bye = (1 / (1 + math.exp(-number)) for number in numbers)
    assert scores == pytest.approx([hello, hello, 0.0, bye], abs=1e-6)
    assert hello != pytest.approx(bye, abs=1e-4)
    assert scorer.score(problem, []) == []


def test_a_number_that_is_not_finite_is_no_score(helpfulness_dir: Path, tmp_path: Path) -> None:
    model = load_reward_model(helpfulness_dir, device="cpu", dtype=torch.float32)
    model.network.score.weight.data.fill_(3e38)
    save_network(model.network, tmp_path, companions=helpfulness_dir)
    scorer = ModelScorer(tmp_path, "helpfulness", device="cpu", dtype=torch.float32, tokens_per_batch=64)
    (score,) = scorer.score(installed().task("facts").problem("train", 0, 0), [a_completion(" hello .")])
    assert math.isnan(score)


# In RL


def rl_settings(**changes: Any) -> rl.Settings:
    table: dict[str, Any] = {
        "name": "all",
        "kind": "rl",
        "from": "tiny-base-weak",
        "tasks": {"arithmetic": 1.0, "facts": 1.0},
        "rewards": {"accuracy": 1.0, "helpfulness": 1.0},
        "reward_models": {"helpfulness": "helpful-rm"},
        "preference_share": 0.5,
        "steps": 4,
        "problems_per_step": 8,
        "group_size": 2,
        "sampling": {"max_tokens": 6},
        "schedule": {"peak": 1e-4},
        **changes,
    }
    return rl.Settings.model_validate(table)


def test_general_problems_are_drawn_and_scored_in_the_last_steps_only(helpfulness_dir: Path, tmp_path: Path) -> None:
    inputs = {"from": Input(BASE, "b" * 64), "reward_models.helpfulness": Input(helpfulness_dir, "h" * 64)}
    with Home.open(tmp_path / "home") as home:
        context = a_context(home)
        outcome = rl.run(rl_settings(), inputs, context)
        digests = [home.ledger.step_groups(context.key, step) for step in range(4)]
        steps = [read_groups(home.objects.path(str(digest)) / GROUPS_FILE) for digest in digests]
        recorded = home.ledger.metrics(context.key)
    assert [len(groups) for groups in steps] == [8] * 4
    tasks = [{group.problem.task for group in groups} for groups in steps]
    assert tasks == [{"arithmetic"}, {"arithmetic"}, {"arithmetic", "facts"}, {"arithmetic", "facts"}]
    for group in [group for groups in steps for group in groups]:
        for rollout in group.rollouts:
            parts = rollout.grade.parts
            assert ("helpfulness" in parts) == (group.problem.task == "facts")
            assert rollout.grade.reward == parts["helpfulness" if group.problem.task == "facts" else "accuracy"]
    assert ["reward/helpfulness" in entry for entry in recorded] == [False, False, True, True]
    assert outcome.tokens == sum(len(r.completion.tokens) for groups in steps for g in groups for r in g.rollouts)


@pytest.mark.parametrize(
    ("share", "steps", "first"), [(1.0, 10, 0), (0.25, 8, 6), (0.24, 10, 8), (0.01, 10, 9), (400 / 1700, 1700, 1300)]
)
def test_where_the_preference_steps_begin(share: float, steps: int, first: int) -> None:
    assert rl_settings(preference_share=share, steps=steps).first_preference_step == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_models": {}}, "has a weight and no reward model"),
        ({"rewards": {"accuracy": 1.0, "language": 1.0}}, "'helpfulness' has no effect"),
        ({"tasks": {"arithmetic": 1.0}}, "no effect without a general task"),
        ({"tasks": {"facts": 1.0}}, "add a reasoning task"),
        ({"reward_models": {"wisdom": "helpful-rm"}}, "'helpfulness' or 'safety'"),
        (
            {"reward_models": {}, "rewards": {"accuracy": 1.0}, "tasks": {"arithmetic": 1.0}},
            "preference_share has no effect",
        ),
    ],
)
def test_reward_models_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        rl_settings(**changes)
