"""The short form of benchmarks/error_rates.py: the cells in which intervals and gates err most easily."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRIALS = 2000


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("seeds", "error_rates"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("error_rates")


def test_the_exact_interval_is_the_textbook_one(benchmark: ModuleType) -> None:
    # One sample: 0 gives [0, 0.975] and 1 gives [0.025, 1].
    assert benchmark.exact_width(benchmark.Cell(0.3, 1, 1, 0.5)) == pytest.approx(0.975)
    assert benchmark.Cell(0.3, 10, 4, 0.5).effective == pytest.approx(16)


@pytest.mark.parametrize("draws", ["beta", "copy"])
def test_samples_of_a_problem_have_the_correlation_that_the_cell_says(benchmark: ModuleType, draws: str) -> None:
    cell = benchmark.Cell(0.2, 50, 4, 0.5)
    found = benchmark.right(benchmark.np.random.default_rng(0), cell, 2000, draws) / cell.samples
    assert found.mean() == pytest.approx(0.2, abs=0.005)
    assert found.var() == pytest.approx(0.16 * (1 + 3 * 0.5) / 4, rel=0.03)


@pytest.mark.check
def test_intervals_cover_and_are_narrow(benchmark: ModuleType) -> None:
    cells = benchmark.cells((0.001, 0.05, 0.5, 0.99), (16, 30, 100), (1, 4, 64))
    found = [benchmark.intervals(cell, TRIALS, "beta", seed=0) for cell in cells]
    missed = [verdict for verdict in benchmark.verdicts_on_intervals(found) if not verdict.met]
    assert not missed


@pytest.mark.check
@pytest.mark.parametrize("draws", ["beta", "copy"])
def test_losses_of_the_margin_do_not_pass(benchmark: ModuleType, draws: str) -> None:
    cells = benchmark.cells((0.5, 0.95, 1.0), (16, 30, 100), (1, 64))
    found = [loss for cell in cells for loss in benchmark.losses(cell, (0.02, 0.1), TRIALS, draws, seed=0)]
    assert benchmark.verdict_on_losses(found).met, benchmark.verdict_on_losses(found).figures


@pytest.mark.check
def test_a_model_is_not_promoted_over_itself(benchmark: ModuleType) -> None:
    promoted, unlost = benchmark.equals(benchmark.EQUALS, seed=0)
    assert promoted <= benchmark.EQUALS_BAR
    assert unlost > 0.5
