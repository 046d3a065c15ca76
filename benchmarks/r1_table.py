"""The runs of `gpu/r1_smollm2.py` with several seeds, together: pass@1 by family, changes, and the bars of each seed.

OUT are the directories that its sittings wrote to. Exit code 1 if a seed missed a bar.

    PYTHONPATH=src python benchmarks/r1_table.py OUT [OUT ...]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seeds import Figure, Values, as_json, change, figure, interval, mean, number

RECIPE = "r1-smollm2"
# What sittings of a seed write: of the recipe, its control, its kills, and `generate_outside.py`.
NAMED = re.compile(rf"{RECIPE}(?:-shuffled|-killed|)-seed-(?P<seed>\d+)(?P<outside>-outside-[\w-]+|)\.json")
PROMPTS = ("base", "told")  # the model as it comes: each family has the better of them
# What is compared with what; None is the better prompt.
CHANGES = (("r1", None), ("dev2", "dev1"), ("r1", "dev1"), ("r1", "dev2"))
ALL = "all"


@dataclass(frozen=True)
class Bar:
    """A bar, and whether it was met in a seed."""

    part: str
    what: str
    bar: str
    met: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    by_seed = values_of(options.out)
    bars = bars_of(options.out)
    if len(by_seed) < 2:
        raise SystemExit(f"the noise between seeds needs two of them at least, and there are {len(by_seed)}")
    levels, changes = levels_of(by_seed), changes_of(by_seed)
    missed = [bar for of_seed in bars.values() for bar in of_seed if not bar.met]
    if options.json:
        content = {
            "seeds": sorted(by_seed),
            "pass@1": {model: _as_json(families) for model, families in levels.items()},
            "changes": {name: _as_json(families) for name, families in changes.items()},
            "bars": {seed: [vars(bar) for bar in of_seed] for seed, of_seed in bars.items()},
        }
        print(json.dumps(content, indent=1))
        return int(bool(missed))
    print(f"seeds {', '.join(map(str, sorted(by_seed)))}; intervals of 95 %: by problem, and between seeds")
    for name, families in {**levels, **changes}.items():
        print(f"\n{name:24}{'mean, by problem':>24}{'between seeds':>24}   each seed")
        for family, found in families.items():
            each = ", ".join(map(number, found.seeds))
            print(f"{family:24}{interval(found.by_problem):>24}{interval(found.by_seed):>24}   {each}")
    print()
    for line in bar_lines(bars):
        print(line)
    return int(bool(missed))


def values_of(outs: Sequence[Path]) -> dict[int, dict[str, dict[str, Values]]]:
    """By seed and model, of each family what each problem's attempts were worth; all families together are one, too.

    Raises:
        SystemExit: two directories have the same seed.
    """
    found: dict[int, dict[str, dict[str, Values]]] = {}
    for out in outs:
        for file in sorted(out.glob(f"{RECIPE}-seed-*.values.json")):
            seed = int(file.name.removeprefix(f"{RECIPE}-seed-").removesuffix(".values.json"))
            if seed in found:
                raise SystemExit(f"seed {seed} is there twice: leave out one directory, {file} is in the second")
            models: dict[str, dict[str, Values]] = json.loads(file.read_text(encoding="utf-8"))
            for families in models.values():
                families[ALL] = {name: each for one in families.values() for name, each in one.items()}
            found[seed] = models
    return found


def bars_of(outs: Sequence[Path]) -> dict[int, list[Bar]]:
    """The bars of each seed: of its run, and of its control, kills and outside checks, where they are there."""
    found: dict[int, list[Bar]] = {}
    for file in sorted(file for out in outs for file in out.glob("*.json")):
        named = NAMED.fullmatch(file.name)
        if named is None:
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        lines: list[dict[str, Any]] = content if isinstance(content, list) else content.get("bars", [])
        bars = [Bar(line["part"], line["what"], line["bar"], line["met"]) for line in lines if line["met"] is not None]
        if named["outside"]:
            bars = [Bar(named["outside"][1:], "", each["bar"], each["met"]) for each in content["verdicts"]]
        found.setdefault(int(named["seed"]), []).extend(bars)
    return dict(sorted(found.items()))


def levels_of(by_seed: Mapping[int, Mapping[str, Mapping[str, Values]]]) -> dict[str, dict[str, Figure]]:
    """pass@1 by model and family, of the models that each seed has."""
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    return {
        model: {
            family: figure([run[model][family] for run in runs])
            for family in families
            if all(family in run[model] for run in runs)
        }
        for model, families in runs[0].items()
        if all(model in run for run in runs)
    }


def changes_of(by_seed: Mapping[int, Mapping[str, Mapping[str, Values]]]) -> dict[str, dict[str, Figure]]:
    """The changes of `CHANGES` by family, paired in each problem, for the models that each seed has."""
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    found: dict[str, dict[str, Figure]] = {}
    for model, other in CHANGES:
        if any(name not in run for run in runs for name in (model, *([other] if other else PROMPTS))):
            continue
        before = [dict(run[other]) if other else best_prompt(run) for run in runs]
        shared = [family for family in runs[0][model] if all(family in run for run in before)]
        found[f"{model} over {other or 'best prompt'}"] = {
            family: change([run[family] for run in before], [run[model][family] for run in runs]) for family in shared
        }
    return found


def best_prompt(run: Mapping[str, Mapping[str, Values]]) -> dict[str, Values]:
    """The model as it comes, in each family with the prompt that is better there in this seed."""
    first, second = (run[name] for name in PROMPTS)
    shared = [family for family in first if family in second and family != ALL]
    best = {family: max((first[family], second[family]), key=mean) for family in shared}
    return {**best, ALL: {name: each for one in best.values() for name, each in one.items()}}


def bar_lines(bars: Mapping[int, Sequence[Bar]]) -> Iterator[str]:
    """A line for each bar with the verdict of each seed; a bar that a seed does not have is a dash there."""
    rows: dict[tuple[str, str, int], dict[int, Bar]] = {}
    for seed, of_seed in bars.items():
        seen: dict[tuple[str, str], int] = {}
        for bar in of_seed:
            # The words before a bar say which models it compares, which may be others in another seed.
            key = (bar.part, bar.bar)
            seen[key] = seen.get(key, 0) + 1
            rows.setdefault((*key, seen[key]), {})[seed] = bar
    yield "".join(f"seed {seed:<6}" for seed in bars) + "bar"
    for (part, text, _), of_seeds in rows.items():
        cells = ["–" if seed not in of_seeds else "met" if of_seeds[seed].met else "MISSED" for seed in bars]
        what = next(iter(of_seeds.values())).what
        yield "".join(f"{cell:<11}" for cell in cells) + f"{part}: {f'{what}: ' if what else ''}{text}"


def _as_json(families: Mapping[str, Figure]) -> dict[str, Any]:
    return {family: as_json(found) for family, found in families.items()}


if __name__ == "__main__":
    sys.exit(main())
