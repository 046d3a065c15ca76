"""The command `audit`."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from reasonmill.audit.auditing import Audit, Finding, audit
from reasonmill.audit.samples import samples
from reasonmill.errors import RecipeError
from reasonmill.history import note_on, note_to_user
from reasonmill.options import AcceptOption, JsonOption, RecipeOption, SplitOption
from reasonmill.plugins.catalogue import Catalogue, installed
from reasonmill.recipe.load import load_recipe
from reasonmill.tasks.named import NamedTask
from reasonmill.workers.limits import Limits

# The exit code where something is found: no error of the command has it.
FOUND = 11
# How long a verdict may take; graders that run programs say themselves how long that is at most.
_USUAL_S = 10.0
_SHOWN_CHARACTERS = 80


def audit_command(
    task: Annotated[str, typer.Argument(help="Name of a task.")],
    problems: Annotated[int, typer.Option("--problems", min=1, help="How many problems are attacked.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    split: SplitOption = "test",
    limit_s: Annotated[
        float | None, typer.Option("--limit", min=0.1, help="Seconds for one verdict; 10, or what the grader allows.")
    ] = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
    accept_unisolated_code: AcceptOption = False,
) -> None:
    """Attacks the grader of a task, and lists what passes and should not, and the reverse. Exit code 11 if anything."""
    named = _attacked(installed() if recipe is None else load_recipe(recipe).catalogue, task)
    try:
        drawn = list(itertools.islice(named.problems(split, seed), problems))
    except RecipeError:
        drawn = samples(task)[:problems]
        if not drawn:
            raise
        note_to_user(f"task {task!r} has no problems of split {split!r}: its grader is attacked with samples")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("problems", total=len(drawn))
        own: Limits | None = getattr(named.task, "limits", None)
        limit_s = limit_s or (own.seconds if own is not None else _USUAL_S)
        found = audit(named, drawn, limit_s, lambda done: progress.update(bar, completed=done))
    if as_json:
        print(json.dumps(_as_json(task, found), indent=2, ensure_ascii=True))
    else:
        _print(task, found)
    if found.findings:
        raise typer.Exit(FOUND)


def _attacked(catalogue: Catalogue, name: str) -> NamedTask:
    """The task as its own code has it: an audit grades in a process apart anyway, and needs no workers beside that.
    What belongs into the jail stays there."""
    task, made, table = catalogue.task(name), catalogue.plugin("tasks", name).made, catalogue.tables.get("tasks", {})
    told = getattr(table.get(name), "isolation", None) or getattr(made, "isolation", None)
    return task if told == "jail" else replace(task, task=made)


def _as_json(task: str, found: Audit) -> dict[str, Any]:
    findings = [
        {
            "fault": finding.fault,
            "kind": finding.kind,
            "attack": finding.attack,
            "problem": finding.problem.id,
            "answer": finding.problem.answer,
            "response": finding.response,
            "reason": finding.reason,
        }
        for finding in found.findings
    ]
    return {
        "task": task,
        "form": found.form,
        "problems": found.num_problems,
        "gold_right": found.num_right,
        "judged": found.num_judged,
        "findings": findings,
    }


def _print(task: str, found: Audit) -> None:
    console = Console()
    for (fault, kind, attack), findings in _grouped(found.findings).items():
        first = findings[0]
        share = f"{len(findings)} of {found.num_problems} problems"
        note_on(console, Text.assemble((fault, "bold red"), f"  {kind}: {attack} ({share})"))
        note_on(
            console, f"  the answer is {_shown(first.problem.answer)!r}, the response was {_shown(first.response)!r}"
        )
        if first.reason:
            note_on(console, f"  {_shown(first.reason)!r}", style="dim")
    count = len(found.findings)
    gold = f"{found.num_right} of {found.num_problems} gold answers are right in the form {found.form!r}"
    note_on(
        console, f"{found.num_judged:,} responses judged; {gold}; {count or 'no'} finding{'' if count == 1 else 's'}"
    )


def _grouped(findings: Iterable[Finding]) -> dict[tuple[str, str, str], list[Finding]]:
    grouped: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        grouped[finding.fault, finding.kind, finding.attack].append(finding)
    return grouped


def _shown(text: str) -> str:
    """The text with its middle left out where it is long."""
    half = _SHOWN_CHARACTERS // 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]} ... {text[-half:]}"
