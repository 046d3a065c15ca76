"""The commands that look after a home: `verify`, `gc` and `rm`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from reasonmill.errors import StoreError
from reasonmill.history import note_on
from reasonmill.options import DEFAULT_HOME, HomeOption, JsonOption
from reasonmill.store.garbage import collect_garbage, look_for_garbage
from reasonmill.store.removal import look_for_runs, remove_runs
from reasonmill.store.verification import verify_home


def verify(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Reads every byte of a home and says what is damaged; changes nothing. Exit code 3 if anything is."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("objects", total=None)
        found = verify_home(home, lambda done, total: progress.update(bar, completed=done, total=total))
    console = Console()
    if as_json:
        findings = [asdict(finding) for finding in found.findings]
        print(json.dumps({"objects": found.num_objects, "findings": findings}, indent=2, ensure_ascii=False))
    else:
        for finding in sorted(found.findings, key=lambda finding: finding.is_problem):
            label = ("damage: ", "bold red") if finding.is_problem else ("note: ", "dim")
            note_on(console, Text.assemble(label, f"{finding.file} {finding.what}"))
            note_on(console, f"  {finding.recovery}", style="dim")
        note_on(console, f"{_count(found.num_objects, 'object')}, {_count(len(found.problems), 'problem')}")
    if found.problems:
        raise typer.Exit(StoreError.exit_code)


def gc(
    home: HomeOption = DEFAULT_HOME,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    abandoned: Annotated[
        bool, typer.Option("--abandoned", help="Remove states of stages, too, that no run has any more.")
    ] = False,
    last_states: Annotated[
        bool, typer.Option("--last-states", help="Remove states, too, from which more steps of finished stages resume.")
    ] = False,
) -> None:
    """Removes what nothing refers to: no artifact, no groups, and no state that a run could resume from."""
    collect = look_for_garbage if dry_run else collect_garbage
    console = Console()
    garbage = collect(home, abandoned=abandoned, last_states=last_states)
    for digest in garbage.objects:
        note_on(console, f"object {digest[:12]}")
    for leftover in garbage.leftovers:
        note_on(console, f"leftover {leftover.relative_to(home.absolute())}")
    verb = "would be removed" if dry_run else "removed"
    note_on(console, f"{verb}: {_count(len(garbage.objects), 'object')}, {garbage.num_bytes:,} bytes with leftovers")
    for what, num_bytes in garbage.staying().items():
        note_on(console, f"{num_bytes:,} bytes are {what}")


def rm(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs, as `status` shows them.")],
    home: HomeOption = DEFAULT_HOME,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Forgets runs and removes what no other run refers to: artifacts, groups, states and views."""
    console = Console()
    found = look_for_runs(home, runs)
    named = ", ".join(map(repr, found.runs))
    for it in found.staying:
        readers = f"run {', '.join(map(repr, it.readers))} reads" if it.readers else "a run that is left may read"
        note_on(console, f"{it.num_bytes:,} bytes of {it.run!r} stay: {readers} {it.what}")
    for path in found.foreign:
        note_on(console, f"{path.relative_to(home.absolute())} stays: it is not of reasonmill")
    amount = f"{_count(len(found.runs), 'run')}, {_count(found.stages, 'stage')}, {found.num_bytes:,} bytes"
    more = f"; and {found.num_bytes_garbage:,} bytes that nothing refers to" if found.num_bytes_garbage else ""
    if dry_run:
        note_on(console, f"would be removed: {amount}{more}")
        return
    if not yes:
        typer.confirm(f"remove {named}: {amount}{more}?", abort=True)
    remove_runs(home, runs)
    note_on(console, f"removed: {amount}{more}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
