"""Plans that were made in a home, what they were measured from, and what came of them: one file, `plans.json`.

It holds nothing that a run needs. Where it is lost or damaged, what is planned next is measured again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reasonmill.store import disk
from reasonmill.store.commit import disk_errors
from reasonmill.store.looking import is_file

PLANS = "plans.json"
_VERSION = 1
# Plans that are kept: what is older says little about the code of today.
_MOST = 200


@dataclass(frozen=True)
class Plan:
    """What a plan said of a stage, and what the stage took; None where a figure is not known.

    Attributes:
        key: identifies the stage by its run, its name and its settings: its own key is not known before its inputs are.
        machine: the class of the machine that it was made for.
        begun: how many of its steps had been committed when it was planned: what is planned is the rest.
        seconds, memory_bytes: as planned.
        took_s, used_bytes: as it was in the end.
    """

    key: str
    machine: str
    begun: int
    seconds: float | None
    memory_bytes: float | None
    took_s: float | None = None
    used_bytes: float | None = None


@dataclass(frozen=True)
class KeptPlans:
    """The plans of a home, the oldest first, and measurements by what was measured."""

    plans: tuple[Plan, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    def with_plan(self, plan: Plan) -> KeptPlans:
        """With one more plan, in place of an earlier one of the same stage that nothing came of."""
        others = [kept for kept in self.plans if kept.key != plan.key or kept.took_s is not None]
        return replace(self, plans=(*others, plan)[-_MOST:])

    def open_plan(self, key: str) -> Plan | None:
        """The plan of a stage of which nothing came yet."""
        return next((plan for plan in self.plans if plan.key == key and plan.took_s is None), None)


def read_plans(home: Path) -> KeptPlans:
    """What a home keeps; nothing where the file is missing, damaged, or of another version."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((home / PLANS).read_bytes())
        if content["version"] == _VERSION:
            return KeptPlans(tuple(Plan(**plan) for plan in content["plans"]), dict(content["measured"]))
    return KeptPlans()


def write_plans(home: Path, kept: KeptPlans) -> None:
    """Replaces what a home keeps, all at once. The home is open for writing."""
    content = {"version": _VERSION, "plans": [asdict(plan) for plan in kept.plans], "measured": dict(kept.measured)}
    written = home / "tmp" / f"plans-{uuid.uuid4().hex}"
    with disk_errors(home):
        disk.write_file(written, json.dumps(content, indent=1).encode(), "plans")
        disk.fsync_file(written, "plans")
        disk.replace(written, home / PLANS, "plans")


def has_plans(home: Path) -> bool:
    """Whether anything was planned in a home."""
    return is_file(home / PLANS)


def finish_plan(home: Path, key: str, machine: str, begun: int, *, seconds: float, memory_bytes: int | None) -> None:
    """Notes what a stage took, if it was planned, for this machine and from where it began."""
    if not has_plans(home):
        return
    kept = read_plans(home)
    plan = kept.open_plan(key)
    if plan is None or (plan.machine, plan.begun) != (machine, begun):
        return
    done = replace(plan, took_s=seconds, used_bytes=memory_bytes)
    write_plans(home, replace(kept, plans=tuple(done if each is plan else each for each in kept.plans)))
