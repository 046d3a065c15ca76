"""Whether a setting does what its case says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from knobs.flips import BITS, LEFT_OUT, Flip, With, changed
from knobs.tree import Knob

# What a table comes to, in a scene, by parts.
See = Callable[[Mapping[str, Any], str], Mapping[str, Any]]
# What must stay as it is, by the verdict.
_STAYS = {
    "decides": (),
    "computes": (),
    "measures": ("made", "groups", "asked"),
    "incidental": BITS,
    "bounds": BITS,
    "admits": BITS,
    "names": BITS,
}


def faults(base: Mapping[str, Any], path: str, flip: Flip, see: See) -> list[str]:
    """What is wrong with a setting, in words; none if it does what its case says."""
    table = changed(base, flip.given)
    before = see(table, flip.scene)
    found = [f"no run goes on: {before['ended']} {before.get('said')}"] if before["ended"] else []
    for number, value in enumerate(flip.values):
        beside = value.beside if isinstance(value, With) else {}
        plain = value.value if isinstance(value, With) else value
        after = see(changed(table, {**dict.fromkeys(flip.instead, LEFT_OUT), **beside, path: plain}), flip.scene)
        moved = {part for part in before if before[part] != after.get(part)}
        if flip.verdict == "refused":
            found += [] if after["ended"] in REFUSALS else [f"{value!r} is taken"]
        elif flip.verdict in ("bounds", "admits") and number == len(flip.values) - 1:
            found += [] if "ended" in moved else [f"{value!r} ends nothing"]
        elif "ended" in moved:
            found.append(f"{value!r} ends the run: {after['ended']}")
        elif flip.verdict not in ("bounds", "admits") and not moved & set(flip.seen):
            found.append(f"{value!r} moves nothing of {flip.seen}, but {sorted(moved)}")
        elif stray := moved & set(_STAYS[flip.verdict]):
            found.append(f"{value!r} moves {sorted(stray)}, too")
    return found


REFUSALS = ("ValidationError", "RecipeError")


def misfits(knobs: Mapping[str, Knob], cases: Mapping[str, Flip]) -> list[str]:
    """Settings without a case, cases without a setting, and those that are of the wrong kind, in words."""
    found = [f"{path}: it has no case" for path in knobs.keys() - cases.keys()]
    found += [f"{path}: there is no such setting" for path in cases.keys() - knobs.keys()]
    for path in knobs.keys() & cases.keys():
        knob, flip = knobs[path], cases[path]
        if knob.is_incidental != (flip.verdict in ("incidental", "bounds")) and flip.verdict != "refused":
            found.append(f"{path}: it is{'' if knob.is_incidental else ' not'} marked as incidental")
        untried = [option for option in knob.options if option not in (*flip.tried, *flip.alike)]
        if len(untried) > 1:  # one is what the other runs have
            found.append(f"{path}: {untried} are never tried")
    return sorted(found)
