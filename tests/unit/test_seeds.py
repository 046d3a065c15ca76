"""The arithmetic of the measurements over seeds, and the recipes that they write."""

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from reasonmill.types import Completion, Grade, Group, Message, Problem, Rollout

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
T_1 = 12.7062  # 97.5 % quantile of Student's t with one degree of freedom


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "seeds", raising=False)
    return importlib.import_module("seeds")


def a_group(number: int, *accuracies: float) -> Group:
    completion = Completion((1,), (0.0,), (True,), "", "stop", 0)
    rollouts = tuple(Rollout((1,), completion, Grade(value, {"accuracy": value})) for value in accuracies)
    return Group(Problem("countdown-3", (Message("user", f"problem {number}"),), "42"), rollouts)


def test_the_interval_between_seeds_has_a_degree_of_freedom_less_than_seeds(seeds: ModuleType) -> None:
    # Two seeds whose changes are 10 and 30: mean 20, standard error 10.
    before = [{"a": [50], "b": [50]}, {"c": [0], "d": [40]}]
    after = [{"a": [70], "b": [50]}, {"c": [40], "d": [60]}]
    found = seeds.change(before, after)
    assert found.seeds == pytest.approx((10, 30))
    assert found.by_seed.value == pytest.approx(20)
    assert found.by_seed.high == pytest.approx(20 + T_1 * 10, rel=1e-4)
    # By problem: 20, 0, 40, 20, with mean 20, standard error sqrt(800 / 3 / 4) and t of three degrees 3.1824.
    assert found.by_problem.value == pytest.approx(20)
    assert found.by_problem.high == pytest.approx(20 + 3.1824 * (800 / 12) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("other", ["a", "fact/b"])
def test_a_problem_that_two_seeds_share_is_one_cluster(seeds: ModuleType, other: str) -> None:
    first = "a" if other == "a" else "fact/a"  # or two problems about one fact
    found = seeds.change([{first: [0]}, {other: [0], "b": [0]}], [{first: [9]}, {other: [9], "b": [0]}])
    # Of the mean 6 the clusters' sums deviate by 6 and -6: variance 72 * 2 / 1 / 9.
    assert found.by_problem.high == pytest.approx(6 + T_1 * 16**0.5, rel=1e-4)


def test_shares_keep_the_width_of_their_intervals(seeds: ModuleType) -> None:
    perfect = {f"problem {number}": [1.0] for number in range(16)}
    assert seeds.figure([perfect]).by_problem.low == pytest.approx(0.025 ** (1 / 16))
    assert seeds.change([perfect], [perfect]).by_problem.low == pytest.approx(0.025 ** (1 / 16) - 1)


def test_a_figure_is_the_mean_over_rollouts_and_problems_without_one_are_left_out(seeds: ModuleType) -> None:
    groups = [a_group(0, 1.0, 1.0, 0.0), a_group(1, 0.0), a_group(2)]
    found = seeds.values(groups, lambda _, rollout: rollout.grade.parts["accuracy"])
    assert [list(kept) for kept in found.values()] == [[1.0, 1.0, 0.0], [0.0]]
    assert seeds.figure([found]).seeds == (0.5,)
    with pytest.raises(SystemExit, match="nothing"):
        seeds.values(groups, lambda _, rollout: None)


def test_one_seed_is_too_few_for_noise_between_seeds(seeds: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    options = seeds.parser("", home="mill", recipe="r1-tiny", needs="a stage")
    seeds.add_seeds(options)
    assert options.parse_args(["--seeds", "2"]).seeds == 2
    with pytest.raises(SystemExit):
        options.parse_args(["--seeds", "1"])
    assert "needs two" in capsys.readouterr().err


def test_a_written_recipe_reads_back_as_it_was_meant(seeds: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    stage = {
        "name": 'eval "1"',
        "tasks": {"countdown-3": 5},
        "better": ["countdown-3", "arithmetic"],
        "sampling": {"temperature": 1.0, "top_k": 0},
        "left_out": None,
        "flag": True,
    }
    seeds.write_recipe(path, "written", 3, [stage, {"name": "second"}])
    del stage["left_out"]
    assert tomllib.loads(path.read_text()) == {"name": "written", "seed": 3, "stage": [stage, {"name": "second"}]}
