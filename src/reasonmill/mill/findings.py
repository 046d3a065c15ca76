"""What tells that a stage learned nothing, although it ended: said while it happens, in summary and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonmill.model.saving import has_same_weights
from reasonmill.protocols import Progress

# What an artifact's metrics call them: a list of sentences.
FINDINGS = "findings"
# The area of the metrics that count the reasons why graders could not tell.
_REASONS = "could_not_tell/"
# In the account of steps that learn by comparing rewards, and of no others: whoever learns from each token, as in
# distillation, learns from flat groups and from cut answers as well.
_COMPARED = "rollouts/ungraded"
# Steps in a row after which a sign counts that was not there from the first step on.
_IN_A_ROW = 4

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Sign:
    """A sign in the metrics of a step, what it means, and what is likely to be behind it."""

    what: str
    holds: Callable[[Row], bool]
    cause: Callable[[Row], str]


def _why_flat(row: Row) -> str:
    if row.get("length/truncated", 0.0) > 0.9:
        return "nearly all answers are cut off: raise sampling.max_tokens"
    if row.get("groups/ungraded", 0.0) > 0.9:
        return "nearly nothing could be graded: look at the grader"
    if row.get("reward/accuracy") == 1.0:
        return "all answers are right: the tasks are too easy for the model"
    if row.get("reward/accuracy") == 0.0:
        return "no answer is right: the tasks are too hard for the model, or it does not know the format of an answer"
    return "the attempts at a problem are too much alike: raise group_size or sampling.temperature, or mix other tasks"


_SIGNS = (
    _Sign(
        "all groups were flat (the attempts at each problem got the same reward), so that rewards taught nothing",
        lambda row: row.get("groups/flat") == 1.0 and _COMPARED in row,
        _why_flat,
    ),
    _Sign(
        "all answers were cut off at the limit of their length",
        lambda row: row.get("length/truncated") == 1.0 and _COMPARED in row,
        lambda row: "raise sampling.max_tokens; or the model never ends a text: look at its template and end token",
    ),
    _Sign(
        "the gradient was 0, so that nothing was learned",
        lambda row: row.get("optim/grad_norm") == 0.0 and row.get("groups/flat") != 1.0,
        lambda row: "the loss does not depend on the weights: look at the weights of the rewards, and at the data",
    ),
)


class Watched:
    """A stage's progress, which says at once what tells of learning nothing: in the first step, and then after twice as
    many steps in a row each time."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self._progress = progress
        self._stage = stage
        self._steps = 0
        self._in_a_row = [0] * len(_SIGNS)

    def begin(self, stage: str, total: int, unit: str) -> None:
        self._steps, self._in_a_row = 0, [0] * len(_SIGNS)
        self._progress.begin(stage, total, unit)

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        self._progress.advance(done, metrics)
        self._steps += 1
        for place, sign in enumerate(_SIGNS):
            self._in_a_row[place] = count = self._in_a_row[place] + 1 if sign.holds(metrics) else 0
            if count & (count - 1) == 0 and count >= min(self._steps, _IN_A_ROW) > 0:
                steps = "a step" if count == 1 else f"{count} steps in a row"
                self.note(f"warning: {self._stage}, {steps}: {sign.what}; likely cause: {sign.cause(metrics)}")

    def note(self, text: str) -> None:
        self._progress.note(text)

    def end(self, metrics: Mapping[str, object]) -> None:
        self._progress.end(metrics)


def _alarms(rows: Sequence[Row]) -> list[str]:
    """What the hacking alarm of a stage has found, each once."""
    first: dict[str, Row] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("alarm/") and name.endswith("/evidence") and value >= 1:
                first.setdefault(name.removeprefix("alarm/").removesuffix("/evidence"), row)
    found = []
    for claim, row in first.items():
        name = f"alarm/{claim}/unconfirmed"
        what = (
            f"does not confirm what {claim!r} rewards as right (in that step in {row[name]:.0%} of the attempts, in "
            f"the last in {rows[-1].get(name, 0.0):.0%})"
            if name in row
            else "confirms less than half of what it did before, while the reward did not fall"
        )
        found.append(f"the reward may be hacked: from step {row['step']} on, a second verifier {what}")
    watched = [row for row in rows if "alarm/verified" in row]
    if watched and not any(row["alarm/verified"] for row in watched):
        found.append("the verifier of the hacking alarm could tell of no attempt whether it is right: look at it")
    return found


def findings(rows: Sequence[Row], metrics: Mapping[str, Any], made: Path | None, parent: Path | None) -> list[str]:
    """What tells that a finished stage learned nothing, or measured nothing.

    Args:
        rows: the metrics of its steps.
        metrics: its own.
        made: directory of the model that it trained, if it did.
        parent: directory of the model that this was before.
    """
    found: list[str] = list(metrics.get(FINDINGS, ()))
    for sign in _SIGNS:
        matching = [row for row in rows if sign.holds(row)]
        if matching and 2 * len(matching) >= len(rows):
            steps = f"in {'all' if len(matching) == len(rows) else f'{len(matching)} of'} {len(rows)} steps"
            found.append(f"{steps} {sign.what}; likely cause: {sign.cause(matching[-1])}")
    found += _alarms(rows)
    for task, figures in (metrics.get("tasks") or {}).items():
        if isinstance(figures, Mapping) and (figures.get("truncated") or {}).get("value") == 1.0:
            found.append(f"all answers of {task} were cut off; likely cause: sampling.max_tokens is too small")
    found += _could_not_tell(rows, metrics)
    # A stage without steps may hand a model on as it is.
    if rows and made is not None and parent is not None and has_same_weights(made, parent):
        skipped = all(row.get("optim/skipped") == 1.0 for row in rows)
        cause = (
            "all updates were skipped, because they were not finite"
            if skipped
            else "see above"
            if found
            else "schedule.peak is too small for the precision of the weights, or all gradients are 0"
        )
        found.append(f"no weight of the model has changed; likely cause: {cause}")
    return found


def _could_not_tell(rows: Sequence[Row], metrics: Mapping[str, Any]) -> list[str]:
    """How many responses a stage's graders could not judge, and why: of its steps, and of each task it evaluated."""
    counted: list[tuple[str, dict[str, float]]] = []
    in_steps: Counter[str] = Counter()
    for row in rows:
        in_steps.update({n.removeprefix(_REASONS): int(v) for n, v in row.items() if n.startswith(_REASONS)})
    counted.append(("rollouts", dict(in_steps.most_common())))
    for task, figures in (metrics.get("tasks") or {}).items():
        if isinstance(figures, Mapping):
            counted.append((f"answers of {task}", dict(figures.get("could_not_tell") or {})))
    return [
        f"{sum(why.values())} {what} could not be graded: "
        + ", ".join(f"{reason} ({count})" for reason, count in why.items())
        for what, why in counted
        if why
    ]
