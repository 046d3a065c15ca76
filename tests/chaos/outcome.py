"""What a run ended in, read from its home, and how two ends differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasonmill.content import directory_digest
from reasonmill.store.home import Home


@dataclass(frozen=True)
class Outcome:
    """All that must be the same in two runs of a recipe. The fields map the names of stages to what they have.

    `steps` are those of the ledger in order, each with the digest of the groups that it was trained on (None where it
    samples none) and its metrics without the times. `states` are digests of the learner's last state, weights and
    optimizer. `left_over_states` are those in the ledger: at most one, from which more steps would resume. `model` is
    the digest of the copy in the run's directory.
    """

    artifacts: Mapping[str, tuple[str, Mapping[str, Any]]]
    states: Mapping[str, str]
    steps: Mapping[str, list[tuple[int, str | None, Mapping[str, Any] | None]]]
    left_over_states: Mapping[str, list[tuple[int, str]]]
    machines: Mapping[str, list[str]]
    model: str
    objects: frozenset[str]


def read_outcome(home_path: Path, states: Path) -> Outcome:
    """The outcome of the home's only run, which is finished. Every object is hashed again on the way."""
    with Home.open(home_path, write=False) as home:
        (run,) = home.ledger.runs()
        directory = home_path / "runs" / run.name
        summary = json.loads((directory / "summary.json").read_text())
        artifacts = {}
        for stage in run.stages:
            record = home.ledger.stage(stage.key)
            assert record is not None, f"stage {stage.name} is not finished"
            artifacts[stage.name] = (record.artifact.digest, record.artifact.metrics)
        for digest in home.objects.digests():
            home.objects.path(digest)
        return Outcome(
            artifacts=artifacts,
            states={path.name: path.read_text() for path in sorted(states.iterdir())},
            steps={stage.name: read_steps(home, stage.key) for stage in run.stages},
            left_over_states={stage.name: home.ledger.states(stage.key) for stage in run.stages},
            machines={stage["name"]: stage["machines"] for stage in summary["stages"]},
            model=directory_digest(directory / "model"),
            objects=frozenset(home.objects.digests()),
        )


def read_steps(home: Home, key: str) -> list[tuple[int, str | None, Mapping[str, Any] | None]]:
    """The steps of a stage that have groups or metrics, in order."""
    metrics = {
        entry["step"]: {name: value for name, value in entry.items() if not name.startswith("speed/")}
        for entry in home.ledger.metrics(key)
    }
    steps = []
    while len(steps) in metrics or home.ledger.step_groups(key, len(steps)) is not None:
        step = len(steps)
        steps.append((step, home.ledger.step_groups(key, step), metrics.pop(step, None)))
    # What is left comes after a gap.
    return steps + [(step, home.ledger.step_groups(key, step), entry) for step, entry in sorted(metrics.items())]


@dataclass(frozen=True)
class Committed:
    """What a home has accepted: the artifact of each stage and the groups of each step, by the stages' keys."""

    keys: frozenset[str] = frozenset()
    artifacts: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def missing_from(self, later: Committed) -> list[str]:
        """One line for each record that is not there any more, or is another one."""
        lost = [f"artifact of {key[:12]}" for key, made in self.artifacts.items() if later.artifacts.get(key) != made]
        steps = [place for place, groups in self.groups.items() if later.groups.get(place) != groups]
        return [*lost, *(f"groups of step {step} of {key[:12]}" for key, step in steps)]


def read_committed(home_path: Path, known: frozenset[str]) -> Committed:
    """What is recorded at the moment of the `known` stages and of those that the last start came to, by key."""
    artifacts, groups = {}, {}
    with Home.open(home_path, write=False) as home:
        keys = known | {stage.key for run in home.ledger.runs() for stage in run.stages}
        for key in keys:
            record = home.ledger.stage(key)
            if record is not None:
                artifacts[key] = record.artifact.digest
            for step, digest, _ in read_steps(home, key):
                if digest is not None:
                    groups[key, step] = digest
    return Committed(keys, artifacts, groups)


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """One line for each thing in which a run ended otherwise than it should have."""
    lines = [
        *_different("artifact", expected.artifacts, found.artifacts),
        *_different("last learner state", expected.states, found.states),
        *_different("machines", expected.machines, found.machines),
    ]
    if found.model != expected.model:
        lines.append("the model in the run's directory differs")
    for stage, steps in expected.steps.items():
        lines += (f"stage {stage}: {line}" for line in _step_differences(steps, found.steps.get(stage, [])))
    for stage, left in found.left_over_states.items():
        # The very object: it has each bit of weights and optimizer, too.
        if left != expected.left_over_states.get(stage) or any(step != len(expected.steps[stage]) for step, _ in left):
            lines.append(f"stage {stage}: states are left over, or the last one is another")
    if missing := expected.objects - found.objects:
        lines.append(f"{len(missing)} objects are missing")
    return lines


def _different(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for stage in sorted(expected.keys() | found.keys()):
        if expected.get(stage) != found.get(stage):
            yield f"stage {stage}: {what} differs"


def _step_differences(
    expected: list[tuple[int, str | None, Mapping[str, Any] | None]],
    found: list[tuple[int, str | None, Mapping[str, Any] | None]],
) -> Iterator[str]:
    numbers = [step for step, _, _ in found]
    if numbers != list(range(len(expected))):
        yield f"the ledger has the steps {numbers} instead of 0 to {len(expected) - 1}"
    for (step, groups, metrics), (_, other_groups, other_metrics) in zip(expected, found, strict=False):
        if groups != other_groups:
            yield f"step {step} has other rollouts"
        if metrics != other_metrics:
            yield f"step {step} has other metrics"
