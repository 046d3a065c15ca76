"""The parts of `together.py` that look at memory: the engine's is given back, and outputs of 32,768 tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from processes import Report, Until

CHILD = str(Path(__file__).with_name("memory_child.py"))
APART = 0.10  # share of the planned memory
FAR_APART = 0.02  # nats, sampler and learner 32,768 tokens behind the beginning, in the mean
WITHOUT_SAMPLING_S = 75  # of the part `long_outputs`


def give_back(report: Report, until: Until) -> None:
    """The engine's memory given back while the learner works: the same bits as with it held, and what it takes."""
    found = said_by_child(report, until, "give_back")
    if found is None:
        return
    held, given = found["held"], found["given_back"]
    same = [[step["digests"] for step in steps] for steps in (held, given)]
    report.add("give_back", "tokens, log-probs and weights", same, bar="the same bits", met=same[0] == same[1])
    fresh = found["fresh"]
    report.add("give_back", "graphs after it as those of a new engine", fresh, bar="the same bits", met=fresh)
    report.add("give_back", "keys and values, GB", gb(found["memory_bytes"]))
    for phase in ("sampling", "learning"):
        peaks = [[gb(step[f"{phase}_bytes"]) for step in steps] for steps in (held, given)]
        report.add("give_back", f"peak while {phase}, held and given back, GB", peaks)
    less = max(one["learning_bytes"] for one in held) - max(one["learning_bytes"] for one in given)
    share = less / found["memory_bytes"]
    report.add("give_back", "of it not in use while learning", round(share, 3), bar="all", met=share > 0.98)
    report.add("give_back", "what others had meanwhile, GB", [gb(step["others_bytes"]) for step in given])
    for what in ("rest_s", "take_s"):
        report.add("give_back", f"{what}, of each step", [round(step[what], 4) for step in given])
    for what in ("sampling_s", "learning_s"):
        report.add("give_back", f"{what}, held and given back", [[round(s[what], 2) for s in w] for w in (held, given)])


def long_outputs(report: Report, until: Until) -> None:
    """Outputs of 32,768 tokens at 1.5B, sampled as far as the time goes, and learned from in full."""
    found = said_by_child(report, until, "long_outputs", str(max(10.0, until.left_s - WITHOUT_SAMPLING_S)))
    if found is None:
        return
    report.add("long_outputs", "tokens drawn of 32,768 each", found["drawn"])
    report.add("long_outputs", "milliseconds of a step, early and late", [round(ms, 2) for ms in found["ms_per_step"]])
    report.add("long_outputs", "seconds of 768 tokens behind 32,768", round(found["far_s"], 1))
    far = found["far_apart"]
    report.add(
        "long_outputs", "sampler and learner apart there, nats", round(far, 5), bar=f"{FAR_APART}", met=far <= FAR_APART
    )
    is_taken = found.get("optim/skipped") == 0
    report.add("long_outputs", "step on 4 x 32,832 tokens, s", round(found["learning_s"], 1), bar="taken", met=is_taken)
    for phase in ("rehearsal", "sampling", "learning"):
        report.add("long_outputs", f"peak of {phase}, GB", gb(found[f"{phase}_bytes"]))
    used, planned = found["used_bytes"], found["planned_bytes"]
    said = f"planned {gb(planned)} GB, used {gb(used)} GB, {used / planned - 1:+.1%}"
    report.add("long_outputs", "memory", said, bar=f"within {APART:.0%}", met=abs(used / planned - 1) <= APART)


def said_by_child(report: Report, until: Until, part: str, *arguments: str) -> dict[str, Any] | None:
    """What a process of memory_child.py found; None where it failed."""
    started = until.start(CHILD, part, *arguments)
    code = started.wait()
    if code == 0:
        found: dict[str, Any] = json.loads(started.said(60_000).strip().splitlines()[-1])
        return found
    report.add(part, "the process's exit code", code, bar="exit code 0", met=False)
    print(started.said(6000), flush=True)
    return None


def gb(size: float) -> float:
    return round(size / 1e9, 2)
