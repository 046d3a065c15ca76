"""The loop over known examples: what is skipped stays out of the weights, and a resumed run stops at the same step."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kept_progress import FakeRun
from reasonmill.algo.schedules import Schedule
from reasonmill.errors import Interrupted, TrainingDiverged
from reasonmill.learn.adamw import AdamW
from reasonmill.learn.settings import LearningSettings, OptimizerSettings
from reasonmill.learn.state_file import StateFile, write_state
from reasonmill.learn.supervised import optimise
from reasonmill.store.home import Home

BATCH = "b" * 64


class OneWeight:
    """A learner of one weight, whose gradient is what the step's pass put there."""

    skipped_batch = BATCH

    def __init__(self) -> None:
        self.weight = torch.zeros(1, requires_grad=True)
        self._optimizer = AdamW({"weight": self.weight}, OptimizerSettings())
        self.optim_step = self._optimizer.step

    def state(self) -> dict[str, Tensor]:
        return self._optimizer.state()

    def save(self, directory: Path) -> None:
        write_state(directory, self.state())

    def load(self, directory: Path) -> None:
        self._optimizer.load_state(StateFile(directory))

    def save_model(self, directory: Path) -> None: ...


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as home:
        yield home


def train(run: FakeRun, gradients: list[float]) -> dict[str, Tensor]:
    """Takes a step for each gradient; the learner's state at the end."""
    learner = OneWeight()

    def passes(start: int, stop: int) -> Iterator[Mapping[str, float]]:
        for step in range(start, stop):
            learner.weight.grad = torch.tensor([gradients[step]])
            yield {"loss/ce": 1.0, "tokens": 1.0}

    settings = LearningSettings(name="tuned", kind="sft", schedule=Schedule(peak=0.1), state_every=2)
    optimise(run, learner, passes, settings, steps=len(gradients))
    return learner.state()


def test_a_skipped_step_is_counted_and_leaves_no_trace(home: Home) -> None:
    run = FakeRun(home)
    state = train(run, [1.0, math.nan, 1.0, math.inf])
    assert run.progress.notes == [f"an update of step {step} was skipped: gradient not finite" for step in (1, 3)]
    counted = [(entry["optim/skipped"], entry.get("skipped/gradient")) for entry in home.ledger.metrics("k")]
    assert counted == [(0, None), (1, 1), (0, None), (1, 1)]
    spared = train(FakeRun(home, key="spared"), [1.0, 1.0])
    assert all(torch.equal(state[name], spared[name]) for name in spared)


@pytest.mark.parametrize("looks", range(1, 5))
def test_an_interrupted_run_diverges_at_the_same_step(home: Home, looks: int) -> None:
    gradients = [1.0, math.nan, 1.0, math.nan, math.nan, math.nan, 1.0]
    with pytest.raises(Interrupted):
        train(FakeRun(home, looks), gradients)
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match="3 times in a row, last at step 5: gradient") as caught:
            train(FakeRun(home), gradients)
        assert caught.value.where == f"batch {BATCH}"
