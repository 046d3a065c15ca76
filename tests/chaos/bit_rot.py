"""Bit rot: one case damages a few bytes of a finished run's home, which `verify` must see and a repair must mend.

python -m pytest tests/chaos/test_bit_rot.py --chaos-long --chaos-jobs 2
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contexts import BACKEND
from kept_progress import KeptProgress
from reasonmill.mill.pipeline import run_recipe
from reasonmill.recipe.load import load_recipe
from reasonmill.store.home import Home
from reasonmill.store.verification import Verification, verify_home

RECIPE = """
name = "rot"

[[stage]]
name = "zero"
kind = "rl"
from = "tiny-base-weak"
steps = 3
problems_per_step = 2
group_size = 4
state_every = 2
tasks = { countdown-3 = 1.0 }
schedule = { peak = 1e-3 }
sampling = { max_tokens = 24 }

[[stage]]
name = "samples"
kind = "collect"
from = "zero"
tasks = { countdown-3 = 4 }
problems_per_commit = 2
samples = 2
sampling = { max_tokens = 24 }

[[stage]]
name = "check"
kind = "evaluate"
from = "zero"
tasks = { countdown-3 = 2 }
samples = 2
sampling = { max_tokens = 24 }
"""
# Where a home keeps things: a case draws one of these before it draws a file, so that small ones have their turn.
PLACES = ("objects", "runs", "backups", "ledger.sqlite", "ledger.seal")


@dataclass(frozen=True)
class Outcome:
    """What a run made: digests by stage, what it told, and which stages it took from the ledger."""

    digests: dict[str, str]
    notes: tuple[str, ...]
    cached: tuple[str, ...]


def run(
    home: Path, recipe: Path, *, stop_requested: Callable[[], bool] = lambda: False, repair: bool = False
) -> Outcome:
    """What `reasonmill run` does, without a process of its own."""
    notes = KeptProgress()
    with Home.open(home) as opened:
        result = run_recipe(
            load_recipe(str(recipe)),
            opened,
            notes,
            until=None,
            backend=BACKEND,
            stop_requested=stop_requested,
            repair=repair,
        )
    digests = {stage.name: stage.artifact.digest for stage in result.stages}
    return Outcome(digests, tuple(notes.notes), tuple(stage.name for stage in result.stages if stage.cached))


def copy_on_write(home: Path, target: Path) -> None:
    """A home of its own: only SQLite writes into a file that exists, and all others can be links."""
    shutil.copytree(
        home, target, copy_function=lambda a, b: (shutil.copy2 if "sqlite" in Path(a).name else os.link)(a, b)
    )


def replace_content(path: Path, data: bytes) -> None:
    """Changes a file without changing those that are linked to it."""
    path.unlink()
    path.write_bytes(data)


def flip(files: Sequence[Path], draw: random.Random) -> list[Path]:
    data = bytearray(files[0].read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    replace_content(files[0], bytes(data))
    return [files[0]]


def truncate(files: Sequence[Path], draw: random.Random) -> list[Path]:
    data = files[0].read_bytes()
    replace_content(files[0], data[: draw.randrange(len(data))])
    return [files[0]]


def swap_ranges(files: Sequence[Path], draw: random.Random) -> list[Path]:
    """Exchanges two ranges of a file."""
    data = files[0].read_bytes()
    length = draw.randint(1, max(1, len(data) // 4))
    first = draw.randrange(len(data) // 2 - length + 1)
    second = draw.randrange(len(data) // 2, len(data) - length + 1)
    one, other = data[first : first + length], data[second : second + length]
    between = data[first + length : second]
    changed = data[:first] + other + between + one + data[second + length :]
    if changed == data:
        return []
    replace_content(files[0], changed)
    return [files[0]]


def swap_files(files: Sequence[Path], draw: random.Random) -> list[Path]:
    """Exchanges the contents of two files."""
    one, other = files[0].read_bytes(), files[1].read_bytes()
    if one == other:
        return []
    replace_content(files[0], other)
    replace_content(files[1], one)
    return list(files[:2])


FAULTS: tuple[Callable[[Sequence[Path], random.Random], list[Path]], ...] = (flip, truncate, swap_ranges, swap_files)


def damage(home: Path, number: int) -> list[str]:
    """Does the damage of case `number`; returns the files that hold something else now."""
    draw = random.Random(f"bit rot {number}")
    fault = FAULTS[number % len(FAULTS)]
    for _ in itertools.count():
        files = [draw.choice(files_in(home / draw.choice(PLACES))) for _ in range(2)]
        damaged = fault(files, draw) if files[0] != files[1] else []
        if damaged:
            return [path.relative_to(home).as_posix() for path in damaged]
    raise AssertionError


def files_in(place: Path) -> list[Path]:
    """The files of a place that have at least four bytes."""
    paths = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [path for path in paths if path.is_file() and path.stat().st_size >= 4]


def unnamed(verification: Verification, damaged: Sequence[str]) -> list[str]:
    """The damaged files that verification does not name, nor the manifest that could tell."""
    named = {finding.file for finding in verification.problems}
    return [
        file for file in damaged if not {file, *(f"{parent}/manifest.json" for parent in Path(file).parents)} & named
    ]


def is_told(file: str, notes: Sequence[str]) -> bool:
    """Whether a note names the file, or the damaged manifest of its object."""
    manifests = [f"{parent}/manifest.json" for parent in Path(file).parents]
    return any(note.startswith(f"{named} ") for named in (file, *manifests) for note in notes)


def is_of_artifacts(damaged: Sequence[str], digests: Mapping[str, str]) -> bool:
    """Whether a file of what a stage made is damaged, or one from which this is known: only then a stage may be run."""
    places = [f"objects/{digest}/" for digest in digests.values()] + ["ledger.", "backups/"]
    return any(file.startswith(tuple(places)) for file in damaged)


def missed(finished: Path, numbers: Sequence[int], scratch: Path) -> list[int]:
    """The cases whose damage `verify` does not name; nothing is mended."""
    found = []
    for number in numbers:
        home = scratch / f"case-{number}"
        copy_on_write(finished, home)
        damaged = damage(home, number)
        if unnamed(verify_home(home), damaged):
            found.append(number)
        shutil.rmtree(home)
    return found


def failure(finished: Path, recipe: Path, expected: Mapping[str, str], number: int, scratch: Path) -> str:
    """What goes wrong in a case, or nothing."""
    home = scratch / f"case-{number}"
    copy_on_write(finished, home)
    try:
        damaged = damage(home, number)
        case = f"case {number}, {FAULTS[number % len(FAULTS)].__name__} of {' and '.join(damaged)}"
        if not_named := unnamed(verify_home(home), damaged):
            return f"{case}: verify does not name {', '.join(not_named)}"
        notes: tuple[str, ...] = ()
        for repair in (False, True):  # what a run meets, and then all
            outcome = run(home, recipe, repair=repair)
            notes += outcome.notes
            if outcome.digests != expected:
                return f"{case}: the run ends in {outcome.digests}"
            if outcome.cached != tuple(expected) and not is_of_artifacts(damaged, expected):
                return f"{case}: the run takes only {outcome.cached} from the ledger"
        if untold := [file for file in damaged if not is_told(file, notes)]:
            return f"{case}: the runs do not tell of {', '.join(untold)}: {notes}"
        if left := verify_home(home).problems:
            return f"{case}: after the runs verify finds {left}"
    finally:
        shutil.rmtree(home)
    return ""
