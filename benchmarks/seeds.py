"""Runs of recipes over seeds, and how far a change between two of their models can be trusted.

Every figure has two noises. Another draw of problems and samples would move it: that is the interval clustered by
problem. Another training run would move it, too: a seed is one training run, and the t-interval between seeds, with
one degree of freedom less than there are seeds, is of that noise. Verdicts go by the latter.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from reasonmill.algo.comparison import Change
from reasonmill.algo.intervals import Estimate, clustered_mean, clustered_share
from reasonmill.mill.summary import read_summary
from reasonmill.plugins.catalogue import installed
from reasonmill.protocols import Renderer
from reasonmill.recipe.load import load_recipe
from reasonmill.render import renderer_for
from reasonmill.rollouts import thinking_tokens
from reasonmill.stages.evaluate import thinking_language
from reasonmill.store.groups import GROUPS_FILE, read_groups
from reasonmill.store.home import Home
from reasonmill.store.views import MODEL
from reasonmill.types import Group, Problem, Rollout

# What is told of a rollout; None where it has no such property.
Measure = Callable[[Problem, Rollout], float | None]
# Of one run: what a measure found in the rollouts of each problem, by the problem's id.
Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Run:
    """A finished run of a recipe in a home."""

    home: Path
    directory: Path
    summary: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """What all stages together took when they ran."""
        return math.fsum(stage["seconds"] for stage in self.summary["stages"])

    @property
    def renderer(self) -> Renderer:
        """That of the run's model."""
        return _renderer(self.directory / MODEL)

    def metrics(self, stage: str) -> Mapping[str, Any]:
        metrics: Mapping[str, Any] = self._stage(stage)["metrics"]
        return metrics

    def artifact(self, stage: str) -> Path:
        """The directory of what a stage made."""
        return _object(self.home, self._stage(stage)["digest"])

    def groups(self, stage: str) -> Sequence[Group]:
        """The transcripts of an evaluation."""
        return _transcripts(self.artifact(stage))

    def _stage(self, name: str) -> Mapping[str, Any]:
        for stage in self.summary["stages"]:
            if stage["name"] == name:
                found: Mapping[str, Any] = stage
                return found
        raise SystemExit(f"the recipe has no stage {name!r}, which this measurement needs")


def run(recipe: str, settings: Sequence[str], home: Path, device: str, *, until: str | None = None) -> Run:
    """Runs a recipe by the command line; what the home has is taken from there."""
    command = [sys.executable, "-m", "reasonmill", "run", recipe, "--home", str(home), "--device", device]
    for setting in settings:
        command += ["--set", setting]
    if until is not None:
        command += ["--until", until]
    subprocess.run(command, check=True, stdout=sys.stderr)
    with Home.open(home, write=False) as opened:
        directory = opened.run_dir(load_recipe(recipe, settings).name)
    summary = read_summary(directory)
    assert summary is not None  # the command line ended well
    return Run(home, directory, summary)


def _object(home: Path, digest: str) -> Path:
    with Home.open(home, write=False) as opened:
        return opened.objects.path(digest)


@cache
def _renderer(model: Path) -> Renderer:
    return renderer_for(model)


@cache
def _transcripts(artifact: Path) -> Sequence[Group]:
    return read_groups(artifact / GROUPS_FILE)


def write_recipe(path: Path, name: str, seed: int, stages: Sequence[Mapping[str, Any]]) -> None:
    """Writes a recipe file; settings that are None are left to their defaults."""
    lines = [f"name = {_toml(name)}", f"seed = {seed}"]
    for stage in stages:
        lines += ["", "[[stage]]", *(f"{key} = {_toml(value)}" for key, value in stage.items() if value is not None)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)  # texts, numbers and truth values are written as in JSON


def measures(renderer: Renderer) -> dict[str, Measure]:
    """Measures by the names that evaluations give to their means."""

    def part(name: str) -> Measure:
        return lambda _, rollout: rollout.grade.parts.get(name)

    def unsafe(problem: Problem, rollout: Rollout) -> float | None:
        safe = part("safe")(problem, rollout)
        return None if safe is None else 1.0 - safe

    def language(problem: Problem, rollout: Rollout) -> float | None:
        return thinking_language(installed().task(problem.task), problem, rollout)

    return {
        "pass@1": part("accuracy"),
        "helpful": part("helpful"),
        "unsafe": unsafe,
        "refused": part("refused"),
        "format": part("format"),
        "language": language,
        "thinking_tokens": lambda _, rollout: float(thinking_tokens(rollout, renderer)),
    }


def values(groups: Sequence[Group], measure: Measure) -> Values:
    """What a measure finds in each problem's rollouts; problems without a value are left out.

    A problem's name is that of its cluster, a slash and its id.

    Raises:
        SystemExit: there is no value at all.
    """
    found: dict[str, list[float]] = {}
    for group in groups:
        measured = [measure(group.problem, rollout) for rollout in group.rollouts]
        kept = [value for value in measured if value is not None]
        if kept:
            name = "/".join((*group.problem.cluster, group.problem.id))
            found.setdefault(name, []).extend(kept)
    if not found:
        raise SystemExit("the evaluations have nothing that this measurement could count: ask more problems")
    return found


def mean(found: Values) -> float:
    """Mean over all rollouts, as evaluations state it."""
    return statistics.fmean(value for of_problem in found.values() for value in of_problem)


@dataclass(frozen=True)
class Figure:
    """A measure of one model over all seeds, or its change from one model to another.

    Attributes:
        seeds: one mean for each seed.
        by_problem: mean over all seeds with its interval clustered by problem; a change is that of the same problem.
    """

    seeds: tuple[float, ...]
    by_problem: Estimate

    @property
    def by_seed(self) -> Estimate:
        """Mean of the seeds with the 95 % t-interval of training noise."""
        return clustered_mean(self.seeds, range(len(self.seeds)))


def figure(runs: Sequence[Values]) -> Figure:
    """A measure of one model, given its values in the run of each seed."""
    rows = [(_cluster(name), value) for run in runs for name, of_problem in run.items() for value in of_problem]
    interval = clustered_share if _are_shares(runs) else clustered_mean
    pooled = interval([value for _, value in rows], [cluster for cluster, _ in rows])
    return Figure(tuple(map(mean, runs)), pooled)


def change(before: Sequence[Values], after: Sequence[Values]) -> Figure:
    """The difference that a measure has between two models of the run of each seed: after - before."""
    differences, clusters = [], []
    for old, new in zip(before, after, strict=True):
        for name in old.keys() & new.keys():
            differences.append(statistics.fmean(new[name]) - statistics.fmean(old[name]))
            clusters.append(_cluster(name))
    seeds = tuple(mean(new) - mean(old) for old, new in zip(before, after, strict=True))
    if not _are_shares([*before, *after]):
        return Figure(seeds, clustered_mean(differences, clusters))
    low, high = Change.of(differences, clusters).interval()
    return Figure(seeds, Estimate(statistics.fmean(differences), float(low), float(high)))


def _cluster(name: str) -> str:
    """That of a problem; one that two seeds share is one cluster."""
    return name.rpartition("/")[0] or name


def _are_shares(runs: Sequence[Values]) -> bool:
    """Whether the values are shares; what else is measured are numbers of tokens."""
    return all(0 <= value <= 1 for run in runs for of_problem in run.values() for value in of_problem)


@dataclass(frozen=True)
class Verdict:
    """A bar in words, whether it is met, and the figures that say so."""

    bar: str
    met: bool
    figures: str


def conclude(verdicts: Sequence[Verdict]) -> int:
    """Prints verdicts; the exit code."""
    for verdict in verdicts:
        print(f"{'met   ' if verdict.met else 'MISSED'}  {verdict.bar}\n        {verdict.figures}")
    return exit_code(verdicts)


def exit_code(verdicts: Sequence[Verdict]) -> int:
    return 0 if all(verdict.met for verdict in verdicts) else 1


def print_json(content: Mapping[str, Any], verdicts: Sequence[Verdict]) -> int:
    """Prints everything as JSON; the exit code."""
    print(json.dumps({**content, "verdicts": [asdict(verdict) for verdict in verdicts]}, indent=2))
    return exit_code(verdicts)


def as_json(found: Figure) -> dict[str, Any]:
    return {
        "seeds": list(found.seeds),
        "by_problem": found.by_problem.as_metric(),
        "by_seed": found.by_seed.as_metric(),
    }


def number(value: float, is_share: bool = True) -> str:
    """Shares in percent."""
    return f"{value * 100 if is_share else value:.1f}"


def interval(estimate: Estimate, is_share: bool = True) -> str:
    """An estimate as a table shows it."""
    return f"{number(estimate.value, is_share)} [{number(estimate.low, is_share)}, {number(estimate.high, is_share)}]"


def told(found: Figure, is_share: bool = True) -> str:
    """A figure in one line: both intervals and each seed."""
    seeds = ", ".join(number(value, is_share) for value in found.seeds)
    return (
        f"{interval(found.by_seed, is_share)} between seeds, {interval(found.by_problem, is_share)} by problem; "
        f"seeds {seeds}"
    )


def say(text: str) -> None:
    """Tells how far the measurement is, beside its result."""
    print(text, file=sys.stderr, flush=True)


def parser(text: str | None, *, home: str, recipe: str, needs: str) -> argparse.ArgumentParser:
    """The options that all measurements of recipes have."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--home", type=Path, default=Path(home), help="directory of the runs' homes")
    options.add_argument("--recipe", default=recipe, help=f"name or path of a recipe with {needs}")
    options.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="changes a setting of every run; repeatable",
    )
    options.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="passed on to each run")
    options.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return options


def add_seeds(options: argparse.ArgumentParser, option: str = "--seeds", default: int = 3) -> None:
    options.add_argument(
        option, type=_two_or_more, default=default, help="number of seeds, 2 at least; they are 0, 1, ..."
    )


def _two_or_more(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError("the noise between seeds needs two of them at least")
    return int(text)
