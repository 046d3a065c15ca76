"""Controls for the R1-Zero recipe: is a gain due to the verified reward, on a base that is good enough for it?

Three arms, each over several seeds: the recipe itself, the recipe on the weak base, and the recipe with a reward that
is a fair coin. Every run has a home of its own under --home, so that a second call takes what is finished and an
interrupted one goes on. Exit code 1 if a bar is missed.
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

from reasonmill.errors import ReasonmillError

TASK = "countdown-3"
BEFORE, TRAINING, AFTER = "base-eval", "zero", "zero-eval"  # stages of the recipe
GAIN_BAR = 0.10  # the weak base may gain at most this share of answers, and the recipe must gain more
RECIPE_ARM, WEAK_ARM, RANDOM_ARM = "recipe", "weak base", "random reward"
# Label, measure and whether it is a share.
ROWS = (("pass@1", "pass@1", True), ("format", "format", True), ("thinking tokens", "thinking_tokens", False))

Table = dict[str, dict[str, Figure]]  # by label: before, after and change


def main() -> int:
    options_parser = parser(
        __doc__, home="mill/controls", recipe="r1-zero-tiny", needs=f"stages {BEFORE}, {TRAINING} and {AFTER}"
    )
    add_seeds(options_parser)
    options_parser.add_argument("--weak-base", default="tiny-base-weak", help="the base of the weak arm")
    options = options_parser.parse_args()
    arms = {
        RECIPE_ARM: [],
        WEAK_ARM: [f"{BEFORE}.from={options.weak_base}", f"{TRAINING}.from={options.weak_base}"],
        RANDOM_ARM: [f"{TRAINING}.rewards={{random=1.0}}"],
    }
    say(f"recipe {options.recipe}, {options.seeds} seeds, {len(arms) * options.seeds} runs")
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    # Seed by seed, so that an interrupted call has as many of each arm as can be.
    for seed in range(options.seeds):
        for arm, overrides in arms.items():
            home = options.home / f"{arm.replace(' ', '-')}-{seed}"
            say(f"{arm}, seed {seed}: home {home}")
            settings = [f"seed={seed}", *overrides, *options.overrides]
            runs[arm].append(run(options.recipe, settings, home, options.device))
    tables = {arm: _figures(of_arm) for arm, of_arm in runs.items()}
    verdicts = _verdicts({arm: {label: row["change"] for label, row in table.items()} for arm, table in tables.items()})
    if options.json:
        figures = {
            arm: {
                label: {column: as_json(found) for column, found in columns.items()} for label, columns in table.items()
            }
            for arm, table in tables.items()
        }
        return print_json({"recipe": options.recipe, "task": TASK, "arms": figures}, verdicts)
    _print_tables(tables, options.seeds)
    return conclude(verdicts)


def _figures(runs: Sequence[Run]) -> Table:
    """Of each measure: before, after and the change."""
    figures: Table = {}
    for label, measure, _ in ROWS:
        before, after = ([_values(run, stage, measure) for run in runs] for stage in (BEFORE, AFTER))
        figures[label] = {"before": figure(before), "after": figure(after), "change": change(before, after)}
    return figures


def _values(run: Run, stage: str, measure: str) -> Values:
    groups = [group for group in run.groups(stage) if group.problem.task == TASK]
    return values(groups, measures(run.renderer)[measure])


def _verdicts(changes: Mapping[str, Mapping[str, Figure]]) -> list[Verdict]:
    recipe, weak, random = changes[RECIPE_ARM], changes[WEAK_ARM], changes[RANDOM_ARM]
    points = f"{number(GAIN_BAR)} points"
    thinking = weak["thinking tokens"]
    # What must not rise is held to the narrow interval, clustered by problem: between three seeds the interval is so
    # wide that hardly any rise could miss the bar.
    return [
        Verdict(
            f"the recipe gains more than {points} of pass@1, beyond noise",
            recipe["pass@1"].by_seed.low > GAIN_BAR,
            told(recipe["pass@1"]),
        ),
        Verdict(
            f"the weak base gains at most {points} of pass@1",
            weak["pass@1"].by_seed.value <= GAIN_BAR,
            told(weak["pass@1"]),
        ),
        Verdict(
            "the weak base's thinking does not grow beyond noise",
            thinking.by_problem.low <= 0,
            told(thinking, is_share=False),
        ),
        *(
            Verdict(
                f"random reward: {label} does not rise beyond noise",
                random[label].by_problem.low <= 0,
                told(random[label]),
            )
            for label in ("pass@1", "format")
        ),
    ]


def _print_tables(tables: Mapping[str, Table], seeds: int) -> None:
    print(f"{TASK}, {seeds} seeds; shares in percent; 95 % intervals: clustered by problem, then between seeds\n")
    for arm, table in tables.items():
        print(f"{arm:18}{'before':>26}{'after':>26}{'change':>26}")
        for label, _, is_share in ROWS:
            columns = table[label].values()
            print(f"  {label:16}" + "".join(f"{interval(found.by_problem, is_share):>26}" for found in columns))
            print(
                f"    {'between seeds':14}" + "".join(f"{interval(found.by_seed, is_share):>26}" for found in columns)
            )
            for seed in range(seeds):
                of_seed = (number(found.seeds[seed], is_share) for found in columns)
                print(f"    seed {seed:<9}" + "".join(f"{text:>26}" for text in of_seed))
        print()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReasonmillError, subprocess.CalledProcessError) as error:
        sys.exit(f"controls.py: {error}")
