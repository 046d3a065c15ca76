"""Plans by hand-computed numbers: memory, seconds, lengths and past errors; and measurements against a fake clock."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from reasonmill.mill.model_size import ModelSize
from reasonmill.mill.workload import LIKELY, Workload
from reasonmill.peak_memory import give_back, used_bytes
from reasonmill.planning.costs import Cost, missing, numbers_of, priced, seconds_of, total
from reasonmill.planning.lengths import GROWN, GROWTH, expected_length, guess_of, taught_steps
from reasonmill.planning.memory import Numbers, activation_bytes, at_a_time, peak, what_lowers
from reasonmill.planning.past import past_errors
from reasonmill.planning.probes import Learned, Sampled, line_of, measure_learning, measure_sampling
from reasonmill.protocols import FollowUp
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home
from reasonmill.store.plans import PLANS, KeptPlans, Plan, finish_plan, read_plans, write_plans
from reasonmill.tasks.named import NamedTask
from reasonmill.types import Artifact, Completion, Grade, Message, Problem, Request, SamplingParams
from tiny_models import NumberRenderer

BILLION = ModelSize(1e9, 1e9, 10, 100, 1000)
SAMPLED = Sampled(0.001, 0.01, 0.0001, prompt=20, response=25, longest=50, slot_bytes=None)
LEARNED = Learned(0.002, 0.0005, 0.1, activation_bytes=None)


# Memory


def test_memory_is_that_of_the_fullest_moment() -> None:
    plain = Numbers(1e9, 2, copied=1e9, is_trained=True, sequences=8, longest=120, cached_bytes=2000, row=10_000)
    # Weights and the frozen copy: 2 bytes each; moments and master weights 12, the gradients 4.
    stepping = peak(replace(plain, activation_bytes=34_000))
    assert stepping.parts == {
        "weights": 2e9,
        "frozen copies": 2e9,
        "optimizer": 16e9,  # the denominators of the optimizer's step are 4 bytes, and more than 0.34 GB of activations
        "gradients": 4e9,
        "keys and values": 8 * 120 * 2000,
    }
    passing = peak(replace(plain, activation_bytes=1e6))
    assert passing.total == 2e9 + 2e9 + 12e9 + 4e9 + 8 * 120 * 2000 + 10_000 * 1e6
    assert peak(replace(plain, activation_bytes=1e6, row_bytes=7e6)).total == passing.total + 7e6
    # In fp32 the weights are the masters.
    wide = peak(Numbers(1e9, 4, is_trained=True, row=10, activation_bytes=1.0, process=5.0))
    assert wide.parts == {"process": 5.0, "weights": 4e9, "optimizer": 12e9, "gradients": 4e9}
    # Of an adapter's numbers there are masters, moments and denominators, and gradients; the model has none.
    narrow = peak(Numbers(1e9, 2, is_trained=True, adapter=1e6, row=10, activation_bytes=1.0))
    assert narrow.parts == {"weights": 2e9, "optimizer": 16e6, "gradients": 4e6}


def test_on_a_card_keys_and_values_and_what_learning_takes_are_there_in_turn() -> None:
    card = 64e9
    plain = Numbers(1e9, 2, copied=1e9, is_trained=True, sequences=8, longest=1000, cached_bytes=1e6, row=10_000)
    plain = replace(plain, card=card, spare=500, activation_bytes=1e6)
    held, learning = 2e9 + 2e9 + 12e9, 4e9 + 10_000 * 1e6
    sequence = (1000 + 128) * 1e6
    wanted = 8 * sequence + 500 * 1e6
    assert peak(plain).total == held + max(learning, wanted)
    assert peak(replace(plain, row=1000)).total == held + wanted
    assert at_a_time(plain) == 8
    # What is left of the card beside what stays while it samples, and what else is to be free: a sixteenth.
    many = replace(plain, sequences=100)
    assert peak(many).total == card * 15 / 16
    assert at_a_time(many) == (card * 15 / 16 - held) // sequence
    scored = replace(many, scores=True)
    assert at_a_time(scored) == (card * 15 / 16 - held - learning) // sequence
    # One sequence at least, or it does not run; then fewer slots would not help.
    narrow = replace(many, card=20e9, longest=20_000, row=1000)
    assert at_a_time(narrow) == 1
    assert peak(narrow).total == held + 20_128 * 1e6
    assert what_lowers(peak(narrow), narrow, "s", 20e9, has_slots=True).startswith("lower s.sampling.max_tokens")
    # Of stages that only sample, a share of the card.
    assert peak(replace(many, is_trained=False)).total == 4e9 + 0.4 * card


def test_sampling_takes_what_was_measured_where_that_is_more_than_the_cache() -> None:
    plain = Numbers(10, 4, sequences=2, longest=3, cached_bytes=5)
    assert peak(plain).total == 40 + 2 * 3 * 5
    assert peak(replace(plain, sampling_bytes=7)).total == 40 + 2 * 3 * 7
    assert peak(replace(plain, sampling_bytes=4)).total == 40 + 2 * 3 * 5
    assert peak(replace(plain, sampling_copies=9)).total == 40 + 2 * 3 * 5 + 9


def test_what_is_not_known_of_the_memory_is_said() -> None:
    found = peak(Numbers(1, 4, is_trained=True, sequences=1, cached_bytes=None, row=1, activation_bytes=None))
    assert found.unknown == ("the cache of keys and values", "activations")
    assert activation_bytes(10, None, 2) is None
    assert activation_bytes(10, 100, 2) == 34 * 1000
    assert activation_bytes(10, 100, 4) == 68 * 1000
    assert activation_bytes(10, 100, 2, recompute=True) == (2 * 10 + 34) * 100  # inputs of all layers, and one of them


@pytest.mark.parametrize(
    ("numbers", "available", "fix"),
    [
        # 800 of 1,000 bytes of keys and values are too many by 400 where 600 are free: half of the slots are left.
        (Numbers(50, 4, sequences=8, longest=10, cached_bytes=10), 600, "s.sampling.slots to 4"),
        (Numbers(50, 4, sequences=8, longest=1000, cached_bytes=10), 300, "lower s.sampling.max_tokens"),
        (Numbers(1, 4, is_trained=True, row=200, activation_bytes=10), 1016, "s.tokens_per_batch to 100"),
        (Numbers(1, 4, is_trained=True, row=100, activation_bytes=10), 516, "take a smaller model"),
        (Numbers(100, 4, row=1), 300, 's.precision = "bf16"'),
        (Numbers(100, 2, row=1), 100, "take a smaller model"),
    ],
)
def test_what_does_not_fit_is_told_what_lowers_it(numbers: Numbers, available: float, fix: str) -> None:
    found = peak(numbers)
    assert found.total > available
    assert fix in what_lowers(found, numbers, "s", available, has_slots=True)


def test_a_stage_that_could_recompute_is_told_that_first() -> None:
    numbers = Numbers(1, 4, is_trained=True, row=200, activation_bytes=10)
    told = what_lowers(peak(numbers), numbers, "s", 1016, has_slots=True, can_recompute=True)
    assert told == "set s.recompute = true"


def test_a_stage_without_slots_is_not_told_to_lower_them() -> None:
    numbers = Numbers(50, 4, sequences=8, longest=10, cached_bytes=10)
    assert "slots" not in what_lowers(peak(numbers), numbers, "s", 600, has_slots=False)


# Seconds, money


def test_seconds_are_work_times_what_was_measured() -> None:
    work = Workload(sampled=2500, prompts=60, responses=100, calls=2, sequences=10, longest=120)
    # Two calls of 50 responses in 10 slots: 5 x 25 steps, and 25 more of the longest, which is twice the mean.
    sampling = 60 * 0.001 + 2 * 150 * 0.01 + 2500 * 0.0001
    assert seconds_of(work, SAMPLED, None, BILLION, {}) == pytest.approx(sampling)
    trained = replace(work, trained=4000, updates=3, scored={"teacher": 1000, "from": 100})
    sizes = {"teacher": replace(BILLION, active=3e9)}
    learning = 4000 * 0.002 + 3 * 0.1 + (3 * 1000 + 100) * 0.0005
    assert seconds_of(trained, SAMPLED, LEARNED, BILLION, sizes) == pytest.approx(sampling + learning)
    assert seconds_of(trained, SAMPLED, None, BILLION, sizes) is None
    assert seconds_of(work, None, None, BILLION, {}) is None
    assert seconds_of(Workload(), None, None, None, {}) == 0


def test_no_response_is_taken_to_be_longer_than_it_may_be() -> None:
    work = Workload(sampled=100 * 100, responses=100, calls=1, sequences=100, longest=120)
    assert seconds_of(work, SAMPLED, None, BILLION, {}) == pytest.approx(100 * 0.01 + 10_000 * 0.0001)


def test_the_numbers_of_a_stage_are_measured_or_computed() -> None:
    work = Workload(sampled=1, trained=1, sequences=2, longest=30, row=64, copies=("from", "teacher"))
    found = numbers_of(work, BILLION, {"teacher": replace(BILLION, parameters=2e9)}, 2, None, None, 7.0)
    assert (found.copied, found.cached_bytes, found.activation_bytes) == (3e9, 2000, 34 * 1000)
    measured = replace(LEARNED, activation_bytes=5.0)
    found = numbers_of(work, BILLION, {}, 2, replace(SAMPLED, slot_bytes=9.0), measured, 7.0)
    assert (found.sampling_bytes, found.activation_bytes, found.process) == (9.0, 5.0, 7.0)
    assert (found.card, found.spare, found.scores) == (None, 30 + 128, False)
    judged = replace(work, copies=("from", "reward_models.safety"))
    found = numbers_of(judged, replace(BILLION, context=500), {}, 2, None, None, 7.0, 80e9)
    assert (found.card, found.spare, found.scores) == (80e9, 500 + 128, True)


def test_money_is_that_of_device_hours() -> None:
    assert priced(Cost(seconds=1800), 3.0, 4).money == 6.0
    assert priced(Cost(seconds=1800), None, 4).money is None
    assert priced(Cost(), 3.0, 1).money is None


def test_the_total_adds_what_runs_one_after_the_other() -> None:
    costs = [Cost(1, 10, 5e9, 100, 2.0), Cost(3, 30, 3e9, 50, 1.0), Cost(1, unknown=("the size of its model",))]
    assert total(costs) == Cost(5, 40, 5e9, 150, 3.0)
    assert total([]) == Cost()


def test_what_is_not_known_is_said() -> None:
    assert missing(Workload(served=1), True, None) == ("how fast the server is",)
    assert missing(Workload(trained=1), False, None) == (
        "how fast its model is, which is not on this machine yet",
        "the size of its model",
    )
    assert missing(Workload(), False, None) == ()


# Lengths


def test_responses_grow_with_the_steps_that_lie_behind_a_stage() -> None:
    nodes = load_recipe("r1-zero-tiny").nodes
    behind = taught_steps(nodes, [])
    assert behind == {"base-eval": 0, "zero": 0, "zero-eval": 24}
    assert taught_steps(nodes, ["zero"])["zero-eval"] == 0  # the model is there, and is measured itself
    measured = replace(SAMPLED, response=0.1 * 256)
    _, zero, zero_eval = (
        expected_length(node, measured, behind[node.settings.name], None, "r1-zero-tiny") for node in nodes
    )
    assert zero.mean == pytest.approx(256 * (0.1 + GROWTH * 11.5))
    assert zero_eval.mean == pytest.approx(256 * GROWN)
    long = expected_length(nodes[1], replace(SAMPLED, response=200), 0, None, "r1-zero-tiny")
    assert (long.mean, long.source) == (pytest.approx(200), "measured")  # what is longer from the first stays so
    for unknown in (None, replace(SAMPLED, response=None)):
        assumed = expected_length(nodes[1], unknown, 0, None, "r1-zero-tiny")
        assert (assumed.mean, assumed.source) == (64, "an assumption")
    guess = guess_of(zero, 256, 12.5)
    assert (guess.response(256), guess.prompt_tokens) == (pytest.approx(zero.mean), 12.5)
    assert guess_of(zero, 256, None).prompt_tokens == LIKELY.prompt_tokens


def test_a_past_run_says_how_long_responses_are(home_path: Path) -> None:
    node = load_recipe("r1-zero-tiny", ["zero.steps=2"]).nodes[1]
    made = Artifact("d", "model", "zero", (), "c")
    with Home.open(home_path) as home:
        home.ledger.begin_run("r1-zero-tiny", {"stage": []}, [("zero", "rl", "k")])
        for step, length in enumerate((10.0, 30.0, 500.0)):
            home.ledger.record_metrics("k", step, {"length/response": length})
        home.ledger.commit_stage(
            key="k", run="r1-zero-tiny", name="zero", kind="rl", artifact=made, seconds=1, tokens=1
        )
        found = expected_length(node, SAMPLED, 0, home.ledger, "r1-zero-tiny")
        assert (found.mean, found.source) == (20, "a past run")  # of as many steps as there will be
        assert expected_length(node, SAMPLED, 0, home.ledger, "another").source == "measured"


# Measurements


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeSampler:
    """Draws `length` tokens of each, and takes 1 s for a prompt token, 10 s for a step, 0.1 s for a token."""

    clock: Clock
    length: int
    asked: list[tuple[int, int]] = field(default_factory=list)
    version: int = 0
    repeatable: bool = True
    in_fp32: bool = True

    def copied_bytes(self, sequences: int) -> int:
        return 1000 * sequences

    def generate(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, Completion]]:
        limit = requests[0].params.max_tokens
        self.asked.append((len(requests), limit))
        drawn = min(self.length, limit)
        prompts = sum(map(len, {request.prompt_tokens for request in requests}))
        self.clock.now += prompts * 1.0 + drawn * 10.0 + len(requests) * drawn * 0.1
        finish: Any = "stop" if drawn < limit else "length"
        for index, _ in enumerate(requests):
            yield index, Completion((5,) * drawn, None, (True,) * drawn, "5 " * drawn, finish, policy_version=0)


class AllRight:
    domain = "reasoning"

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        return [Grade(1.0, {"accuracy": 1.0}) for _ in completions]


def sampled(length: int, limit: int, budget_s: float) -> tuple[Sampled, list[tuple[int, int]]]:
    clock = Clock()
    sampler: Any = FakeSampler(clock, length)
    task: Any = AllRight()
    problems = [Problem("sums", (Message("user", f"{number} 3 4"),), "7") for number in range(4, 8)]
    found = measure_sampling(
        sampler,
        NumberRenderer(),
        {"sums": NamedTask("sums", task)},
        problems,
        samples=4,
        params=SamplingParams(max_tokens=limit),
        device="cpu",
        budget_s=budget_s,
        clock=clock,
    )
    return found, sampler.asked


def test_sampling_is_measured_up_to_the_stages_own_shape() -> None:
    found, asked = sampled(length=20, limit=100, budget_s=1e6)
    assert asked == [(1, 8), (1, 8), (8, 8), (16, 8), (16, 64), (16, 100)]
    assert (found.prompt_s, found.step_s, found.token_s) == pytest.approx((1.0, 10.0, 0.1))
    assert (found.prompt, found.response, found.longest) == (3, 20, 20)
    assert found.copied_bytes == 16_000


def test_sampling_that_takes_long_is_measured_on_a_smaller_shape() -> None:
    found, asked = sampled(length=1000, limit=1000, budget_s=100)
    assert asked == [(1, 8), (1, 8)]
    assert (found.response, found.longest) == (None, None)  # all were cut off: nobody knows
    found, asked = sampled(length=20, limit=1000, budget_s=280)
    assert asked[-1] == (16, 64)
    assert found.response == 20  # none was cut off


@dataclass
class FakePasses:
    """2 s for a trained token, 0.5 s for a scored one, 3 s for a step."""

    clock: Clock
    rows: list[int] = field(default_factory=list)

    def train(self, tokens: int) -> int:
        self.rows.append(tokens)
        self.clock.now += 2.0 * tokens
        return tokens

    def score(self, tokens: int) -> int:
        self.clock.now += 0.5 * tokens
        return tokens

    def step(self) -> None:
        self.clock.now += 3.0


@pytest.mark.parametrize(("budget_s", "rows"), [(1e6, [512, 512, 256, 512, 4096]), (5000, [512, 512, 256, 512])])
def test_learning_is_measured_up_to_the_stages_own_row(budget_s: float, rows: list[int]) -> None:
    clock = Clock()
    passes = FakePasses(clock)
    found = measure_learning(passes, row=4096, device="cpu", budget_s=budget_s, clock=clock)
    assert passes.rows == rows
    assert (found.trained_s, found.scored_s, found.step_s) == (2.0, 0.5, 3.0)


def test_activations_are_those_beside_gradients_that_are_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory(FakePasses):
        gradients = peak = 0

        def train(self, tokens: int) -> int:
            """Ten bytes for each token and 50 more go as the gradients come."""
            self.peak = max(self.gradients + 10 * tokens + 50, 900)
            self.gradients = 900
            return super().train(tokens)

        def step(self) -> None:
            self.gradients = 0

    passes = Memory(Clock())
    monkeypatch.setattr("reasonmill.planning.probes.used_bytes", lambda device: passes.gradients)
    monkeypatch.setattr("reasonmill.planning.probes.peak_bytes", lambda device: passes.peak)
    found = measure_learning(passes, row=64, device="cpu", clock=passes.clock)
    assert (found.activation_bytes, found.row_bytes) == (10, 50)
    # A row that would need more than is free is not tried.
    for free, rows in ((20_000, [512, 512, 256, 512]), (50_000, [512, 512, 256, 512, 4096])):
        monkeypatch.setattr("reasonmill.planning.probes.memory_of", lambda device, free=free: (free, 1e6))
        wide = Memory(Clock())
        passes = wide
        measure_learning(wide, row=4096, device="cpu", budget_s=1e6, clock=wide.clock)
        assert wide.rows == rows


@pytest.mark.parametrize(
    ("less", "more", "each", "whatever"),
    [
        ((256, 356), (512, 612), 1.0, 100.0),
        ((256, 900), (512, 612), 0.0, 612.0),  # noise: a shorter row had more
        ((256, 10), (512, 1024), 2.0, 0.0),  # or so little that a row of nothing would have less than nothing
        ((64, 50), (64, 64), 1.0, 0.0),  # two rows of one length
        ((64, None), (128, 64), None, 0.0),
    ],
)
def test_what_a_token_takes_is_told_apart_from_what_any_row_takes(
    less: tuple[int, int | None], more: tuple[int, int | None], each: float | None, whatever: float
) -> None:
    assert line_of(less, more) == (each, whatever)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc, which keeps what was in use")
def test_memory_that_nothing_uses_any_more_is_given_back() -> None:
    """A plan once took 2.7 GB of it for a process without a model."""
    pieces = [bytearray(b"1" * 100_000) for _ in range(601)]
    stay = pieces[::100]  # so that those between them are not given back without being asked for
    del pieces
    before = used_bytes("cpu")
    give_back("cpu")
    after = used_bytes("cpu")
    assert before is not None
    assert after is not None
    assert before - after > 30e6
    assert len(stay) == 7


# What is kept


def a_plan(key: str = "k", **changes: Any) -> Plan:
    return replace(Plan(key, "here", 0, 100.0, 1000.0), **changes)


def test_a_plan_is_compared_with_what_the_stage_took(home_path: Path) -> None:
    with Home.open(home_path) as home:
        finish_plan(home.path, "k", "here", 0, seconds=1, memory_bytes=1)
        assert not (home.path / PLANS).exists()  # without a plan, a run writes nothing of it
        write_plans(home.path, KeptPlans().with_plan(a_plan()).with_plan(a_plan("other")))
        for machine, begun in (("elsewhere", 0), ("here", 3)):
            finish_plan(home.path, "k", machine, begun, seconds=80, memory_bytes=1200)
            assert read_plans(home.path).open_plan("k") == a_plan()
        finish_plan(home.path, "k", "here", 0, seconds=80, memory_bytes=1200)
        kept = read_plans(home.path)
        assert kept.open_plan("k") is None
        assert kept.plans == (a_plan(took_s=80, used_bytes=1200), a_plan("other"))
    assert past_errors(kept.plans) == (
        "past plans: of 1 planned stage, what was used differed by: time -20%, memory +20%"
    )
    more = (*kept.plans, a_plan(took_s=150.0, used_bytes=1000.0), a_plan(seconds=0.1, took_s=0.5))
    assert "of 2 planned stages" in past_errors(more)  # the last one was too short to say anything
    assert "time -20% to +50%, memory +0% to +20%" in past_errors(more)
    assert "none" in past_errors([a_plan()])


def test_a_new_plan_takes_the_place_of_one_that_nothing_came_of() -> None:
    done = a_plan(took_s=1.0)
    kept = KeptPlans((done, a_plan(seconds=5.0))).with_plan(a_plan(seconds=6.0))
    assert kept.plans == (done, a_plan(seconds=6.0))


@pytest.mark.parametrize("content", ["", "[]", '{"version": 0}', '{"version": 1, "plans": [{"key": 1}]}', "\0"])
def test_plans_that_can_not_be_read_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / PLANS).write_text(content)
    assert read_plans(tmp_path) == KeptPlans()


def test_measurements_are_kept_as_they_are(home_path: Path) -> None:
    with Home.open(home_path) as home:
        kept = KeptPlans((a_plan(),), {"m": {"prompt_s": 0.1, "response": None}})
        write_plans(home.path, kept)
        assert read_plans(home.path) == kept
        assert json.loads((home.path / PLANS).read_text())["version"] == 1
