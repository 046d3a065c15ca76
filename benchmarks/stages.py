"""The paper's table of stages in miniature, over several seeds, and whether the stages do what the paper says they do.

Every seed has a home of its own under --home, so that a second call takes what is finished and an interrupted one goes
on. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from seeds import (
    Figure,
    Run,
    Values,
    Verdict,
    add_seeds,
    as_json,
    change,
    conclude,
    figure,
    interval,
    measures,
    number,
    parser,
    print_json,
    run,
    say,
    told,
    values,
)

from reasonmill.algo.comparison import win_rate
from reasonmill.errors import ReasonmillError
from reasonmill.mill.results import STAGE_ROWS
from reasonmill.plugins.catalogue import installed

COLUMNS = ("base", "zero", "dev1", "dev2", "dev3", "r1")  # each is evaluated by a stage with "-eval" behind its name
SMALL_COLUMNS = ("small-base", "small-rl", "small-sft", "small-distill")
REFERENCE = "dev3"  # whose answers the others' helpfulness is compared with

Place = tuple[str, ...]  # of a figure in an evaluation's metrics
TASK: Place = ("tasks", "countdown-3", "pass@1")
REASONING: Place = ("pooled", "reasoning", "pass@1")
LANGUAGE: Place = ("pooled", "reasoning", "language")
GENERAL: Place = ("pooled", "helpfulness", "pass@1")
HELPFULNESS: Place = ("win_rate",)
UNSAFE: Place = ("tasks", "harmful-requests", "unsafe")

FAR = 0.20  # "far better": by more than this share of answers
LANGUAGE_BAR = 0.95
TIE = 0.03  # noise excuses no larger loss; the gate of the recipe allows as much
LOSS_BAR = 0.02  # of reasoning, by the last stage
DISTILLATION_BAR = 0.20
SECONDS_BAR = 12 * 60

Table = Mapping[tuple[Place, str], Sequence[Values]]  # by place and column: the values of each seed's run


def main() -> int:
    options_parser = parser(__doc__, home="mill/r1-tiny", recipe="r1-tiny", needs="the stages of r1-tiny")
    add_seeds(options_parser)
    options = options_parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        home = options.home / f"seed-{seed}"
        say(f"recipe {options.recipe}, seed {seed}: home {home}")
        runs.append(run(options.recipe, [f"seed={seed}", *options.overrides], home, options.device))
    rows = _rows(runs[0])
    table: Table = {
        **{(place, column): _of_runs(runs, column, place) for _, place, _ in rows for column in COLUMNS},
        **{(TASK, column): _of_runs(runs, column, TASK) for column in SMALL_COLUMNS},
    }
    verdicts = [*_reasoning(table), *_general(table), _distillation(table), _time(runs)]
    if options.json:
        columns = {
            label: {column: as_json(figure(table[place, column])) for column in COLUMNS} for label, place, _ in rows
        }
        small = {column: as_json(figure(table[TASK, column])) for column in SMALL_COLUMNS}
        content = {"recipe": options.recipe, "stages": columns, "small": small}
        return print_json({**content, "seconds": [run.seconds for run in runs]}, verdicts)
    print(
        f"seeds {', '.join(map(str, range(len(runs))))}: mean and its 95 % interval clustered by problem; below, each"
    )
    print("seed; shares in percent\n")
    _print_table(table, rows, COLUMNS)
    _print_table(table, [(TASK[1], TASK, True)], SMALL_COLUMNS)
    return conclude(verdicts)


def _rows(run: Run) -> list[tuple[str, Place, bool]]:
    """Rows of the table as a run prints it, and reasoning as a whole: (label, place, is a share)."""
    tasks = run.metrics(f"{REFERENCE}-eval")["tasks"]
    reasoning = [name for name, figures in tasks.items() if figures["domain"] == "reasoning"]
    return [
        *((name, ("tasks", name, "pass@1"), True) for name in reasoning),
        ("reasoning (all)", REASONING, True),
        *STAGE_ROWS,
    ]


def _of_runs(runs: Sequence[Run], column: str, place: Place) -> list[Values]:
    return [_win_shares(run, column) if place == HELPFULNESS else _values(run, column, place) for run in runs]


def _values(run: Run, column: str, place: Place) -> Values:
    """The rollouts' values whose mean the evaluation has at a place of its metrics."""
    scope, name, metric = place
    groups = [
        group
        for group in run.groups(f"{column}-eval")
        if name == (group.problem.task if scope == "tasks" else installed().task(group.problem.task).domain)
    ]
    return values(groups, measures(run.renderer)[metric])


def _win_shares(run: Run, column: str) -> Values:
    """For each prompt the share of pairs that the column's model answers more helpfully than the reference."""
    ours, theirs = (
        values(run.groups(f"{name}-eval"), measures(run.renderer)["helpful"]) for name in (column, REFERENCE)
    )
    return {problem: [win_rate([ours[problem]], [theirs[problem]]).value] for problem in ours}


def _reasoning(table: Table) -> list[Verdict]:
    """What reinforcement learning, cold start and language reward should do to reasoning and to its language."""
    learned = _change(table, REASONING, "base", "zero")
    lost = _change(table, REASONING, "zero", "dev1")
    regained = _change(table, REASONING, "dev1", "dev2")
    against_zero = _change(table, REASONING, "zero", "dev2")
    mixed, consistent = (figure(table[LANGUAGE, column]) for column in ("zero", "dev2"))
    kept = _change(table, REASONING, "dev2", "r1")
    bar = number(LANGUAGE_BAR)
    return [
        Verdict(
            f"zero reasons more than {number(FAR)} points better than base, beyond noise",
            learned.by_seed.low > FAR,
            told(learned),
        ),
        Verdict(
            f"zero mixes languages: consistency below {bar} %, beyond noise",
            mixed.by_seed.high < LANGUAGE_BAR,
            told(mixed),
        ),
        Verdict("dev1 loses reasoning against zero, beyond noise", lost.by_seed.high < 0, told(lost)),
        Verdict(
            "dev2 regains it: better than dev1 beyond noise, and tied with zero or better",
            regained.by_seed.low > 0 and _tied_or_better(against_zero),
            f"against dev1 {told(regained)}\n        against zero {told(against_zero)}",
        ),
        Verdict(
            f"dev2 thinks in the language of the prompt: consistency at least {bar} %",
            consistent.by_seed.value >= LANGUAGE_BAR,
            told(consistent),
        ),
        Verdict(
            f"r1 loses no more than {number(LOSS_BAR)} points of reasoning against dev2",
            kept.by_seed.value >= -LOSS_BAR,
            told(kept),
        ),
    ]


def _general(table: Table) -> list[Verdict]:
    """What the later stages should do to general answers."""
    lifted = _change(table, GENERAL, "dev2", "dev3")
    return [
        Verdict("dev3 lifts general answers against dev2, beyond noise", lifted.by_seed.low > 0, told(lifted)),
        _best(table, "helpfulness", HELPFULNESS, lower_is_better=False),
        _best(table, "safety", UNSAFE, lower_is_better=True),
    ]


def _best(table: Table, name: str, place: Place, *, lower_is_better: bool) -> Verdict:
    """Whether r1 is the best column or tied with it; the figures are of its strongest rival."""
    changes = {}
    for column in COLUMNS[:-1]:
        pair = (column, "r1") if not lower_is_better else ("r1", column)
        changes[column] = _change(table, place, *pair)
    rival = min(changes, key=lambda column: changes[column].by_seed.value)
    return Verdict(
        f"r1 is the best in {name} or tied for it",
        all(map(_tied_or_better, changes.values())),
        f"better than {rival}, its strongest rival, by {told(changes[rival])}",
    )


def _tied_or_better(found: Figure) -> bool:
    """No loss beyond noise; and however much noise there is, no loss of more than a margin."""
    return found.by_seed.high >= 0 and found.by_seed.value >= -TIE


def _distillation(table: Table) -> Verdict:
    changes = {name: _change(table, TASK, "small-rl", name) for name in ("small-sft", "small-distill")}
    best = max(changes.values(), key=lambda found: found.by_seed.value)
    return Verdict(
        f"distillation beats RL on the small base by {number(DISTILLATION_BAR)} points of {TASK[1]} pass@1 at least",
        best.by_seed.value >= DISTILLATION_BAR and best.by_seed.low > 0,
        "\n        ".join(f"{name} against small-rl {told(found)}" for name, found in changes.items()),
    )


def _time(runs: Sequence[Run]) -> Verdict:
    longest = max(run.seconds for run in runs)
    return Verdict(
        f"every run takes at most {SECONDS_BAR // 60} minutes",
        longest <= SECONDS_BAR,
        "minutes of all stages: " + ", ".join(f"{run.seconds / 60:.1f}" for run in runs),
    )


def _change(table: Table, place: Place, before: str, after: str) -> Figure:
    return change(table[place, before], table[place, after])


def _print_table(table: Table, rows: Sequence[tuple[str, Place, bool]], columns: Sequence[str]) -> None:
    print(f"{'':24}" + "".join(f"{column:>22}" for column in columns))
    for label, place, is_share in rows:
        figures: list[Figure] = [figure(table[place, column]) for column in columns]
        print(f"{label:24}" + "".join(f"{interval(found.by_problem, is_share):>22}" for found in figures))
        seeds = (" / ".join(number(value, is_share) for value in found.seeds) for found in figures)
        print(f"{'':24}" + "".join(f"{text:>22}" for text in seeds))
    print()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReasonmillError, subprocess.CalledProcessError) as error:
        sys.exit(f"stages.py: {error}")
