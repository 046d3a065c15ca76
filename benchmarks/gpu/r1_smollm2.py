"""The recipe `r1-smollm2` on one GPU: a sitting of a run, its figures and bars; the control of its reward; and kills.

A run that has not ended when the seconds are over is resumed by the same command. Exit code 1 if a bar is missed, 3 if
the run has not ended. MODEL is a directory or a GGUF file; DATA has gsm8k_train.jsonl, gsm8k_test.jsonl,
xstest_prompts.csv and simple_safety_tests.csv. OUT gets some small files.

    PYTHONPATH=src python benchmarks/gpu/r1_smollm2.py MODEL DATA OUT
    PYTHONPATH=src python benchmarks/gpu/r1_smollm2.py MODEL DATA OUT --seed 1 --seconds 480
    PYTHONPATH=src python benchmarks/gpu/r1_smollm2.py MODEL DATA OUT --set cycle.generations=2
    PYTHONPATH=src python benchmarks/gpu/r1_smollm2.py MODEL DATA OUT --outside r1 --problems 200
    PYTHONPATH=src python benchmarks/gpu/r1_smollm2.py MODEL DATA OUT --shuffled
    PYTHONPATH=src python benchmarks/gpu/r1_smollm2.py MODEL DATA OUT --kills 10
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import r1_bars
from processes import ROOT, Report, Started, Until
from together import SHIPPED

from reasonmill.mill.models import found_directory
from reasonmill.randomness import generator
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home

RECIPE = "r1-smollm2"
DATA = ("gsm8k_train.jsonl", "gsm8k_test.jsonl", "xstest_prompts.csv", "simple_safety_tests.csv")
NOT_ENDED = 3  # exit code
GRACE_S = 60.0  # that a run has to save its state
LARGEST = 16 << 20  # bytes of a file for OUT
# What the control runs: the cold start, RL without a signal from there, and the gate between them.
SHUFFLED = ("dev1", "dev1-eval", "dev2", "dev2-eval", "rl-verdict")
# What is killed: a stage of each kind.
KILLED = ("base-eval", "dev1", "dev2", "sampled", "sft-data", "talk", "talk-data", "dev3", "general-rollouts")
KILLED += ("helpfulness-rm", "safety-rm", "r1", "r1-eval", "small", "small-data", "small-sft", "small-distill", "gate")


@dataclass(frozen=True)
class Form:
    """A smaller form of the recipe: how much is asked, sampled and learned.

    Attributes:
        asked, collected: problems of each task, of evaluations and collections; of open questions more are collected.
        worked: solutions of each family.
    """

    asked: int
    collected: int
    worked: int
    steps: int
    problems_per_step: int
    group_size: int
    max_tokens: int


# "minutes" is the one that is killed; "trial" tries the script on a CPU.
FORMS = {
    "whole": None,
    "minutes": Form(50, 200, 400, 6, 32, 8, 256),
    "trial": Form(4, 12, 4, 1, 4, 2, 24),
}


def main() -> int:
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.home / f"seed-{options.seed}"
    place.mkdir(parents=True, exist_ok=True)
    if options.kills:
        return _kills(options, place)
    if options.outside:
        return _outside(options, place)
    return _sitting(options, place)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=480.0, help="after which the run is stopped, to be resumed")
    parser.add_argument("--home", type=Path, default=Path("/tmp/r1-smollm2"), help="a home for each seed is made here")
    parser.add_argument("--form", choices=FORMS, help="of the recipe: whole; of kills: minutes")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shuffled", action="store_true", help="dev2's rewards carry no signal: the gate must refuse")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill -9 at drawn moments, then compare")
    parser.add_argument("--outside", metavar="STAGE", help="compare this stage's model with plain transformers")
    parser.add_argument("--problems", type=int, default=200, help="of each family, for --outside")
    return parser


# The recipe


def write_recipe(options: argparse.Namespace, place: Path, name: str, stages: Collection[str] = ()) -> Path:
    """Writes the shipped recipe with the paths of model and data, and under another name; returns its path.

    Args:
        stages: those that stay; all if empty.
    """
    text = (SHIPPED / "recipes" / f"{RECIPE}.toml").read_text(encoding="utf-8")
    model = f"path = {json.dumps(str(options.model.resolve()))}\n"
    text, replaced = re.subn(r"^package = .*\nversion = .*\n(?:\w+ = [\d.e]+\n)*", lambda _: model, text, flags=re.M)
    assert replaced == 2, "the recipe's models are written in another way"
    for file in DATA:
        assert f'"{file}"' in text, f"the recipe does not name {file}"
        text = text.replace(f'"{file}"', json.dumps(str((options.data / file).resolve())))
    text = text.replace(f'name = "{RECIPE}"', f'name = "{name}"', 1)
    if stages:
        head, *parts = re.split(r"^(?=\[\[stage\]\]\n)", text, flags=re.M)
        kept = [part for part in parts if re.search(r'^name = "(.*)"$', part, re.M)[1] in stages]  # type: ignore[index]
        head = re.sub(r"^\[cycle\]\n(?:\w+ = .*\n)*", "", head, flags=re.M)
        text = head.replace('result = "gate"\n', "") + "".join(kept)
    if options.shuffled:
        text += f'\n[rewards.shuffled]\nuse = "{Path(__file__).with_name("shuffled.py")}:Shuffled"\n'
    path = place / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def settings_of(options: argparse.Namespace, recipe: Path, form: Form | None) -> list[str]:
    """All that `--set` says: the seed, what makes the form, the control's reward, and what the caller asks.

    What the caller asks of stages that a smaller recipe lacks is left out, so that the same command serves both.
    """
    text = recipe.read_text(encoding="utf-8")
    found = [f"seed={options.seed}", *([] if form is None else smaller(text, form))]
    found += ["dev2.rewards={ shuffled = 1.0 }"] if options.shuffled else []
    whole = tomllib.loads((SHIPPED / "recipes" / f"{RECIPE}.toml").read_text(encoding="utf-8"))
    missing = {stage["name"] for stage in whole["stage"]} - {stage["name"] for stage in tomllib.loads(text)["stage"]}
    found += [asked for asked in options.overrides if asked.partition(".")[0] not in missing]
    return [word for setting in found for word in ("--set", setting)]


def smaller(text: str, form: Form) -> list[str]:
    """What `--set` says to give a recipe a form."""
    table = tomllib.loads(text)
    found = [f"data.{name}.problems={form.worked}" for name in table["data"] if name.startswith("worked-")]
    for stage in table["stage"]:
        name, kind = stage["name"], stage["kind"]
        if kind == "evaluate":
            found += [f"{name}.tasks={_toml(dict.fromkeys(stage['tasks'], form.asked))}", f"{name}.samples=2"]
        elif kind == "collect":
            open_ended = {"everyday": max(40, form.collected), "harmful": max(20, form.collected // 4)}
            asked = {task: open_ended.get(task, form.collected) for task in stage["tasks"]}
            found += [f"{name}.tasks={_toml(asked)}", f"{name}.samples=4"]
        elif kind in ("rl", "distill"):
            found += [f"{name}.steps={form.steps}", f"{name}.problems_per_step={form.problems_per_step}"]
            found += [f"{name}.group_size={form.group_size}", f"{name}.state_every=2"]
        elif kind == "curate":
            # A model that learned as little has few right answers.
            found += [f"{name}.keep={{ correct = false, well_formed = false }}"]
            found += [f"{name}.decontaminate={_toml(dict.fromkeys(stage['decontaminate'], form.asked))}"]
        elif kind == "sft":
            found += [f"{name}.epochs=1", f"{name}.state_every=10"]
        elif kind == "reward-model":
            found += [f"{name}.held_out=0.4", f"{name}.epochs=1", f"{name}.min_margin=0.05" * ("min_margin" in stage)]
        if "sampling" in stage:
            found += [f"{name}.sampling.max_tokens={form.max_tokens}"]
    return [setting for setting in found if setting]


def _toml(table: Mapping[str, Any]) -> str:
    return f"{{ {', '.join(f'{name} = {value}' for name, value in table.items())} }}"


# A sitting


def _sitting(options: argparse.Namespace, place: Path) -> int:
    """Runs the recipe as far as the seconds go, and shows what the home has then."""
    name = f"{RECIPE}-shuffled" if options.shuffled else RECIPE
    recipe = write_recipe(options, place, name, SHUFFLED if options.shuffled else ())
    settings = settings_of(options, recipe, FORMS[options.form or "whole"])
    home = place / "home"
    began = time.monotonic()
    started = start(options, Until(options.seconds, place), recipe, home, settings)
    code = wait_gently(started)
    seconds = _all_seconds(place, name, time.monotonic() - began)
    said = started.log.read_text(errors="replace")
    print(said[-3000:], flush=True)
    report = Report(None)
    if code not in (0, None) and "the same command resumes" not in said:
        report.add("run", "reasonmill run", f"exit code {code}", bar="exit code 0", met=False)
    found = r1_bars.Found.read(home, name)
    if options.shuffled:
        _judge_shuffled(report, found)
    else:
        generation = 2 if any(stage.endswith("-g2") for stage in found.stages) else 1
        r1_bars.judge(report, found, seconds=seconds, generation=generation, finished=code == 0)
    lines = list(r1_bars.tables(found))
    print("\n".join(lines), flush=True)
    _copy(options.out, place, name, report, found, lines, started.log)
    missed = [line for line in report.lines if line.met is False]
    print(f"seed {options.seed}: {len(missed)} bars missed" + "".join(f"\n  {line}" for line in missed))
    return NOT_ENDED if code != 0 else int(bool(missed))


def start(options: argparse.Namespace, until: Until, recipe: Path, home: Path, settings: Sequence[str]) -> Started:
    """Starts the recipe, or resumes it."""
    return until.mill(
        "run", str(recipe), "--home", str(home), "--device", options.device, "--accept-unisolated-code", *settings
    )


def wait_gently(started: Started) -> int | None:
    """The exit code; a run whose time is over is asked to stop, and ended if it does not."""
    try:
        return started.process.wait(started.until.left_s)
    except subprocess.TimeoutExpired:
        started.process.send_signal(signal.SIGINT)
    try:
        return started.process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        started.kill()
        return None


def _all_seconds(place: Path, name: str, seconds: float) -> float:
    """The seconds of all sittings of a run, this one included."""
    file = place / f"{name}.seconds"
    earlier = json.loads(file.read_text()) if file.is_file() else []
    file.write_text(json.dumps([*earlier, seconds]))
    return sum(earlier) + seconds


def _judge_shuffled(report: Report, found: r1_bars.Found) -> None:
    """The gate must refuse what learned from rewards without a signal."""
    verdict = found.stages.get("rl-verdict")
    if verdict is None:
        report.add("shuffled", "not yet", "no verdict", bar="is there", met=False)
        return
    metrics = verdict.artifact.metrics
    said = "\n    ".join(["promoted" if metrics["promoted"] else "refused", *metrics["reasons"]])
    report.add("shuffled", "dev2 with shuffled rewards", said, bar="refused", met=not metrics["promoted"])


def _copy(
    out: Path, place: Path, name: str, report: Report, found: r1_bars.Found, lines: Sequence[str], log: Path
) -> None:
    """Copies to OUT what is small enough, under flat names."""
    label = f"{name}-{place.name}"
    (out / f"{label}.txt").write_text("\n".join([*map(str, report.lines), "", *lines]) + "\n", encoding="utf-8")
    content = {
        "bars": [asdict(line) for line in report.lines],
        "stages": [
            {
                "name": stage,
                "kind": one.kind,
                "seconds": one.seconds,
                "tokens": one.tokens,
                "digest": one.artifact.digest,
            }
            for stage, one in found.stages.items()
        ],
        "metrics": {stage: one.artifact.metrics for stage, one in found.stages.items()},
        "steps": found.steps,
    }
    (out / f"{label}.json").write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    (out / f"{label}.values.json").write_text(json.dumps(found.accuracies()), encoding="utf-8")
    shown = place / "home" / "runs" / name
    for source, target in (
        (shown / "report.html", f"{label}-report.html"),
        (shown / "summary.json", f"{label}-summary.json"),
        (log, f"{label}.log"),
        (place / f"{name}.toml", f"{label}.toml"),
    ):
        if source.is_file() and source.stat().st_size <= LARGEST:
            shutil.copyfile(source, out / target)


# Outside


def _outside(options: argparse.Namespace, place: Path) -> int:
    """Runs `generate_outside.py` on a stage's model and the problems of all families; OUT gets what it found."""
    recipe = write_recipe(options, place, RECIPE)
    loaded = load_recipe(str(recipe), settings_of(options, recipe, FORMS[options.form or "whole"])[1::2])
    with Home.open(place / "home", write=False) as home:
        base = found_directory(loaded.models["smollm2"], home)
    assert base is not None  # the run has read it
    command = [sys.executable, str(ROOT / "benchmarks" / "generate_outside.py"), f"{RECIPE}/{options.outside}"]
    command += [str(base), "--home", str(place / "home"), "--recipe", str(recipe), "--device", options.device]
    command += [word for family in r1_bars.FAMILIES for word in ("--task", family)]
    command += ["--problems", str(options.problems), "--seed", str(options.seed), "--max-tokens", "384"]
    command += ["--batch-size", "1024", "--accept-unisolated-code", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    file = options.out / f"{RECIPE}-{place.name}-outside-{options.outside}.json"
    with file.open("w", encoding="utf-8") as found:
        code = subprocess.run(command, env=environment, stdout=found, timeout=options.seconds).returncode
    print(file.read_text(encoding="utf-8"), flush=True)
    return code


# Kills


def _kills(options: argparse.Namespace, place: Path) -> int:
    """An unbroken run, and one that is killed at drawn moments and resumed: both must end with the same bits."""
    name = f"{RECIPE}-killed"
    recipe = write_recipe(options, place, name, KILLED)
    settings = settings_of(options, recipe, FORMS[options.form or "minutes"])
    until, report = Until(options.seconds, place), Report(options.out / f"{name}-{place.name}.json")
    notes = place / f"{name}.kills"
    state: dict[str, Any] = json.loads(notes.read_text()) if notes.is_file() else {"reference": None, "kills": []}
    if state["reference"] is None:
        began = time.monotonic()
        reference = start(options, until, recipe, place / "unbroken", settings)
        if wait_gently(reference) != 0:
            shutil.rmtree(place / "unbroken")
            print(reference.said(4000), f"\nseed {options.seed}: the reference has not ended", flush=True)
            return NOT_ENDED
        state["reference"] = time.monotonic() - began
        notes.write_text(json.dumps(state))
    whole = r1_bars.Found.read(place / "unbroken", name)
    working = sum(one.seconds for one in whole.stages.values())
    draws = generator("kills", options.seed)
    moments = sorted(draws.uniform(0, working) for _ in range(options.kills))
    # Of a start, what comes before its work; then the work up to the next moment.
    begin_s = max(0.0, state["reference"] - working)
    code = None
    while code is None:
        landed = len(state["kills"])
        before = moments[landed - 1] if landed else 0.0
        after_s = begin_s + moments[landed] - before if landed < options.kills else until.left_s
        run = start(options, until, recipe, place / "killed", settings)
        try:
            code = run.process.wait(min(after_s, until.left_s))
        except subprocess.TimeoutExpired:
            run.kill()
            if until.left_s <= 0:
                print(f"seed {options.seed}: {landed} kills so far, and it has not ended", flush=True)
                return NOT_ENDED
            state["kills"].append(after_s)
            notes.write_text(json.dumps(state))
    times = ", ".join(f"{seconds:.1f}" for seconds in state["kills"])
    report.add("kills", "the unbroken run, seconds", round(state["reference"], 1))
    said = f"{len(state['kills'])}, {times} s after their starts; exit code {code}"
    met = code == 0 and len(state["kills"]) == options.kills
    report.add("kills", "killed", said, bar=f"{options.kills} kills, and it ends", met=met)
    if code != 0:
        print(run.said(4000), flush=True)
        return 1
    ends = [_digests(place / side, name) for side in ("unbroken", "killed")]
    other = [stage for stage in ends[0] if ends[0][stage] != ends[1].get(stage)]
    said = f"{len(ends[0])} stages, of which other bits: {', '.join(other) or 'none'}"
    report.add("kills", "both ends", said, bar="the same bits", met=not other and ends[0].keys() == ends[1].keys())
    missed = [line for line in report.lines if line.met is False]
    print(f"seed {options.seed}: {len(missed)} bars missed")
    return int(bool(missed))


def _digests(path: Path, run: str) -> dict[str, str]:
    """What each stage of a run made, by content."""
    return {name: one.artifact.digest for name, one in r1_bars.Found.read(path, run).stages.items()}


if __name__ == "__main__":
    sys.exit(main())
