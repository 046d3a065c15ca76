"""Whether engine, learner and adapters hold together on one GPU: bits, speed, memory and start, by the command line.

Each part has its own time limit and runs in processes of its own, so that the failure of one hides no other. Nothing is
fetched: models are the ones that ship, and random weights of Qwen2.5's shapes. Exit code 1 if a bar is missed.

    PYTHONPATH=src python benchmarks/gpu/together.py
    PYTHONPATH=src python benchmarks/gpu/together.py --parts zero kills --limit kills=300 --json together.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from memory_parts import APART, give_back, long_outputs
from processes import ROOT, Report, Until

sys.path.insert(0, str(ROOT / "src"))
CHILD = str(Path(__file__).with_name("together_child.py"))
SHIPPED = ROOT / "src" / "reasonmill"
# Seconds that a part may take.
LIMITS = {
    "tests": 240,
    "repeat": 180,
    "zero": 240,
    "lora": 300,
    "kills": 300,
    "start": 180,
    "full_memory": 300,
    "lora_memory": 400,
    "give_back": 120,
    "long_outputs": 150,
}
FASTER, START_S = 5.0, 60.0  # the bars: times as fast as a CPU, seconds
KILLED = ("drawn_out",)  # the kill matrix's recipe with texts of hundreds of tokens: rl, distill
CORES = 2  # of the CPU that is compared with


def tests(report: Report, until: Until) -> None:
    files = ["tests/unit/test_cuda_kernels.py", "tests/contract/test_engine.py", "tests/invariants/test_cuda_engine.py"]
    files += ["tests/invariants/test_experts.py", "tests/invariants/test_learner.py", "tests/unit/test_lora.py"]
    for name in files:
        started = until.start("-m", "pytest", "-q", "-x", "-m", "check or not check", "-p", "no:cacheprovider", name)
        code = started.wait()
        summary = started.said().strip().splitlines()[-1:]
        report.add("tests", name, summary[0] if summary else "", bar="passes", met=code == 0)
        if code != 0:
            print(started.said(6000), flush=True)


def repeat(report: Report, until: Until) -> None:
    """The same rollouts in two processes, the second beside one that keeps the card busy and after other requests."""
    first = until.start(CHILD, "digest")
    codes = [first.wait()]
    busy = until.start(CHILD, "busy")
    second = until.start(CHILD, "digest", "after")
    codes.append(second.wait())
    busy.kill()
    digests = [re.findall(r"digest (\w+)", one.said()) for one in (first, second)]
    same = codes == [0, 0] and digests[0] == digests[1] and len(digests[0]) == 2
    report.add("repeat", "tokens and log-probs in two processes", digests, bar="the same bits", met=same)
    if not same:
        print(first.said(), second.said(), flush=True)


def zero(report: Report, until: Until) -> None:
    """The stage `zero` of r1-zero-tiny on the card, and on two cores as far as the time allows."""
    recipe = until.directory / "zero.toml"
    whole = (SHIPPED / "recipes" / "r1-zero-tiny.toml").read_text()
    stages = whole.split("[[stage]]")
    kept = [part for part in stages[1:] if 'name = "zero"' in part]
    recipe.write_text("[[stage]]".join([stages[0], *kept]))
    homes = {device: until.directory / f"zero-{device}" for device in ("cpu", "cuda")}
    cores = ["taskset", "-c", ",".join(map(str, range(CORES)))]
    cpu = until.mill(
        "run", str(recipe), "--home", str(homes["cpu"]), "--device", "cpu", prefix=cores, OMP_NUM_THREADS=str(CORES)
    )
    card = until.mill("run", str(recipe), "--home", str(homes["cuda"]), "--device", "cuda")
    began = time.monotonic()
    code = card.wait()
    seconds = time.monotonic() - began
    if code != 0:
        print(card.said(4000), flush=True)
    report.add("zero", "r1-zero-tiny's zero ends on the card", code, bar="exit code 0", met=code == 0)
    while until.left_s > 5 and cpu.process.poll() is None:
        time.sleep(1)
    cpu.kill()
    mine, theirs = metrics_of(homes["cuda"]), metrics_of(homes["cpu"])
    steps = min(len(mine), len(theirs))
    if not steps:
        report.add("zero", "steps on the CPU", len(theirs), bar="one at least", met=False)
        print(cpu.said(), flush=True)
        return
    took = [[row["speed/step_s"] for row in rows[:steps]] for rows in (mine, theirs)]
    report.add("zero", "steps on the card, seconds each", [round(row["speed/step_s"], 2) for row in mine])
    report.add("zero", f"first {steps} steps on {CORES} cores, seconds each", [round(s, 2) for s in took[1]])
    for part in ("sampling", "scoring"):
        middle = statistics.median(row[f"speed/{part}_s"] for row in mine)
        report.add("zero", f"{part} on the card, median seconds", round(middle, 3))
    report.add("zero", "from command to end on the card, seconds", round(seconds, 1))
    faster = sum(took[1]) / sum(took[0])
    report.add("zero", "times as fast", round(faster, 2), bar=f"at least {FASTER:.0f}", met=faster >= FASTER)
    last = [[round(row["reward/mean"], 3) for row in rows[:steps]] for rows in (mine, theirs)]
    report.add("zero", "rewards, card and CPU", last)
    report.add("zero", "sampler and learner apart, nats", apart(mine))


def apart(rows: Sequence[Mapping[str, float]]) -> str:
    """The mean over steps and the largest of all, of what a real run measured."""
    means = [row["mismatch/mean"] for row in rows if "mismatch/mean" in row]
    largest = [row["mismatch/max"] for row in rows if "mismatch/max" in row]
    return f"mean {statistics.fmean(means):.5f}, largest {max(largest):.3f}" if means else "not measured"


LORA = """
name = "lora"
seed = 3

[[stage]]
name = "sampled"
kind = "collect"
from = "tiny-base"
tasks = { countdown-3 = 128 }
samples = 4

[[stage]]
name = "data"
kind = "curate"
data = ["sampled"]
keep = { correct = false, well_formed = false }

[[stage]]
name = "tuned"
kind = "sft"
from = "tiny-base"
data = ["data"]
epochs = 1
schedule = { peak = 1e-3 }
lora = { rank = 16 }

[[stage]]
name = "zero"
kind = "rl"
from = "tuned"
steps = 4
problems_per_step = 16
group_size = 8
updates_per_step = 2
loss = { algorithm = "dapo", kl_coefficient = 0.1, kl_estimator = "k2" }
schedule = { peak = 1e-3 }
tasks = { countdown-3 = 1.0 }
lora = { rank = 16 }
"""


def lora(report: Report, until: Until) -> None:
    """sft and rl with adapters in bf16; once more with activations recomputed, to the same bits."""
    recipe = until.directory / "lora.toml"
    recipe.write_text(LORA)
    ways = {"kept": (), "recomputed": ("--set", "tuned.recompute=true", "--set", "zero.recompute=true")}
    homes = {name: until.directory / f"lora-{name}" for name in ways}
    runs = {
        name: until.mill("run", str(recipe), "--home", str(homes[name]), "--device", "cuda", *more)
        for name, more in ways.items()
    }
    found = {}
    for name, run in runs.items():
        code = run.wait()
        report.add("lora", f"sft and rl with adapters, activations {name}", code, bar="exit code 0", met=code == 0)
        if code != 0:
            print(run.said(4000), flush=True)
            continue
        summary = json.loads((homes[name] / "runs" / "lora" / "summary.json").read_text())
        found[name] = {stage["name"]: (stage["digest"], stage["repeatable"]) for stage in summary["stages"]}
        report.add("lora", "sampler and learner apart, nats", apart(metrics_of(homes[name])))
    if len(found) == 2:
        same = found["kept"] == found["recomputed"]
        report.add("lora", "both have the same bits, and say so", same, bar="the same bits", met=same)


def kills(report: Report, until: Until) -> None:
    """The kill matrix of the tests, as many of its runs as the time allows."""
    jobs = max(1, min(6, (os.cpu_count() or 2) // 2))
    arguments = ["-m", "chaos.kill_matrix", "--runs", "24", "--jobs", str(jobs), "--device", "cuda"]
    arguments += ["--recipes", *KILLED]
    started = until.start(*arguments, TORCHINDUCTOR_COMPILE_THREADS="1")
    code = started.wait()
    said = started.said(60_000)
    runs = re.findall(r"^seed (\d+): (\S+), killed (\d+) times", said, re.MULTILINE)
    bad = re.findall(r"again: .*--seed (\d+)", said)
    kills = [int(times) for _, _, times in runs if times != "0"]
    what = f"{len(runs)} runs, {len(kills)} of them killed, {sum(kills)} kills, {len(bad)} that differ"
    fine = len(kills) >= 6 and not bad and code in (0, None)
    report.add("kills", "kill -9 at random times, then resumed", what, bar="the same ends", met=fine)
    if not fine:
        print(said[-6000:], flush=True)


RL = """
name = "big"
seed = 0

[models.big]
path = "{model}"

[[stage]]
name = "zero"
kind = "rl"
from = "big"
steps = {steps}
problems_per_step = {problems}
group_size = 8
tokens_per_batch = {row}
max_mismatch = 5.0
max_ungraded = 1.0
rewards = {{ accuracy = 1.0, random = 1.0 }}
schedule = {{ peak = 1e-6 }}
tasks = {{ countdown-3 = 1.0 }}
sampling = {{ max_tokens = {tokens} }}
{more}
"""


def made(until: Until, size: str) -> Path | None:
    """A model directory with random weights; None where that failed."""
    target = until.directory.parent / f"model-{size}"
    if not target.is_dir():
        started = until.start(CHILD, "make", size, str(target))
        if started.wait() != 0:
            print(started.said(), flush=True)
            shutil.rmtree(target, ignore_errors=True)
            return None
    return target


def start(report: Report, until: Until) -> None:
    """From the command to the first trained step at 1.5B."""
    model = made(until, "1.5b")
    if model is None:
        report.add("start", "making the model", "failed", bar="made", met=False)
        return
    recipe, home = until.directory / "start.toml", until.directory / "start"
    recipe.write_text(RL.format(model=model, steps=50, problems=16, row=16384, tokens=256, more=""))
    began = time.monotonic()
    run = until.mill("run", str(recipe), "--home", str(home), "--device", "cuda")
    while until.left_s > 0 and run.process.poll() is None and not metrics_of(home):
        time.sleep(0.2)
    seconds, trained = time.monotonic() - began, bool(metrics_of(home))
    run.kill()
    met = trained and seconds <= START_S
    what = round(seconds, 1) if trained else f"none after {seconds:.0f}"
    report.add("start", "first trained step at 1.5B, seconds", what, bar=f"{START_S:.0f} s", met=met)
    if not trained:
        print(run.said(4000), flush=True)


def full_memory(report: Report, until: Until) -> None:
    """1.5B in full, outputs of 8k tokens."""
    memory(report, until, "1.5b", problems=2, row=8192, tokens=8192, more="")


def lora_memory(report: Report, until: Until) -> None:
    """7B with an adapter."""
    memory(report, until, "7b", problems=8, row=8192, tokens=1024, more="lora = { rank = 16 }")


def memory(report: Report, until: Until, size: str, **settings: Any) -> None:
    """What the plan says of memory, and what a large stage took."""
    part = until.directory.name
    model = made(until, size)
    if model is None:
        report.add(part, "making the model", "failed", bar="made", met=False)
        return
    recipe, home = until.directory / "memory.toml", until.directory / "memory"
    recipe.write_text(RL.format(model=model, steps=1, **settings))
    codes = []
    for command in ("plan", "run"):
        began = time.monotonic()
        started = until.mill(command, str(recipe), "--home", str(home), "--device", "cuda")
        codes.append(started.wait())
        print(f"{part}: {command} took {time.monotonic() - began:.0f} s", flush=True)
        if codes[-1] != 0:
            print(started.said(4000), flush=True)
    plans = json.loads((home / "plans.json").read_text())["plans"] if (home / "plans.json").is_file() else []
    used = plans[-1]["used_bytes"] if plans else None
    if used is None:
        report.add(part, f"{size}, {settings}", f"exit codes {codes}", bar="it trains", met=False)
        return
    planned = plans[-1]["memory_bytes"]
    said = f"planned {planned / 1e9:.1f} GB, used {used / 1e9:.1f} GB, {used / planned - 1:+.1%}"
    report.add(part, f"{size}, {settings}", said, bar=f"within {APART:.0%}", met=abs(used / planned - 1) <= APART)


def metrics_of(home: Path) -> list[dict[str, Any]]:
    """Metrics of the steps of a home's last stage so far; none where there is no home yet."""
    from reasonmill.errors import ReasonmillError
    from reasonmill.store.home import Home

    with suppress(ReasonmillError, OSError, IndexError), Home.open(home, write=False) as opened:
        stages = [stage for run in opened.ledger.runs() for stage in run.stages]
        return opened.ledger.metrics(stages[-1].key)
    return []


PARTS: dict[str, Callable[[Report, Until], None]] = {
    one.__name__: one
    for one in (tests, repeat, zero, lora, kills, start, full_memory, lora_memory, give_back, long_outputs)
}


@contextmanager
def workplace(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", action="append", default=[], metavar="PART=SECONDS", help=f"in place of {LIMITS}")
    parser.add_argument("--json", type=Path, help="where to write the lines, too")
    parser.add_argument("--directory", type=Path, help="for homes and models, which stay there")
    options = parser.parse_args()
    limits = LIMITS | {name: float(value) for name, value in (given.split("=") for given in options.limit)}
    report = Report(options.json)
    with workplace(options.directory) as directory:
        for name in options.parts:
            own = directory / name
            own.mkdir(exist_ok=True)
            began = time.monotonic()
            try:
                PARTS[name](report, Until(limits[name], own))
            except Exception as error:
                report.add(name, "the part itself", repr(error), bar="runs", met=False)
            print(f"{name} took {time.monotonic() - began:.0f} s", flush=True)
    missed = [line for line in report.lines if line.met is False]
    print(f"{len(missed)} bars missed" + "".join(f"\n  {line}" for line in missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
