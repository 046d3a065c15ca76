"""How far earlier plans of a home were from what their stages took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reasonmill.store.plans import Plan

# Below this, what a stage takes is mostly the start of it, and a share of it says nothing.
_SHORTEST_S = 1.0


def errors(plans: Iterable[Plan]) -> dict[str, list[float]]:
    """(what it took) / planned - 1 of each plan that something came of: "time" and "memory"."""
    found: dict[str, list[float]] = {"time": [], "memory": []}
    for plan in plans:
        if plan.took_s is not None and plan.seconds and max(plan.took_s, plan.seconds) >= _SHORTEST_S:
            found["time"].append(plan.took_s / plan.seconds - 1)
        if plan.used_bytes is not None and plan.memory_bytes:
            found["memory"].append(plan.used_bytes / plan.memory_bytes - 1)
    return found


def past_errors(plans: Iterable[Plan]) -> str:
    """A line on earlier plans, for example "past plans: 4 stages took -12 % to +30 % of the time planned"."""
    found = errors(plans)
    parts = [f"{what} {_range(values)}" for what, values in found.items() if values]
    if not parts:
        return "past plans: none has been run yet in this home"
    stages = max(len(values) for values in found.values())
    return f"past plans: of {stages} planned stage{'s' if stages > 1 else ''}, what was used differed by: " + ", ".join(
        parts
    )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:+.0%}" if low == high else f"{low:+.0%} to {high:+.0%}"
