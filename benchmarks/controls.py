"""Controls for the R1-Zero recipe: is a gain due to the verified reward, on a base that is good enough for it?

Three arms, each over several seeds: the recipe itself, the recipe on the weak base, and the recipe with a reward that
is a fair coin. Every run has a home of its own under --home, so that a second call takes what is finished and an
interrupted one goes on. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonmill.algo.intervals import Estimate, clustered_mean
from reasonmill.errors import ReasonmillError
from reasonmill.mill.pipeline import MODEL
from reasonmill.mill.summary import read_summary
from reasonmill.protocols import Renderer
from reasonmill.recipe.load import load_recipe
from reasonmill.render import renderer_for
from reasonmill.rollouts import thinking_tokens
from reasonmill.store.groups import read_groups
from reasonmill.store.home import Home
from reasonmill.types import Group, Rollout

TASK = "countdown-3"
BEFORE, TRAINING, AFTER = "base-eval", "zero", "zero-eval"  # stages of the recipe
GAIN_BAR = 0.10  # the weak base may gain at most this share of answers, and the recipe must gain more
RECIPE_ARM, WEAK_ARM, RANDOM_ARM = "recipe", "weak base", "random reward"

Measure = Callable[[Rollout, Renderer], float]
MEASURES: dict[str, Measure] = {
    "pass@1": lambda rollout, _: rollout.grade.parts["accuracy"],
    "format": lambda rollout, _: rollout.grade.parts["format"],
    "thinking tokens": lambda rollout, renderer: float(thinking_tokens(rollout, renderer)),
}


@dataclass(frozen=True)
class Run:
    """What one run asked before and after training: a group of answers to each held-out problem, in the same order."""

    seed: int
    renderer: Renderer
    before: Sequence[Group]
    after: Sequence[Group]

    def problem_means(self, measure: Measure) -> list[tuple[str, float, float]]:
        """(problem, mean before, mean after) of each problem."""
        return [
            (b.problem.id, self._mean(b, measure), self._mean(a, measure))
            for b, a in zip(self.before, self.after, strict=True)
        ]

    def _mean(self, group: Group, measure: Measure) -> float:
        return statistics.fmean(measure(rollout, self.renderer) for rollout in group.rollouts)


def main() -> int:
    options = _parser().parse_args()
    arms = {
        RECIPE_ARM: [],
        WEAK_ARM: [f"{BEFORE}.from={options.weak_base}", f"{TRAINING}.from={options.weak_base}"],
        RANDOM_ARM: [f"{TRAINING}.rewards={{random=1.0}}"],
    }
    seeds = list(range(options.seeds))
    _say(f"recipe {options.recipe}, seeds {seeds}, {len(arms) * len(seeds)} runs")
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    # Seed by seed, so that an interrupted call has as many of each arm as can be.
    for seed in seeds:
        for arm, overrides in arms.items():
            home = options.home / f"{arm.replace(' ', '-')}-{seed}"
            _say(f"{arm}, seed {seed}: home {home}")
            runs[arm].append(_run(options.recipe, seed, [*overrides, *options.overrides], home, options.device))
    tables = {arm: _figures(measured) for arm, measured in runs.items()}
    verdicts = _verdicts(tables)
    if options.json:
        print(json.dumps({"recipe": options.recipe, "seeds": seeds, "arms": tables, "verdicts": verdicts}, indent=2))
    else:
        _print_tables(tables, seeds)
        for text, met in verdicts.items():
            print(f"{'met   ' if met else 'MISSED'}  {text}")
    return 0 if all(verdicts.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("mill/controls"), help="directory of the runs' homes")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; they are 0, 1, ...")
    parser.add_argument("--recipe", default="r1-zero-tiny", help=f"recipe with stages {BEFORE}, {TRAINING} and {AFTER}")
    parser.add_argument("--weak-base", default="tiny-base-weak", help="the base of the weak arm")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="changes a setting of every run; repeatable",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="passed on to each run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(recipe: str, seed: int, overrides: Sequence[str], home: Path, device: str) -> Run:
    """Runs the recipe by the command line and reads the transcripts of both evaluations."""
    settings = [f"seed={seed}", *overrides]
    command = [sys.executable, "-m", "reasonmill", "run", recipe, "--home", str(home), "--device", device]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=sys.stderr)
    with Home.open(home, write=False) as opened:
        directory = opened.run_dir(load_recipe(recipe, settings).name)
        summary = read_summary(directory)
        assert summary is not None  # the command line ended well
        digests = {stage["name"]: stage["digest"] for stage in summary["stages"]}
        before, after = (_held_out(opened, digests[stage]) for stage in (BEFORE, AFTER))
        return Run(seed, renderer_for(directory / MODEL), before, after)


def _held_out(home: Home, digest: str) -> list[Group]:
    """The groups of the task in an evaluation's transcripts."""
    transcripts = read_groups(home.objects.path(digest) / "groups.parquet")
    groups = [group for group in transcripts if group.problem.task == TASK]
    if not groups:
        raise SystemExit(f"the evaluations of the recipe have no problems of {TASK}")
    return groups


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Of each measure: before, after and their paired change over all seeds, clustered by problem, and by seed."""
    figures: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        rows = [row for run in runs for row in run.problem_means(measure)]
        # A problem that two seeds share is one cluster.
        numbers = {problem: number for number, problem in enumerate(dict.fromkeys(row[0] for row in rows))}
        clusters = [numbers[row[0]] for row in rows]
        columns = {
            "before": [before for _, before, _ in rows],
            "after": [after for _, _, after in rows],
            "change": [after - before for _, before, after in rows],
        }
        figures[name] = {column: clustered_mean(values, clusters).as_metric() for column, values in columns.items()}
        figures[name]["seeds"] = {
            str(run.seed): [statistics.fmean(values) for values in _columns(run, measure)] for run in runs
        }
    return figures


def _columns(run: Run, measure: Measure) -> tuple[list[float], list[float]]:
    rows = run.problem_means(measure)
    return [before for _, before, _ in rows], [after for _, _, after in rows]


def _verdicts(tables: Mapping[str, Any]) -> dict[str, bool]:
    """The bars in words, and whether each is met."""
    changes = {
        arm: {name: Estimate(**figures["change"]) for name, figures in table.items()} for arm, table in tables.items()
    }
    recipe, weak, random = changes[RECIPE_ARM], changes[WEAK_ARM], changes[RANDOM_ARM]
    points = f"{GAIN_BAR * 100:.0f} points"
    return {
        f"the recipe gains more than {points} of pass@1, beyond noise": recipe["pass@1"].low > GAIN_BAR,
        f"the weak base gains at most {points} of pass@1": weak["pass@1"].value <= GAIN_BAR,
        "the weak base's thinking does not grow beyond noise": weak["thinking tokens"].low <= 0,
        "random reward: pass@1 does not rise beyond noise": random["pass@1"].low <= 0,
        "random reward: format does not rise beyond noise": random["format"].low <= 0,
    }


def _print_tables(tables: Mapping[str, Any], seeds: Sequence[int]) -> None:
    print(f"{TASK}, {len(seeds)} seeds; 95 % intervals clustered by problem; shares in percent\n")
    for arm, table in tables.items():
        print(f"{arm:18}{'before':>26}{'after':>26}{'change':>26}")
        for name, figures in table.items():
            estimates = [Estimate(**figures[column]) for column in ("before", "after", "change")]
            print(f"  {name:16}" + "".join(f"{_shown(estimate, name):>26}" for estimate in estimates))
            for seed, (before, after) in figures["seeds"].items():
                numbers = (before, after, after - before)
                print(f"    seed {seed:9}" + "".join(f"{_number(value, name):>26}" for value in numbers))
        print()


def _shown(estimate: Estimate, name: str) -> str:
    return f"{_number(estimate.value, name)} [{_number(estimate.low, name)}, {_number(estimate.high, name)}]"


def _number(value: float, name: str) -> str:
    return f"{value if name == 'thinking tokens' else value * 100:.1f}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReasonmillError, subprocess.CalledProcessError) as error:
        sys.exit(f"controls.py: {error}")
