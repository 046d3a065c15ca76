"""The plan of a recipe with a backend that computes nothing: what is measured, what is kept, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from reasonmill.backends.native import NativeBackend
from reasonmill.mill.planning import PlannedStage, plan, plan_key
from reasonmill.placement import Placement
from reasonmill.planning.forecast import Forecast, Machine, forecast
from reasonmill.planning.measuring import Measurements
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.sample.sampler import EngineSampler
from scripted import ScriptedEngine

RECIPE = """
name = "planned"

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base"
tasks = { arithmetic = 1.0 }
steps = 4
problems_per_step = 2
group_size = 4
tokens_per_batch = 256
sampling = { max_tokens = 40, slots = 8 }
schedule = { peak = 1e-4 }

[[stage]]
name = "zero-eval"
kind = "evaluate"
from = "zero"
tasks = { arithmetic = 3 }
samples = 2
sampling = { max_tokens = 40 }

[[stage]]
name = "again"
kind = "evaluate"
from = "zero"
tasks = { arithmetic = 3 }
samples = 2
sampling = { max_tokens = 40 }
"""


@dataclass
class FakeLearner:
    """Learns nothing."""

    num_parameters: int = 1
    rows: list[int] = field(default_factory=list)

    def forward_backward(self, batch: Any, loss: Any, denominator: float) -> dict[str, float]:
        self.rows.append(batch.num_tokens)
        return {}

    def logprobs(self, batch: Any) -> None: ...

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        assert learning_rate == 0  # nothing moves
        return {}


@cache
def _renderer(model: Path) -> Any:
    return NativeBackend(Placement("cpu")).renderer(model)


class FakeBackend:
    """Samples ten tokens, whatever it is asked, and learns nothing."""

    placement = Placement("cpu")

    def __init__(self) -> None:
        self.made: list[str] = []
        self.learner_made = FakeLearner()

    def renderer(self, model: Path) -> Any:
        return _renderer(model)

    def sampler(self, model: Path, **settings: Any) -> Any:
        self.made.append(f"sampler of {settings['slots']}")
        return EngineSampler(ScriptedEngine(self.renderer(model), lambda request, version: [5] * 10))

    def learner(self, model: Path, optimizer: Any, **settings: Any) -> Any:
        self.made.append("learner")
        return self.learner_made


AMPLE = Machine("cpu", 1, free_bytes=1e12, memory_bytes=1e12, price_per_hour=2.0)


@dataclass
class Planner:
    """Plans a recipe again and again, with what was measured kept."""

    recipe: Recipe
    backend: Any = field(default_factory=FakeBackend)
    kept: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def plan(self, machine: Machine = AMPLE, planned: list[PlannedStage] | None = None) -> Forecast:
        measurements = Measurements(self.recipe, self.backend, None, {}, self.kept, self.notes.append, 1000)
        found = forecast(self.recipe.nodes, planned or plan(self.recipe, None, None), measurements, machine)
        measurements.close()
        return found


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    path = tmp_path / "planned.toml"
    path.write_text(RECIPE)
    return Planner(load_recipe(str(path)))


def test_each_shape_is_measured_once_and_on_the_model_that_a_stage_will_come_from(planner: Planner) -> None:
    found = planner.plan()
    # Both evaluations have one shape, and the model that they will read comes from the base.
    assert planner.backend.made == ["sampler of 8", "sampler of 512", "learner"]
    assert planner.notes == ["zero  measures sampling", "zero-eval  measures sampling", "zero  measures learning"]
    assert planner.backend.learner_made.rows[-1] > 200  # of the stage's 256
    assert found.lengths["zero"].source == "measured"
    # Ten of 40 tokens, and more with each of the steps: 0.25 + 0.0125 x (0, 1, 2, 3), and 4 steps later.
    assert found.lengths["zero"].mean == pytest.approx(40 * (0.25 + 0.0125 * 1.5))
    assert found.lengths["zero-eval"].mean == pytest.approx(40 * 0.3)
    assert all(cost.seconds and cost.money == cost.seconds / 3600 * 2 for cost in found.likely.values())
    assert all(cost.memory_bytes and not cost.fix and not cost.unknown for cost in found.likely.values())
    for name, most in found.most.items():
        assert most.tokens > found.likely[name].tokens
        assert most.seconds >= found.likely[name].seconds  # a token of the fake takes next to no time


def test_a_second_plan_measures_nothing_and_says_the_same(planner: Planner) -> None:
    first = planner.plan()
    planner.backend.made.clear()
    assert planner.plan() == first
    assert planner.backend.made == []


def test_another_shape_is_measured(planner: Planner, tmp_path: Path) -> None:
    planner.plan()
    planner.backend.made.clear()
    planner.recipe = load_recipe(str(tmp_path / "planned.toml"), ["zero.sampling.max_tokens=41"])
    planner.plan()
    assert planner.backend.made == ["sampler of 8"]


def test_a_stage_that_is_cached_is_left_out_and_one_that_resumes_is_its_rest(planner: Planner) -> None:
    whole = planner.plan()
    planned = plan(planner.recipe, None, None)
    resumed = [replace(planned[0], resumes_at=3), *(replace(stage, status="cached") for stage in planned[1:])]
    found = planner.plan(planned=resumed)
    assert found.likely.keys() == {"zero"}
    assert found.likely["zero"].seconds == pytest.approx(whole.likely["zero"].seconds / 4)
    assert found.likely["zero"].tokens == pytest.approx(whole.likely["zero"].tokens / 4)


def test_what_does_not_fit_is_not_tried_and_says_what_to_change(planner: Planner) -> None:
    found = planner.plan(replace(AMPLE, free_bytes=1e6, memory_bytes=2e7))
    assert planner.backend.made == []
    for cost in found.likely.values():
        assert cost.seconds is None
        assert any("too little memory is free" in why for why in cost.unknown)
    assert found.likely["zero"].memory_bytes > 2e7
    assert found.most["zero"].fix == "set zero.recompute = true"
    assert found.likely["zero-eval"].fix == ""  # it would fit if others left it the memory
    assert found.plans == ()


def test_what_is_kept_names_the_stages_by_their_settings(planner: Planner) -> None:
    found = planner.plan()
    assert [kept.key for kept in found.plans] == [plan_key(planner.recipe, node) for node in planner.recipe.nodes]
    assert len({kept.key for kept in found.plans}) == 3
    assert {kept.begun for kept in found.plans} == {0}
    assert [kept.seconds for kept in found.plans] == [cost.seconds for cost in found.likely.values()]


def test_a_model_that_is_not_here_is_not_measured_and_its_memory_is_told_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "hub.toml"
    told = f'hub = "nobody/nothing"\nrevision = "{"0" * 40}"\nparameters = 1e6\nlayers = 2\nhidden_size = 8\n'
    sizes = "kv_heads = 1\nhead_dim = 8\n"
    path.write_text(f'name = "hub"\n[models.far]\n{told}{sizes}' + RECIPE.split("\n\n", 1)[1])
    planner = Planner(load_recipe(str(path), ["zero.from=far"]))
    found = planner.plan()
    assert planner.backend.made == []
    zero = found.likely["zero"]
    assert zero.unknown == ("how fast its model is, which is not on this machine yet",)
    assert zero.seconds is None
    assert zero.memory_bytes > 16e6  # weights, moments and gradients
    assert found.lengths["zero"].source == "an assumption"
