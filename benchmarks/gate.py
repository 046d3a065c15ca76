"""Does the gate promote what is better, and nothing else?

Three measurements in one home: two honest generations of the recipe, of which the gate must promote the first (a gate
that refuses everything would pass the other bars) and may say what it likes of the second; a second generation that
learned from random rewards, which the gate must refuse; and comparisons of the first generation's candidate with itself
under other sampling seeds, of which the gate may promote one at most. Finished stages are taken from the home. Exit
code 1 if a bar is missed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seeds import Run, Verdict, conclude, parser, print_json, run, say, write_recipe

from reasonmill.errors import ReasonmillError
from reasonmill.recipe.load import load_recipe

GATE = "gate"
SECOND = "-g2"  # behind the names of the second generation's stages
RL_STAGES = ("dev2", "r1")  # of a generation
COMPARISONS = 20
PROMOTIONS_BAR = 1


def main() -> int:
    options_parser = parser(
        __doc__,
        home="mill/r1-tiny",
        recipe="r1-tiny",
        needs=f"a cycle, a gate stage {GATE} and the rl stages {' and '.join(RL_STAGES)}",
    )
    options_parser.add_argument("--seed", type=int, default=0, help="seed of the recipe")
    options = options_parser.parse_args()
    home = options.home / f"seed-{options.seed}"
    settings = [f"seed={options.seed}", "cycle.generations=2", *options.overrides]
    say(f"two honest generations: home {home}")
    honest = run(options.recipe, settings, home, options.device)
    generations = {f"generation {n}": honest.metrics(stage) for n, stage in ((1, GATE), (2, GATE + SECOND))}
    say("a sabotaged second generation")
    sabotaged = run(options.recipe, [*settings, *_sabotage(options.recipe, settings)], home, options.device)
    say(f"{COMPARISONS} comparisons of a model with itself")
    stages = _settings(options.recipe, settings)
    same = _same_model(honest, stages, options.seed, options.device)

    refused = sabotaged.metrics(GATE + SECOND)
    generations["generation 2, sabotaged"] = refused
    promotions = sum(verdict["promoted"] for verdict in same)
    candidate = stages[GATE]["candidate"]
    first = generations["generation 1"]
    verdicts = [
        Verdict("the gate promotes the first generation over the base", first["promoted"], _outcome(first)),
        Verdict("the gate refuses the sabotaged generation", not refused["promoted"], _outcome(refused)),
        Verdict(
            f"of {COMPARISONS} comparisons of {candidate} with itself the gate promotes {PROMOTIONS_BAR} at most",
            promotions <= PROMOTIONS_BAR,
            f"{promotions} promoted",
        ),
    ]
    if options.json:
        content = {"recipe": options.recipe, "seed": options.seed, "generations": generations, "same model": same}
        return print_json(content, verdicts)
    for name, verdict in generations.items():
        print(f"{name}: {_outcome(verdict)}")
        for reason in verdict["reasons"]:
            print(f"  {reason}")
        print()
    _print_same(same)
    return conclude(verdicts)


def _sabotage(recipe: str, settings: Sequence[str]) -> list[str]:
    """Overrides that make a coin the only reward of the second generation."""
    found = _settings(recipe, settings)
    changed = []
    for stage in (name + SECOND for name in RL_STAGES):
        changed.append(f"{stage}.rewards={{random=1.0}}")
        if found[stage]["reward_models"]:  # without a weight they would be refused
            changed += [f"{stage}.reward_models={{}}", f"{stage}.preference_share=1.0"]
    return changed


def _settings(recipe: str, settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings of the recipe's stages, by name."""
    stages = {stage["name"]: stage for stage in load_recipe(recipe, settings).resolved()["stage"]}
    missing = {GATE, *RL_STAGES, *(name + SECOND for name in (GATE, *RL_STAGES))} - stages.keys()
    if missing:
        raise SystemExit(f"the recipe lacks the stages {', '.join(sorted(missing))}")
    return stages


def _same_model(
    honest: Run, stages: Mapping[str, Mapping[str, Any]], seed: int, device: str
) -> list[Mapping[str, Any]]:
    """Verdicts on a model against itself.

    Each evaluation is compared with the one before it, so that one lucky evaluation is the parent of one comparison
    only.
    """
    gate = stages[GATE]
    model = str(honest.artifact(gate["candidate"]))
    asked = {key: stages[gate["candidate_eval"]][key] for key in ("tasks", "samples", "split", "sampling")}
    rules = {key: gate[key] for key in ("better", "alpha", "not_worse")}
    evaluations = [
        {"name": f"eval-{n}", "kind": "evaluate", "from": model, "sampling_seed": n + 1, **asked}
        for n in range(COMPARISONS + 1)
    ]
    gates = [
        {
            "name": f"gate-{n}",
            "kind": "gate",
            "candidate": model,
            "candidate_eval": f"eval-{n}",
            "parent": model,
            "parent_eval": f"eval-{n - 1}",
            **rules,
        }
        for n in range(1, COMPARISONS + 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "same-model.toml"
        write_recipe(path, "same-model", seed, [*evaluations, *gates])
        compared = run(str(path), [], honest.home, device)
    return [compared.metrics(stage["name"]) for stage in gates]


def _outcome(verdict: Mapping[str, Any]) -> str:
    failed = [name for name, rule in verdict["rules"].items() if not rule["holds"]]
    return "promoted" if verdict["promoted"] else f"refused because of {', '.join(failed)}"


def _print_same(same: Sequence[Mapping[str, Any]]) -> None:
    """What the rule of `better` found in each comparison of a model with itself, and how often each rule held."""
    print("the same model under other sampling seeds")
    for number, verdict in enumerate(same, start=1):
        better = verdict["rules"]["better"]
        change = f"{better['difference']['value'] * 100:+.1f} points, p = {better['p_value']:.4f}"
        print(f"  {number:2}  {change}; {_outcome(verdict)}")
    for rule in same[0]["rules"]:
        print(f"  {rule} holds in {sum(verdict['rules'][rule]['holds'] for verdict in same)} of {len(same)}")
    print()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReasonmillError, subprocess.CalledProcessError) as error:
        sys.exit(f"gate.py: {error}")
