"""The commands about what a home's runs have made: `status`, `lineage` and `adopt`."""

import json
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from reasonmill.errors import NotAdopted
from reasonmill.options import DEFAULT_HOME, HomeOption, JsonOption, OverridesOption, RecipeArgument, UntilOption
from reasonmill.store.garbage import garbage_of
from reasonmill.store.home import Home, require_home
from reasonmill.store.ledger import ADOPTED, StageRecord
from reasonmill.store.ledger_runs import RunRecord, unknown_run
from reasonmill.store.usage import OTHER, RunUsage, Usage, usage
from reasonmill.types import Artifact


def status(
    run: Annotated[str | None, typer.Argument(help="One run, and what each of its stages takes on the disk.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Shows the runs of a home, which of their stages are finished, begun or open, and what they take on the disk."""
    console = Console()
    with Home.open(home, write=False) as opened, opened.ledger.at_one_moment():
        runs = {record.name: record for record in opened.ledger.runs()}
        if run is not None and run not in runs:
            raise unknown_run(run, runs, opened.path)
        taken = {used.name: used for used in usage(opened.path, opened.ledger)}
        garbage = garbage_of(opened.path, opened.ledger)
        shown = [record for name, record in runs.items() if run in (None, name)]
        if as_json:
            told = {
                "runs": [_as_json(opened, record, taken[record.name]) for record in shown],
                "gc": {
                    "free_bytes": garbage.num_bytes,
                    "abandoned_states_bytes": garbage.num_bytes_abandoned,
                    "last_states_bytes": garbage.num_bytes_last,
                    "kept_bytes": garbage.num_bytes_kept,
                    "quarantined_bytes": garbage.num_bytes_quarantined,
                },
            }
            print(json.dumps(told, indent=2, ensure_ascii=False))
            return
        if not runs:
            note_on(console, "no runs yet")
        for record in shown:
            console.print(_status_table(opened, record))
            if run is not None:
                console.print(_usage_table(taken[run]))
            note_on(console, f"disk: {_told(taken[record.name].total)}", style="dim")
    note_on(console, f"gc would remove {garbage.num_bytes:,} bytes")
    for what, num_bytes in garbage.staying().items():
        note_on(console, f"{num_bytes:,} bytes are {what}")


def lineage(
    artifact: Annotated[str, typer.Argument(help="run/stage, or the beginning of a digest.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Shows what an artifact was made from."""
    from reasonmill.mill.artifacts import find_artifact

    with Home.open(home, write=False) as opened, opened.ledger.at_one_moment():
        found = find_artifact(opened, artifact, note_to_user)
        Console().print(_lineage_tree(opened, found, None, set()))


def adopt(
    recipe: RecipeArgument,
    home: HomeOption = DEFAULT_HOME,
    overrides: OverridesOption = None,
    until: UntilOption = None,
) -> None:
    """Takes over finished results that other code made, if nothing but the code differs. Exit code 7 if one can't be.

    The ledger, the summary and the report say of an adopted result that it is one, and so they do of all that is made
    from it.
    """
    from reasonmill.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    loaded.up_to(until)  # a mistake here is reported before the home is opened

    from reasonmill.mill.adoption import adopt as adopt_results

    require_home(home)
    with Home.open(home) as opened:
        opened.incidents.tell(note_to_user)
        done = adopt_results(loaded, opened, until)
    table = table_of(f"{loaded.name}, seed {loaded.seed}", "stage", "kind", "result", "artifact")
    for stage in done:
        table.add_row(stage.name, stage.kind, stage.status, stage.digest[:12])
    Console().print(table)
    last = done[-1]
    if last.reason:
        raise NotAdopted(
            f"stage {last.name!r} can't be adopted: {last.reason}",
            fix="run the recipe: it rebuilds this stage and those after it, and keeps those before it as they are",
        )


def table_of(title: str, *columns: str) -> Table:
    """An empty table as all commands print them."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def note_on(console: Console, text: str | Text, style: str = "") -> None:
    """Prints a line as it is, however long it is."""
    console.print(Text.assemble(text, style=style), soft_wrap=True, highlight=False)


def note_to_user(text: str) -> None:
    """Prints a line that is not what was asked for."""
    note_on(Console(stderr=True), text, style="yellow")


class _Row(NamedTuple):
    """What `status` says of a stage."""

    stage: str
    kind: str
    state: str
    artifact: str
    earlier: str


def _rows(home: Home, run: RunRecord) -> list[_Row]:
    begun = {stage.name: stage.key for stage in run.stages}
    earlier = {stage.name: (stage.kind, _digest(home.ledger.stage(stage.key))) for stage in run.earlier}
    rows = []
    for settings in run.recipe["stage"]:
        name = settings["name"]
        state, digest = _stage_state(home, begun.get(name), settings.get("steps"))
        _, result = earlier.pop(name, ("", ""))
        rows.append(_Row(name, settings["kind"], state, digest, "" if digest else result))
    for name, (kind, result) in earlier.items():
        rows.append(_Row(name, kind, "no longer in the recipe", "", result))
    return rows


def _status_table(home: Home, run: RunRecord) -> Table:
    table = table_of(run.name, "stage", "kind", "state", "artifact", "earlier result")
    for row in _rows(home, run):
        table.add_row(*row)
    return table


def _usage_table(used: RunUsage) -> Table:
    """Bytes of each part of a run; what `rm` would free is its own."""
    table = table_of("bytes", "stage", "own", "own states", "shared with other runs")
    for name, part in {**used.stages, "views": Usage(own=used.views)}.items():
        table.add_row(name, f"{part.own:,}", f"{part.states:,}", f"{part.shared:,}")
    return table


def _told(used: Usage) -> str:
    return f"{used.own:,} bytes of its own, {used.states:,} of its states, {used.shared:,} shared with other runs"


def _as_json(home: Home, run: RunRecord, used: RunUsage) -> dict[str, Any]:
    stages = [{**row._asdict(), **_bytes(used.stages.get(row.stage, Usage()))} for row in _rows(home, run)]
    other = _bytes(used.stages[OTHER])
    return {"name": run.name, **_bytes(used.total), "views_bytes": used.views, "stages": stages, "other": other}


def _bytes(used: Usage) -> dict[str, int]:
    return {"own_bytes": used.own, "states_bytes": used.states, "shared_bytes": used.shared}


def _stage_state(home: Home, key: str | None, steps: int | None) -> tuple[str, str]:
    """How far a stage is, and the beginning of its artifact's digest."""
    if key is None:
        return "open", ""
    record = home.ledger.stage(key)
    if record is not None:
        adopted = ", adopted" if ADOPTED in record.artifact.metrics else ""
        return f"finished in {record.seconds:.1f} s{adopted}", _digest(record)
    reached = home.ledger.metrics(key)
    if not reached:
        return "begun", ""
    return f"at step {reached[-1]['step'] + 1}" + (f" of {steps}" if steps is not None else ""), ""


def _digest(record: StageRecord | None) -> str:
    return record.artifact.digest[:12] if record is not None else ""


def _lineage_tree(home: Home, artifact: Artifact, parent: Tree | None, shown: set[tuple[str, str]]) -> Tree:
    """The artifact and its ancestors; what has ancestors is followed where it comes first only."""
    making = (artifact.stage, artifact.digest)
    label = Text.assemble((artifact.stage, "bold"), f"  {artifact.kind}  ", (artifact.digest[:12], "dim"))
    if artifact.kind == "verdict":
        label.append("  promoted" if artifact.metrics["promoted"] else "  refused")
    if ADOPTED in artifact.metrics:
        label.append("  adopted from other code", "yellow")
    is_repeated = bool(artifact.parents) and making in shown
    if is_repeated:
        label.append("  (shown above)", "dim")
    tree = Tree(label) if parent is None else parent.add(label)
    shown.add(making)
    for ancestor in () if is_repeated else home.ledger.parents(artifact):
        _lineage_tree(home, ancestor, tree, shown)
    return tree
