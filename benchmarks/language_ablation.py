"""What the language reward costs and what it gives: reasoning RL with it and without it, over several seeds.

The recipe runs until the stage with the language reward, once as it is and once with a weight of zero, and both models
are asked the same held-out problems. The R1 paper reports a slight loss of reasoning for thinking in one language.
Every seed has a home of its own under --home. Exit code 1 if the reward does not do what it is for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    write_recipe,
)

from reasonmill.errors import ReasonmillError

STAGE = "dev2"
TASK = "countdown-3"
ARMS: Mapping[str, Sequence[str]] = {"with": [], "without": [f"{STAGE}.rewards.language=0.0"]}
# Label, measure and whether it is a share.
ROWS = (
    ("language consistency", "language", True),
    ("pass@1", "pass@1", True),
    ("thinking tokens", "thinking_tokens", False),
)


def main() -> int:
    options_parser = parser(
        __doc__, home="mill/r1-tiny", recipe="r1-tiny", needs=f"an rl stage {STAGE} that rewards the language"
    )
    add_seeds(options_parser)
    options_parser.add_argument("--problems", type=int, default=500, help=f"held-out problems of {TASK}")
    options = options_parser.parse_args()
    table: dict[tuple[str, str], list[Values]] = {(label, arm): [] for label, _, _ in ROWS for arm in ARMS}
    for seed in range(options.seeds):
        home = options.home / f"seed-{seed}"
        for arm, settings in ARMS.items():
            say(f"{arm} the language reward, seed {seed}: home {home}")
            every = [f"seed={seed}", *options.overrides, *settings]
            trained = run(options.recipe, every, home, options.device, until=STAGE)
            groups = _evaluated(trained, seed, options.problems, options.device).groups("eval")
            known = measures(trained.renderer)
            for label, name, _ in ROWS:
                table[label, arm].append(values(groups, known[name]))
    figures = {key: figure(found) for key, found in table.items()}
    changes = {label: change(table[label, "without"], table[label, "with"]) for label, _, _ in ROWS}
    verdicts = _verdicts(changes)
    if options.json:
        rows = {
            label: {**{arm: as_json(figures[label, arm]) for arm in ARMS}, "change": as_json(changes[label])}
            for label, _, _ in ROWS
        }
        return print_json({"recipe": options.recipe, "task": TASK, "figures": rows}, verdicts)
    _print_table(figures, changes)
    return conclude(verdicts)


def _evaluated(trained: Run, seed: int, problems: int, device: str) -> Run:
    """The evaluation of what the stage made. The recipe's own has to wait for later stages."""
    stage = {"name": "eval", "kind": "evaluate", "from": str(trained.artifact(STAGE)), "tasks": {TASK: problems}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "language-ablation.toml"
        write_recipe(path, "language-ablation", seed, [stage])
        return run(str(path), [], trained.home, device)


def _verdicts(changes: Mapping[str, Figure]) -> list[Verdict]:
    gained = changes["language consistency"]
    return [
        Verdict("the language reward raises language consistency, beyond noise", gained.by_seed.low > 0, told(gained))
    ]


def _print_table(figures: Mapping[tuple[str, str], Figure], changes: Mapping[str, Figure]) -> None:
    print(f"{TASK} after {STAGE}; shares in percent; 95 % intervals: clustered by problem, then between seeds\n")
    print(f"{'':24}" + "".join(f"{column:>26}" for column in (*ARMS, "change")))
    for label, _, is_share in ROWS:
        columns = [*(figures[label, arm] for arm in ARMS), changes[label]]
        print(f"{label:24}" + "".join(f"{interval(found.by_problem, is_share):>26}" for found in columns))
        print(f"{'  between seeds':24}" + "".join(f"{interval(found.by_seed, is_share):>26}" for found in columns))
        for seed in range(len(changes[label].seeds)):
            values_of_seed = (number(found.seeds[seed], is_share) for found in columns)
            print(f"{f'  seed {seed}':24}" + "".join(f"{text:>26}" for text in values_of_seed))
    print()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReasonmillError, subprocess.CalledProcessError) as error:
        sys.exit(f"language_ablation.py: {error}")
