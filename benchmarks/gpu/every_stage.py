"""Runs each stage of `r1-qwen2.5-1.5b` once at a real size: random weights of Qwen2.5's shapes, few steps of each.

Nothing can be learned from random weights. What is looked at: the stages run at these sizes, all figures are finite,
weights change, and a stage takes no more memory than was planned. Of the evaluations those run that others read; a
stage `shorten` is added. Nothing is fetched. Exit code 1 if a bar is missed.

    PYTHONPATH=src python benchmarks/gpu/every_stage.py --size 0.5b
    PYTHONPATH=src python benchmarks/gpu/every_stage.py --size 1.5b --limit 400 --tokenizer SMOLLM2
    PYTHONPATH=src python benchmarks/gpu/every_stage.py --size trial --device cpu
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from memory_parts import APART
from processes import Report, Until
from safetensors import safe_open
from shapes import SIZES
from together import SHIPPED, workplace

from reasonmill.mill.planning import plan_key
from reasonmill.recipe.graph import Recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home
from reasonmill.store.plans import read_plans

RECIPE = "r1-qwen2.5-1.5b"
TINY_BASE = SHIPPED / "world" / "bases" / "tiny-base"
TRAINED = ("rl", "sft", "distill", "reward-model")
# The student of each size, which the recipe calls qwen-small.
STUDENTS = {"1.5b": "0.5b", "0.5b": "0.5b", "trial": "trial"}
# Evaluations that run: those that others read, and that of the student.
EVALUATIONS = ("dev3-eval", "base-eval", "r1-eval", "small-distill-eval")
ASKED = {
    "countdown-3": 8,
    "countdown-4": 8,
    "arithmetic": 8,
    "facts": 8,
    "small-talk": 4,
    "harmful-requests": 8,
    "harmless-requests": 8,
}
REASONING = {"countdown-3": 48, "countdown-4": 48, "arithmetic": 32}
GENERAL = {"facts": 96, "small-talk": 32, "harmful-requests": 32, "harmless-requests": 32}
# What is asked of each kind, beside what the recipe says. Random weights find nothing: chance is a reward, too, what is
# wrong is kept, and answers differ by little. States, of gigabytes each, are kept nowhere.
SMALL: dict[str, dict[str, Any]] = {
    "rl": {
        "steps": 2,
        "problems_per_step": 16,
        "group_size": 8,
        "rewards.random": 1.0,
        "max_ungraded": 1.0,
        "max_mismatch": 5.0,
        "sampling.max_tokens": 128,
        "schedule.decay": "cosine",
    },
    "distill": {
        "steps": 2,
        "problems_per_step": 16,
        "group_size": 4,
        "sampling.max_tokens": 128,
        "schedule.decay": "cosine",
    },
    "collect": {"samples": 4, "sampling.max_tokens": 64, "max_ungraded": 1.0},
    "curate": {"keep": {"correct": False, "well_formed": False}, "decontaminate": ASKED, "max_conversations": 256},
    "sft": {"epochs": 1},
    "reward-model": {"epochs": 1, "held_out": 0.3, "examples_per_step": 32},
    "evaluate": {"tasks": ASKED, "samples": 2, "sampling.max_tokens": 64, "max_ungraded": 1.0},
}
SHORTENED = """
[[stage]]
name = "shortened"
kind = "shorten"
from = "qwen"
layers = {layers}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=STUDENTS, default="0.5b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tokenizer", type=Path, default=TINY_BASE, help="a directory with a byte-level BPE tokenizer")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for all of it")
    parser.add_argument("--directory", type=Path, help="for the home and the models, which stay there")
    parser.add_argument("--json", type=Path, help="where to write the lines, too")
    options = parser.parse_args()
    report = Report(options.json)
    sizes = {"qwen": options.size, "qwen-small": STUDENTS[options.size]}
    with workplace(options.directory) as directory:
        until = Until(options.limit, directory)
        models = {name: directory / f"model-{size}" for name, size in sizes.items()}
        drawn = ["--device", options.device, "--tokenizer", str(options.tokenizer.resolve())]
        for name, model in models.items():
            if not model.is_dir():
                made = [str(Path(__file__).with_name("random_model.py")), str(model), "--size", sizes[name], *drawn]
                _command(report, until, f"{name}'s weights", *made)
        recipe, home = directory / f"{RECIPE}.toml", directory / "home"
        text = small_recipe(models, layers=SIZES[options.size]["num_hidden_layers"])
        recipe.write_text(text, encoding="utf-8")
        settings = [word for setting in smaller(text) for word in ("--set", setting)]
        for command in ("plan", "run"):
            arguments = [command, str(recipe), "--home", str(home), "--device", options.device, *settings]
            _command(report, until, command, "-m", "reasonmill", *arguments)
        if home.is_dir():
            loaded = load_recipe(str(recipe), smaller(text))
            _look(report, home, loaded, models, judges_memory=options.device == "cuda")
    missed = [line for line in report.lines if line.met is False]
    print(f"{len(missed)} bars missed" + "".join(f"\n  {line}" for line in missed))
    return int(bool(missed))


def small_recipe(models: Mapping[str, Path], *, layers: int) -> str:
    """The shipped recipe's text on these models, without the evaluations that nobody reads, and with `shorten`."""
    text = (SHIPPED / "recipes" / f"{RECIPE}.toml").read_text(encoding="utf-8")
    for name, path in models.items():
        table = re.compile(
            rf"(?<=^\[models\.{re.escape(name)}\]\n)hub = .*\nrevision = .*\n(template = .*\n)(?:\w+ = .*\n)*", re.M
        )
        text, replaced = table.subn(lambda found, path=path: f"path = {json.dumps(str(path))}\n{found[1]}", text)
        assert replaced == 1, f"the recipe's model {name} is written in another way"
    head, *stages = re.split(r"^(?=\[\[stage\]\]\n)", text, flags=re.M)
    kept = [
        stage
        for stage in stages
        if 'kind = "evaluate"' not in stage or any(f'name = "{name}"\n' in stage for name in EVALUATIONS)
    ]
    return head + "".join(kept) + SHORTENED.format(layers=layers // 2)


def smaller(text: str) -> list[str]:
    """What `--set` says to make each stage of the recipe small."""
    found = []
    for stage in tomllib.loads(text)["stage"]:
        for key, value in SMALL.get(stage["kind"], {}).items():
            if key == "max_conversations" and key not in stage:
                continue
            found.append(f"{stage['name']}.{key}={_toml(value)}")
        if stage["kind"] == "collect":
            reasons = set(stage["tasks"]) <= set(REASONING)
            found.append(f"{stage['name']}.tasks={_toml(REASONING if reasons else GENERAL)}")
            # The world's judge reads nothing that is longer.
            found += [] if reasons else [f"{stage['name']}.sampling.max_tokens=24"]
        if "general" in stage:
            found.append(f"{stage['name']}.general.conversations=64")
        if stage.get("objective") == "pairwise":
            found.append(f"{stage['name']}.min_margin=0.05")
    return found


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value)


def _command(report: Report, until: Until, what: str, *arguments: str) -> None:
    """Runs a command of the whole."""
    began = time.monotonic()
    started = until.start(*arguments)
    code = started.wait()
    report.add("whole", what, f"{time.monotonic() - began:.1f} s, exit code {code}", bar="exit code 0", met=code == 0)
    if code != 0:
        print(started.said(6000), flush=True)


def _look(report: Report, path: Path, recipe: Recipe, models: Mapping[str, Path], *, judges_memory: bool) -> None:
    """What each stage took and made, as far as the run came."""
    kept = {plan.key: plan for plan in read_plans(path).plans}
    directories = dict(models)
    with Home.open(path, write=False) as home:
        (run,) = home.ledger.runs()
        keys = {stage.name: stage.key for stage in run.stages}
        for node in recipe.nodes:
            name, kind = node.settings.name, node.settings.kind
            record = home.ledger.stage(keys[name]) if name in keys else None
            if record is None:
                report.add(kind, name, "did not end", bar="ends", met=False)
                continue
            directories[name] = home.objects.path(record.artifact.digest)
            steps = home.ledger.metrics(record.key)
            said, fine = [f"{record.seconds:.1f} s"], True
            plan = kept.get(plan_key(recipe, node))
            if plan is not None and plan.used_bytes and plan.memory_bytes:
                said.append(f"{plan.used_bytes / 1e9:.2f} GB of {plan.memory_bytes / 1e9:.2f} GB planned")
                fine &= not judges_memory or plan.used_bytes <= (1 + APART) * plan.memory_bytes
            fine &= all(map(math.isfinite, _numbers([steps, record.artifact.metrics])))
            if kind in TRAINED:
                losses = [row for row in steps if any(name.partition("/")[0] == "loss" for name in row)]
                changed = changed_share(directories[node.settings.from_], directories[name])
                said += [f"{len(losses)} losses", f"{changed:.1%} of the weights changed"]
                fine &= bool(losses) and changed > 0 and not any(row["optim/skipped"] for row in steps)
            said += [f"{label} {value}" for label, value in _speeds(steps).items()]
            report.add(kind, name, ", ".join(said), bar="finite, changed, as planned", met=fine)


def _speeds(steps: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """How fast the last step was, and how far sampler and learner were apart, where that was measured."""
    last = steps[-1] if steps else {}
    shown = {"tokens/s": "speed/tokens_per_s", "s a step": "speed/step_s", "apart, nats": "mismatch/mean"}
    return {label: f"{last[name]:.3g}" for label, name in shown.items() if name in last}


def changed_share(before: Path, after: Path) -> float:
    """Share of the weights of a model that are others in one made of it; those that only one of them has do not count.

    NaN where a weight of the one made is not finite.
    """
    old = dict(_weights(before))
    changed = whole = 0
    for name, weight in _weights(after):
        if not bool(torch.isfinite(weight).all()):
            return math.nan
        if name in old:
            changed += int((weight.to(old[name].dtype) != old[name]).sum())
            whole += weight.numel()
    return changed / whole if whole else 0.0


def _weights(model: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model's directory and their names."""
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                yield name, opened.get_tensor(name)


def _numbers(found: Any) -> Iterator[float]:
    """All numbers of what was measured."""
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, list | tuple):
        for each in found:
            yield from _numbers(each)
    elif isinstance(found, int | float):
        yield float(found)


if __name__ == "__main__":
    sys.exit(main())
