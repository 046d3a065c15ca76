"""Controls for the R1-Zero recipe: is a gain due to the verified reward, on a base that is good enough for it?

Three arms, each over several seeds: the recipe itself, the recipe on the weak base, and the recipe with a reward that
is a fair coin. A coin pushes every run into a direction of its own, so that its arm gets more seeds. Every run has a
home of its own under --home, so that a second call takes what is finished and an interrupted one goes on. Exit code 1
if a bar is missed.
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
NOISE_BAR = 0.03  # half-width of the interval between seeds up to which the coin's arm can tell a rise from noise
RECIPE_ARM, WEAK_ARM, RANDOM_ARM = "recipe", "weak base", "random reward"
# Label, measure and whether it is a share.
ROWS = (("pass@1", "pass@1", True), ("format", "format", True), ("thinking tokens", "thinking_tokens", False))

Table = dict[str, dict[str, Figure]]  # by label: before, after and change


def main() -> int:
    options_parser = parser(
        __doc__, home="mill/controls", recipe="r1-zero-tiny", needs=f"stages {BEFORE}, {TRAINING} and {AFTER}"
    )
    add_seeds(options_parser)
    add_seeds(options_parser, option="--random-seeds", default=8)
    options_parser.add_argument("--weak-base", default="tiny-base-weak", help="the base of the weak arm")
    options = options_parser.parse_args()
    seeds = {RECIPE_ARM: options.seeds, WEAK_ARM: options.seeds, RANDOM_ARM: options.random_seeds}
    arms = {
        RECIPE_ARM: [],
        WEAK_ARM: [f"{BEFORE}.from={options.weak_base}", f"{TRAINING}.from={options.weak_base}"],
        RANDOM_ARM: [f"{TRAINING}.rewards={{random=1.0}}"],
    }
    say(f"recipe {options.recipe}, {sum(seeds.values())} runs")
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    # Seed by seed, so that an interrupted call has as many of each arm as can be.
    for seed in range(max(seeds.values())):
        for arm in (arm for arm in arms if seed < seeds[arm]):
            home = options.home / f"{arm.replace(' ', '-')}-{seed}"
            say(f"{arm}, seed {seed}: home {home}")
            settings = [f"seed={seed}", *arms[arm], *options.overrides]
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
    _print_tables(tables)
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
            # By problem: between three seeds the interval is so wide that hardly any rise could miss the bar.
            thinking.by_problem.low <= 0,
            told(thinking, is_share=False),
        ),
        *(
            Verdict(
                f"random reward: {label} does not rise beyond noise, which is at most {number(NOISE_BAR)} points",
                random[label].by_seed.low <= 0 and _half_width(random[label]) <= NOISE_BAR,
                told(random[label]),
            )
            for label in ("pass@1", "format")
        ),
    ]


def _half_width(found: Figure) -> float:
    """Of the interval between seeds."""
    return (found.by_seed.high - found.by_seed.low) / 2


def _print_tables(tables: Mapping[str, Table]) -> None:
    print(f"{TASK}; shares in percent; 95 % intervals: clustered by problem, then between seeds\n")
    for arm, table in tables.items():
        print(f"{arm:18}{'before':>26}{'after':>26}{'change':>26}")
        for label, _, is_share in ROWS:
            columns = table[label].values()
            print(f"  {label:16}" + "".join(f"{interval(found.by_problem, is_share):>26}" for found in columns))
            print(
                f"    {'between seeds':14}" + "".join(f"{interval(found.by_seed, is_share):>26}" for found in columns)
            )
            for seed in range(len(table[label]["change"].seeds)):
                of_seed = (number(found.seeds[seed], is_share) for found in columns)
                print(f"    seed {seed:<9}" + "".join(f"{text:>26}" for text in of_seed))
        print()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReasonmillError, subprocess.CalledProcessError) as error:
        sys.exit(f"controls.py: {error}")
