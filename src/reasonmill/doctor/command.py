"""The command `doctor`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from reasonmill.doctor.facts import look
from reasonmill.doctor.judging import Finding, Verdict, is_ready, judge
from reasonmill.history import note_on
from reasonmill.options import DEFAULT_HOME, HomeOption, JsonOption

# The exit code where the quickstart can't run: no error of the command has it.
NOT_READY = 12
_STYLES: dict[Verdict, str] = {"good": "green", "works with less": "yellow", "missing": "bold red"}


def doctor(
    home: HomeOption = DEFAULT_HOME,
    hub: Annotated[
        bool, typer.Option("--hub", help="Ask the Hugging Face hub whether it can be reached, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Says what this machine can do, and how to change what it can't. Exit code 12 if the quickstart can't run."""
    found = judge(look(home, ask_hub=hub))
    ready = is_ready(found)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [asdict(each) for each in found]}, indent=2, ensure_ascii=False))
    else:
        console = Console()
        width = max(len(each.what) for each in found)
        for each in found:
            note_on(console, _line(each, width))
            if each.fix:
                note_on(console, f"{' ' * (width + 2)}fix: {each.fix}", style="dim")
        note_on(console, "the quickstart can run here" if ready else "the quickstart can't run here")
    if not ready:
        raise typer.Exit(NOT_READY)


def _line(finding: Finding, width: int) -> Text:
    verdict = (finding.verdict, _STYLES[finding.verdict])
    return Text.assemble((finding.what.ljust(width + 2), "bold"), verdict, f"  {finding.found}")
