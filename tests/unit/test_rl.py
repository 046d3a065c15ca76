"""The `rl` stage: what a step draws, leaves out and learns from, what ratios are against, and exact resume."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from contexts import a_context
from kept_progress import KeptProgress, Killed
from reasonmill.algo.examples import minibatches, soft_overlong
from reasonmill.algo.losses import LossSettings
from reasonmill.algo.packing import Batch
from reasonmill.errors import SamplerMismatch
from reasonmill.learn.local import LocalLearner
from reasonmill.learn.scoring import refuse_mismatch, with_old_logprobs
from reasonmill.recipe.reference import model_directory
from reasonmill.stage import Input
from reasonmill.stages.rl import Settings, run
from reasonmill.store.accounts import misaccounts
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.types import Example, Group
from tiny_models import tiny_decoder

Passes = list[tuple[Batch, float, dict[str, float]]]
GIVEN: dict[str, Any] = {
    "name": "zero",
    "kind": "rl",
    "from": "tiny-base-weak",
    "steps": 1,
    "problems_per_step": 4,
    "group_size": 2,
    "rewards": {"random": 1.0},
    "schedule": {"peak": 1e-3},
    "tasks": {"arithmetic": 1.0},
    "sampling": {"max_tokens": 6},
}


def settings(**changes: Any) -> Settings:
    return Settings.model_validate({**GIVEN, **changes})


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Each batch that is trained on, the denominator of its update, and what came of it."""
    seen: Passes = []
    learn = LocalLearner.forward_backward

    def noted(self: LocalLearner, batch: Batch, loss: LossSettings, denominator: float) -> dict[str, float]:
        found = learn(self, batch, loss, denominator)
        seen.append((batch, denominator, found))
        return found

    monkeypatch.setattr(LocalLearner, "forward_backward", noted)
    return seen


def train(home: Home, progress: KeptProgress | None = None, *, key: str = "k", **changes: Any) -> dict[str, Any]:
    """The metrics of the last step."""
    inputs = {"from": Input(model_directory("tiny-base-weak"), "digest")}
    run(settings(**changes), inputs, a_context(home, progress, key=key))
    assert list(misaccounts(home.ledger, home.objects)) == []
    return home.ledger.metrics(key)[-1]


def groups_of(home: Home, step: int = 0, key: str = "k") -> list[Group]:
    return read_groups(home.objects.path(str(home.ledger.step_groups(key, step))) / GROUPS_FILE)


def fates(metrics: dict[str, Any]) -> dict[str, int]:
    return {name.removeprefix("rollouts/"): int(n) for name, n in metrics.items() if name.startswith("rollouts/")}


# Mini-batches


def some_examples(count: int) -> list[Example]:
    return [Example([1, place], [0.0, 1.0], "ce") for place in range(count)]


@pytest.mark.parametrize(("count", "parts"), [(8, 4), (7, 3), (2, 4), (0, 3), (512, 16)])
def test_mini_batches_are_equal_and_hold_everything_once(count: int, parts: int) -> None:
    examples = some_examples(count)
    drawn = minibatches(examples, parts, (0, "zero", 5))
    assert len(drawn) == min(count, parts)
    assert sorted(id(e) for part in drawn for e in part) == sorted(map(id, examples))
    assert max(map(len, drawn), default=0) - min(map(len, drawn), default=0) <= (count % parts != 0)


def test_mini_batches_are_drawn_by_the_name_of_the_step_alone() -> None:
    def places(*noise: int | str) -> list[list[int]]:
        return [[int(e.tokens[1]) for e in part] for part in minibatches(some_examples(16), 4, noise)]

    assert places(0, "zero", 5) == places(0, "zero", 5)
    assert len({str(places(seed, name, step)) for seed in (0, 1) for name in ("a", "b") for step in (0, 1)}) == 8
    # Attempts at one problem do not stay together, as they would in runs of groups.
    assert any(max(part) - min(part) > 4 for part in places(0, "zero", 5))
    assert all(part == sorted(part) for part in places(0, "zero", 5))


def test_a_step_takes_its_updates_each_on_as_many_rollouts(home: Home, passes: Passes) -> None:
    """`grpo` divides by completions: all of them, those of flat groups too."""
    metrics = train(home, updates_per_step=4, loss={"algorithm": "grpo", "kl_coefficient": 0.1})
    assert [len(batch.lengths) for batch, *_ in passes] == [2, 2, 2, 2]
    assert [divisor for _, divisor, _ in passes] == [2.0] * 4
    flat = sum(group.is_flat for group in groups_of(home))
    assert 0 < flat < 4
    without = [not batch.advantages[batch.sequence == i].any() for batch, *_ in passes for i in range(2)]  # type: ignore[index]
    assert sum(without) == 2 * flat
    assert fates(metrics) == {"dispatched": 8, "trained": 8, "ungraded": 0, "invalid": 0, "stale": 0, "aborted": 0}


# What is left out, and drawn in its place


def test_flat_groups_are_dropped_by_setting(home: Home) -> None:
    found = fates(train(home, flat_groups="drop"))
    flat = sum(group.is_flat for group in groups_of(home))
    assert 0 < flat < 4
    assert (found["dispatched"], found["flat"], found["trained"]) == (8, 2 * flat, 8 - 2 * flat)


def test_flat_groups_are_replaced_until_the_batch_is_full(home: Home) -> None:
    found = fates(train(home, flat_groups="refill", updates_per_step=2))
    groups = groups_of(home)
    assert sum(not group.is_flat for group in groups) == 4
    assert not groups[-1].is_flat or not groups[-2].is_flat  # nothing is drawn behind the last that was wanted
    assert found["trained"] == 8
    assert found["dispatched"] == 2 * len(groups) == 8 + found["flat"] > 8
    assert len({group.problem.id for group in groups}) == len(groups)
    # The first groups are those that are drawn without a refill.
    train(home, key="plain")
    assert groups_of(home, key="plain") == groups[:4]


def test_a_refill_ends_at_its_limit(home: Home) -> None:
    """Nothing has a right answer here, so that all groups are flat."""
    metrics = train(home, flat_groups="refill", refill_limit=1.5, rewards={"accuracy": 1.0}, sampling={"max_tokens": 1})
    assert fates(metrics) == {**dict.fromkeys(fates(metrics), 0), "dispatched": 12, "flat": 12}


@pytest.mark.parametrize("lora", [None, pytest.param({"rank": 4}, marks=pytest.mark.check)])
def test_a_killed_run_with_refills_and_scores_ends_with_the_same_bits(home: Home, lora: object) -> None:
    changes: dict[str, Any] = {"steps": 2, "flat_groups": "refill", "updates_per_step": 2, "lora": lora}
    changes["loss"] = {"algorithm": "dapo", "kl_coefficient": 0.1, "correction": {"level": "token", "rule": "truncate"}}
    whole = train(home, key="whole", **changes)
    with pytest.raises(Killed):
        train(home, KeptProgress(kill_at=1), key="cut", **changes)
    cut = train(home, key="cut", **changes)
    assert home.ledger.steps("cut") == home.ledger.steps("whole")
    same = {name for name in whole if not name.startswith("speed/")}
    assert {name: cut[name] for name in same} == {name: whole[name] for name in same}


def test_what_was_cut_off_is_left_out_but_counts_for_its_group(home: Home) -> None:
    metrics = train(home, drop_overlong=True, rewards={"random": 1.0}, sampling={"max_tokens": 12})
    cut = sum(r.completion.finish == "length" for group in groups_of(home) for r in group.rollouts)
    found = fates(metrics)
    assert cut > 0
    assert (found["overlong"], found["trained"]) == (cut, 8 - cut)


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (16_384, 0.0), (18_432, -0.5), (20_479, -4095 / 4096), (20_480, -1.0)]
)
def test_the_soft_punishment_is_daposs(length: int, expected: float) -> None:
    """L_max 20,480 and L_cache 4,096, as published."""
    assert soft_overlong(length, 20_480, 4096) == pytest.approx(expected, abs=1e-12)


def test_the_soft_punishment_is_a_part_of_the_reward(home: Home) -> None:
    train(home, soft_overlong=4)
    rollouts = [rollout for group in groups_of(home) for rollout in group.rollouts]
    assert len({len(rollout.completion.tokens) for rollout in rollouts}) > 1
    for rollout in rollouts:
        part = soft_overlong(len(rollout.completion.tokens), 6, 4)
        assert rollout.grade.parts["overlong"] == part
        assert rollout.grade.reward == rollout.grade.parts["random"] + part


def test_rewards_can_be_normalised_one_by_one(home: Home, passes: Passes) -> None:
    """Nothing is right, which adds nothing; the other reward is normalised over its group, then over the step."""
    train(home, rewards={"random": 0.1, "accuracy": 9.0}, loss={"advantage": "per_reward"})
    ((batch, _, _),) = passes
    assert batch.advantages is not None
    found = sorted(set(batch.advantages[batch.weights > 0].tolist()))
    mixed = sum(not group.is_flat for group in groups_of(home)) / 4
    assert found == pytest.approx([-(mixed**-0.5), 0.0, mixed**-0.5])


# Sampler and learner


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4}, "steps": 2, "loss": {"kl_coefficient": 0.1}}])
def test_in_fp32_the_samplers_log_probs_are_the_learners(home: Home, passes: Passes, changes: dict[str, Any]) -> None:
    metrics = train(home, **changes)
    assert passes[0][0].old_logprobs is None
    assert 0 < metrics["mismatch/mean"] <= metrics["mismatch/max"] < 1e-4
    assert metrics["mismatch/outside"] == 0.0


def test_products_of_fewer_bits_are_not_fp32() -> None:
    decoder = tiny_decoder()
    before = torch.get_float32_matmul_precision()
    assert decoder.in_fp32
    try:
        torch.set_float32_matmul_precision("high")
        assert not decoder.in_fp32
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "changes",
    [{"old_policy": "learner"}, {"precision": "bf16"}, {"loss": {"correction": {"level": "token", "rule": "band"}}}],
)
def test_otherwise_the_learner_scores_what_was_sampled(home: Home, passes: Passes, changes: dict[str, Any]) -> None:
    metrics = train(home, **changes)
    ((batch, _, _),) = passes
    assert batch.old_logprobs is not None
    assert batch.sampler_logprobs is not None
    trained = batch.weights > 0
    apart = (batch.old_logprobs - batch.sampler_logprobs)[trained].abs()
    assert metrics["mismatch/mean"] == pytest.approx(float(apart.mean()), rel=1e-4)
    assert metrics["mismatch/max"] == pytest.approx(float(apart.max()), rel=1e-4)


def test_the_samplers_log_probs_can_be_asked_for(home: Home, passes: Passes) -> None:
    metrics = train(home, precision="bf16", old_policy="sampler")
    assert passes[0][0].old_logprobs is None
    assert metrics["mismatch/mean"] > 0


def test_before_any_update_no_ratio_is_off_1(home: Home, passes: Passes) -> None:
    """Each mini-batch is scored in the batches that it is trained in. The sampler adds up in another order."""
    changes = {"updates_per_step": 2, "tokens_per_batch": 64, "sampling": {"max_tokens": 20}}
    tight = {"algorithm": "gspo", "clip_low": 1e-7, "clip_high": 1e-7}
    train(home, loss=tight, old_policy="learner", **changes)
    train(home, loss=tight, key="drawn", old_policy="sampler", **changes)
    first = {id(batch): found["policy/clipped"] for batch, _, found in passes}
    assert first[id(passes[0][0])] == 0.0
    of_sampler = next(found for batch, _, found in passes if batch.old_logprobs is None)
    assert of_sampler["policy/clipped"] > 0.0


def test_a_mismatch_beyond_the_bound_stops_the_run_before_it_learns(home: Home, passes: Passes) -> None:
    with pytest.raises(SamplerMismatch, match=r"in step 0, and at most by .*; 1e-09 are allowed") as caught:
        train(home, max_mismatch=1e-9)
    assert caught.value.exit_code == 8
    assert passes == []
    assert home.ledger.metrics("k") == []


class _Learner:
    """Gives every token the same log-prob."""

    def __init__(self, logprob: float) -> None:
        self.logprob = logprob
        self.positions = 0

    def logprobs(self, batch: Batch) -> torch.Tensor:
        self.positions += batch.num_tokens
        return torch.full((batch.num_tokens,), self.logprob)


def drawn_examples(count: int) -> list[Example]:
    rows: dict[str, Any] = {"advantages": [0.0] * 5, "sampler_logprobs": [0.0, -1.0, -1.0, -1.0, -1.0]}
    return [Example([1, 2, 3, 4, 5], [0.0, 1.0, 1.0, 1.0, 1.0], "pg", **rows) for _ in range(count)]


def scored_by(learner: _Learner, parts: Sequence[Sequence[Example]], **changes: Any) -> Any:
    given = {"as_drawn": True, "step": 3, "bound": 0.1, "tokens_per_batch": 64, "noise": (0,)}
    return with_old_logprobs(learner, parts, **{**given, **changes})  # type: ignore[arg-type]


def test_where_nothing_has_to_be_scored_one_batch_is_measured() -> None:
    learner = _Learner(-1.05)
    parts, measured = scored_by(learner, [drawn_examples(50), drawn_examples(50)])
    assert 0 < learner.positions <= 64
    assert measured["mismatch/mean"] == pytest.approx(0.05, abs=1e-6)
    assert all(example.old_logprobs is None for part in parts for example in part)
    with pytest.raises(SamplerMismatch):
        scored_by(_Learner(-1.2), [drawn_examples(50)])
    learner = _Learner(-1.05)
    parts, _ = scored_by(learner, [drawn_examples(50), [], drawn_examples(50)], as_drawn=False)
    assert learner.positions == 400
    assert [len(part) for part in parts] == [50, 0, 50]


def test_nothing_to_score_and_nothing_finite_stop_no_run() -> None:
    """What is not finite is skipped and counted by the learner."""
    assert scored_by(_Learner(-1.0), [], as_drawn=False) == ([], {})
    _, measured = scored_by(_Learner(float("nan")), [drawn_examples(2)], as_drawn=False)
    refuse_mismatch(measured, 0, 1e-9)


# Settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"updates_per_step": 3}, "updates_per_step must divide the 8 rollouts"),
        ({"refill_limit": 2.0}, "refill_limit has no effect"),
        ({"flat_groups": "refill", "refill_limit": 1.0}, "refill_limit"),
        ({"flat_groups": "drop", "loss": {"advantage": "per_reward"}}, "use flat_groups = 'keep'"),
        ({"old_policy": "sampler", "loss": {"correction": {"level": "token", "rule": "band"}}}, "has no effect where"),
        ({"lora": {}, "reference_every": 5}, "reference_every has no effect with lora"),
        ({"reference_every": 5}, "reference_every has no effect without a loss.kl_coefficient"),
        ({"soft_overlong": 7}, "soft_overlong must be at most sampling.max_tokens, which is 6"),
    ],
)
def test_settings_without_sense_or_effect_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        settings(**changes)


def test_the_preset_is_the_papers_objective() -> None:
    given = {key: GIVEN[key] for key in ("name", "kind", "from", "tasks", "rewards")}
    filled = Settings.model_validate({**given, "preset": "r1"})
    assert (filled.problems_per_step, filled.group_size, filled.updates_per_step) == (512, 16, 16)
    assert filled.loss.constants == {"clip_low": 10.0, "clip_high": 10.0, "dual_clip": None}
    assert (filled.loss.kl_coefficient, filled.loss.normalisation) == (0.001, "sequence")
    assert (filled.flat_groups, filled.schedule.peak, filled.reference_every) == ("keep", 3e-6, 25)
    assert (
        Settings.model_validate({**given, "preset": "r1", "lora": {}}).steps == 650
    )  # without what has no effect there
    assert Settings.model_validate({**given, "preset": "r1", "loss": {"kl_coefficient": 0}}).loss.kl_coefficient == 0
    other = Settings.model_validate({**given, "preset": "r1", "loss": {"algorithm": "gspo"}})
    assert (other.loss.constants["clip_high"], other.loss.kl_coefficient) == (4e-4, 0.001)
