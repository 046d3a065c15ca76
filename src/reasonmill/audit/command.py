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
from reasonmill.audit.judging import ApartJudge, RewardJudge, rule_of_reward, rule_of_task
from reasonmill.audit.samples import Sample, own_samples
from reasonmill.errors import RecipeError
from reasonmill.history import note_on, note_to_user
from reasonmill.options import AcceptOption, JsonOption, RecipeOption, SplitOption
from reasonmill.plugins.catalogue import Catalogue, RewardUse, installed
from reasonmill.plugins.plugin import Group
from reasonmill.protocols import Reward
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
    reward: Annotated[
        str | None,
        typer.Option("--reward", metavar="NAME", help="Attack this reward on the task's problems, not its grader."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    split: SplitOption = "test",
    limit_s: Annotated[
        float | None, typer.Option("--limit", min=0.1, help="Seconds for one verdict; 10, or what the grader allows.")
    ] = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
    accept_unisolated_code: AcceptOption = False,
) -> None:
    """Attacks the grader of a task, or a reward, and lists what passes and should not, and the reverse. Exit code 11 if
    anything."""
    catalogue = installed() if recipe is None else load_recipe(recipe).catalogue
    named = _attacked(catalogue, task)
    try:
        drawn = [Sample(problem) for problem in itertools.islice(named.problems(split, seed), problems)]
    except RecipeError:
        drawn = own_samples(task)[:problems]
        if not drawn:
            raise
        note_to_user(f"task {task!r} has no problems of split {split!r}: its grader is attacked with samples")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("problems", total=len(drawn))
        judge = _judge(named, limit_s) if reward is None else _judge_of(_reward(catalogue, reward), named, limit_s)
        found = audit(named, drawn, judge, lambda done: progress.update(bar, completed=done))
    if as_json:
        print(json.dumps({"task": task, "reward": reward, **_as_json(found)}, indent=2, ensure_ascii=True))
    else:
        _print(found)
    if found.findings:
        raise typer.Exit(FOUND)


def _attacked(catalogue: Catalogue, name: str) -> NamedTask:
    """The task as its own code has it: an audit judges in a process apart anyway, and needs no workers beside that.
    What belongs into the jail stays there."""
    task = catalogue.task(name)
    return task if _in_jail(catalogue, "tasks", name) else replace(task, task=catalogue.plugin("tasks", name).made)


def _reward(catalogue: Catalogue, name: str) -> Reward:
    """The reward, like the task."""
    made: Reward = catalogue.plugin("rewards", name).made
    return catalogue.reward(name) if _in_jail(catalogue, "rewards", name) else made


def _in_jail(catalogue: Catalogue, group: Group, name: str) -> bool:
    use = catalogue.tables.get(group, {}).get(name)
    told = use.isolation if isinstance(use, RewardUse) else None
    return (told or getattr(catalogue.plugin(group, name).made, "isolation", None)) == "jail"


def _judge(task: NamedTask, limit_s: float | None) -> ApartJudge:
    return ApartJudge(rule_of_task(task), limit_s or _allowed(task.task))


def _judge_of(reward: Reward, task: NamedTask, limit_s: float | None) -> RewardJudge:
    return RewardJudge(rule_of_reward(reward, task), limit_s or _allowed(reward))


def _allowed(judging: object) -> float:
    """How long a verdict may take."""
    own: Limits | None = getattr(judging, "limits", None)
    return own.seconds if own is not None else _USUAL_S


def _as_json(found: Audit) -> dict[str, Any]:
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
        "form": found.form,
        "problems": found.num_problems,
        "gold_right": found.num_right,
        "judged": found.num_judged,
        "findings": findings,
    }


def _print(found: Audit) -> None:
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
